"""Facts about packed files: what lies in them and where, the commands that make them, and packing anew."""

from __future__ import annotations

import os
import zipfile

import pytest
from ggufs import U16, Key, Raw, Tensor
from layerlift.runtime.cli import main
from layerlift.runtime.errors import GGUFError, UserError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.pack import pack, repack, unpack
from layerlift.runtime.pack_manifest import ALIGNMENT
from layerlift.runtime.pack_verify import verify

# -- what is in it, and where --


def test_the_weights_are_used_where_they_lie(tmp_path, content, packed):
    with open_gguf(content) as plain, open_gguf(packed) as g:
        assert g.extents == ((str(packed), "m.gguf", ALIGNMENT, content.stat().st_size),)
        assert list(g.tensors) == list(plain.tensors)
        for name in plain.tensors:
            assert not g.raw(name).flags.owndata
            assert g.raw(name).ctypes.data % g.alignment == 0
            assert g.raw(name).tobytes() == plain.raw(name).tobytes()
    assert packed.read_bytes()[ALIGNMENT : ALIGNMENT + content.stat().st_size] == content.read_bytes()
    with open_gguf(f"{packed}@m.gguf") as g:
        assert g.extents[0][2] == ALIGNMENT
    with pytest.raises(UserError, match=r"no member 'x\.gguf'"):
        open_gguf(f"{packed}@x.gguf")


def test_any_zip_tool_reads_the_small_zip(packed):
    with zipfile.ZipFile(packed) as z:
        assert z.testzip() is None
        assert {"__main__.py", "layerlift.json", ".args"} <= set(z.namelist())
        assert z.read(".args") == b"--temp 0\n"


def test_the_same_input_makes_the_same_file(tmp_path, content, packed):
    pack(content, tmp_path / "again.llm", args="--temp 0\n")
    assert (tmp_path / "again.llm").read_bytes() == packed.read_bytes()


def test_a_split_set_is_packed_whole_and_opens(tmp_path):
    for i in range(3):
        keys = [Key("split.no", U16, i), Key("split.count", U16, 3), Key("split.tensors.count", U16, 3)]
        Raw(keys, [Tensor(f"t{i}", (32,))]).write(tmp_path / f"m-0000{i + 1}-of-00003.gguf")
    pack(tmp_path / "m-00002-of-00003.gguf", tmp_path / "m.llm")
    with open_gguf(tmp_path / "m.llm") as g:
        assert list(g.tensors) == ["t0", "t1", "t2"]
        assert all(start % ALIGNMENT == 0 for _, _, start, _ in g.extents)
    assert len(verify(tmp_path / "m.llm").parts) == 3
    (tmp_path / "out").mkdir()
    names = unpack(tmp_path / "m.llm", tmp_path / "out")
    assert [n.read_bytes() for n in names] == [(tmp_path / n.name).read_bytes() for n in names]


def test_a_packed_file_is_for_its_owner_to_run(packed):
    umask = os.umask(0)
    os.umask(umask)
    assert packed.stat().st_mode & 0o777 == 0o777 & ~umask


# -- the commands --


def test_pack_verify_unpack_from_the_command_line(tmp_path, content, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flags").write_text("# mine\n-p 'Be brief'\n...\n")
    assert main(["pack", "m.gguf", "--args", "flags"]) == 0
    assert main(["verify", "m.llm"]) == 0
    out = capsys.readouterr().out
    assert "m.llm: packed by layerlift" in out
    assert "-p 'Be brief'" in out
    content.rename(tmp_path / "gone.gguf")
    assert main(["unpack", "m.llm"]) == 0
    assert capsys.readouterr().out == "m.gguf\n"
    assert content.read_bytes() == (tmp_path / "gone.gguf").read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pack"], "pack needs MODEL.gguf"),
        (["pack", "m.gguf", "n.gguf"], "unexpected argument 'n.gguf'"),
        (["pack", "m.gguf", "-o", "m.gguf"], "'m.gguf' is the model itself"),
        (["pack", "m.gguf", "-o", "link"], "'link' is the model itself"),
        (["pack", "m.gguf"], "'m.llm' exists already"),
        (["pack", "m.gguf", "-o", "folder"], "is not a regular file"),
        (["pack", "m.gguf", "-o", "missing/m.llm"], "No such file or directory"),
        (["pack", "m.gguf", "-o", "x", "--args", "none"], "cannot read 'none'"),
        (["pack", "m.gguf", "-o", "x", "--args", "m.gguf", "--", "--cli"], "cannot both be packed"),
        (["pack", "m.gguf", "-o", "x", "--", "--tmp", "0"], "unknown flag --tmp"),
        (["pack", "m.gguf", "-o", "x", "--", "-m", "y"], "the packed file is the model itself"),
        (["pack", "m.gguf", "-o", "x", "--bundle-deps", "--pythons", "2.7"], "a version of Python from 3.10 on"),
        (["pack", "m.gguf", "-o", "x", "--pythons", "3.10"], "--pythons says what --bundle-deps carries"),
        (["unpack", "m.gguf"], "is a plain GGUF"),
        (["unpack", "m.llm"], "'m.gguf' exists already"),
        (["unpack", "m.llm", "-o", "m.llm"], "is the packed file itself"),
        (["repack", "m.gguf"], "was not packed by layerlift"),
        (["verify", "none.llm"], "cannot read 'none.llm'"),
        (["verify", "folder"], "cannot read 'folder'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_a_request_that_cannot_work_is_one_line(tmp_path, packed, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("m.gguf")
    (tmp_path / "folder").mkdir()
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert main(argv) in (1, 2)
    err = capsys.readouterr().err
    assert message in err.splitlines()[0]
    assert len(err.splitlines()) <= 2
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


# -- repack --


def test_repack_keeps_weights_and_flags_and_takes_new_ones(tmp_path, packed):
    before = packed.read_bytes()
    repack(packed)
    assert packed.read_bytes() == before
    repack(packed, tmp_path / "other.llm", args="--cli\n")
    assert packed.read_bytes() == before
    report = verify(tmp_path / "other.llm")
    assert report.args == "--cli\n"
    assert report.parts == verify(packed).parts


def test_repack_replaces_an_older_launcher(tmp_path, packed, content):
    data = packed.read_bytes()
    with zipfile.ZipFile(packed) as z:
        launcher = z.read("__main__.py")
    start = data.index(launcher)
    packed.write_bytes(data[:start] + b"#" * len(launcher) + data[start + len(launcher) :])
    with pytest.raises(GGUFError, match=r"'__main__\.py' is damaged"):
        verify(packed)
    repack(packed)
    assert packed.read_bytes() == data
