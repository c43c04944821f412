"""Facts about reading PyTorch's files: nothing in them is ever run, and what they say is checked."""

from __future__ import annotations

import os
import pickle
import tracemalloc

import numpy as np
import pytest
from checkpoints import number, numbers, pickled, text, write_pth
from layerlift.runtime.convert import pickled as reader
from layerlift.runtime.convert import pth
from layerlift.runtime.errors import ConvertError, GGUFError

GIVEN = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float32)}
CALL = b"cposix\nsystem\n" + text("touch SENTINEL") + b"\x85R"


class Runs:
    """What a hostile file hides: unpickling it runs a command."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.fixture
def sentinel(tmp_path, monkeypatch):
    """A file name in the working directory that a hostile pickle would create."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "SENTINEL"
    assert not (tmp_path / "SENTINEL").exists()


@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16"])
def test_every_number_is_found(tmp_path, fmt):
    found = pth.read_header(write_pth(tmp_path / "x.pth", GIVEN, fmt))
    assert {name: t.shape for name, t in found.items()} == {"a.weight": (3, 4), "b": (5,)}
    rows = found["a.weight"].read(1, 3)
    values = (rows.astype(np.uint32) << 16).view(np.float32) if fmt == "BF16" else rows
    assert (values == GIVEN["a.weight"][1:3]).all()


@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (Runs(os.system, "touch SENTINEL"), "system"),
        (Runs(eval, "open('SENTINEL', 'w')"), "builtins.eval"),
        (Runs(exec, "open('SENTINEL', 'w')"), "builtins.exec"),
        (Runs(getattr, os, "system"), "builtins.getattr"),
        (Runs(open, "SENTINEL", "w"), "open"),
        (Runs(np.frombuffer, b"x"), "frombuffer"),
        (Runs(print, Runs(os.system, "touch SENTINEL")), "builtins.print"),
        (bytearray(b"x"), "builtins.bytearray"),
        (ValueError("x"), "builtins.ValueError"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_is_refused_by_name_and_not_run(sentinel, hostile, name, protocol):
    try:
        data = pickle.dumps({"weight": hostile}, protocol=protocol)
    except TypeError:  # a module cannot be pickled: its name stands for it
        data = b"\x80\x02}" + text("weight") + b"cbuiltins\ngetattr\n" + b"cos\nos\n" + text("system") + b"\x86Rs."
    with pytest.raises(ConvertError, match=r"refused|does not need") as caught:
        reader.read(data, "x.pth")
    if protocol and not isinstance(hostile, bytearray):  # else an instruction is refused before the name is seen
        assert name.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + CALL + b".",
        b"\x80\x02}" + text("w") + CALL + b"s.",
        b"\x80\x02}" + CALL + number(1) + b"s.",  # as a key
        b"\x80\x02(" + CALL + b"t.",
        b"\x80\x02(cposix\nsystem\n" + text("touch SENTINEL") + b"o.",  # OBJ
        b"\x80\x02(" + text("touch SENTINEL") + b"iposix\nsystem\n.",  # INST
        b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("touch SENTINEL") + b"\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1: a name from the registry
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02Pposix.system\n.",  # PERSID
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ctorch._utils._rebuild_tensor_v2.__globals__\nx\n.",
        b"\x80\x02ctorch\n_utils._rebuild_tensor_v2\n.",
        b"\x80\x02ccollections\nOrderedDict\n(]tR.",  # with arguments
        b"\x80\x02ccollections\nOrderedDict\n)R}" + text("__class__") + text("x") + b"sbb.",
    ],
    ids=lambda data: repr(data[2:30]),
)
def test_every_road_to_a_call_is_closed(sentinel, data):
    with pytest.raises(ConvertError, match=r"^x\.pth: "):
        reader.read(data, "x.pth")


def test_a_called_name_is_never_even_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConvertError, match=r"'trap.x', which is refused"):
        reader.read(b"\x80\x02ctrap\nx\n.", "x.pth")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x02B\xff\xff\xff\x7fx.",  # two thousand million bytes that are not there
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02)" + b"\x85" * 100_000 + b"}" + b".",
        b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.",  # a deep tuple as a key, whose hash would be endless
        b"\x80\x02)" + b"2\x86" * 1000 + b".",  # each pair twice the one before
        b"\x80\x02" + b"j\x00\x00\x00\x00" * 10 + b".",
        b"\x80\x02" + b"0" * 10 + b".",
        b"\x80\x02I" + b"9" * 5000 + b"\n.",
        b"",
        b"\x80",
        b".",
        b"\x80\x02}",
        b"\x80\x02].",
        b"\x80\x02}" + text("a") + b"s.",
        b"\x80\x02}(" + text("a") + b"u.",
    ],
    ids=lambda data: f"{data[:12]!r} {len(data)}",
)
def test_a_bomb_or_a_damaged_pickle_is_refused_in_little_memory(data):
    tracemalloc.start()
    try:
        reader.read(data, "x.pth")
        said = ""
    except ConvertError as error:
        said = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 64 << 20
    assert len(said) < 400


def test_every_cut_and_every_changed_byte_is_read_or_refused(tmp_path):
    data = pickled(GIVEN)
    rng = np.random.default_rng(0)
    for at in range(len(data)):
        for changed in (data[:at], data[:at] + bytes([rng.integers(256)]) + data[at + 1 :]):
            try:
                reader.read(changed, "x.pth")
            except ConvertError:
                pass


@pytest.mark.parametrize(
    ("pickle", "message"),
    [
        (pickled(GIVEN, strides={"a.weight": (1, 3)}), "does not lie row after row"),
        (pickled(GIVEN, strides={"a.weight": (4,)}), "does not lie row after row"),
        (pickled(GIVEN).replace(numbers((3, 4)), numbers((3000, 4000))), "runs past its storage"),
        (pickled(GIVEN).replace(numbers((3, 4)), numbers((-3, 4))), "arguments that make no tensor"),
        (pickled(GIVEN).replace(text("0"), text("../data.pkl")), "no tensor's storage"),
        (pickled(GIVEN).replace(text("0"), text("77")), "'consolidated/data/77', which is missing"),
        (pickled(GIVEN).replace(b"FloatStorage", b"QInt8Storage"), "'torch.QInt8Storage', which is refused"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(tmp_path, pickle, message):
    with pytest.raises(ConvertError, match=message):
        pth.read_header(write_pth(tmp_path / "x.pth", GIVEN, pickle=pickle))


def test_a_storage_shorter_than_it_says_is_refused(tmp_path):
    path = write_pth(tmp_path / "x.pth", {"a.weight": GIVEN["a.weight"][:2], "b": GIVEN["b"]}, pickle=pickled(GIVEN))
    with pytest.raises(ConvertError, match=r"\[3, 4\] runs past its storage of 32 bytes"):
        pth.read_header(path)


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({}) + bytes(100))  # PyTorch before 1.6 wrote such files
    with pytest.raises(ConvertError, match="no PyTorch checkpoint"):
        pth.read_header(path)
    path.write_bytes(b"")
    with pytest.raises(ConvertError):
        pth.read_header(path)
    whole = write_pth(path, GIVEN).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((ConvertError, GGUFError)):
        pth.read_header(path)
