"""`layerlift quantize`: whole files in, whole files out, or nothing; errors on one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import ggufs
import numpy as np
import pytest
from layerlift.backends.formats import BY_NAME
from layerlift.backends.numpy_decode import decode_rows
from layerlift.runtime import cli
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.gguf_writer import NewTensor, write_gguf
from layerlift.runtime.metadata import Texts
from layerlift.runtime.model import Model


@pytest.fixture
def run(capsys):
    def call(*words):
        code = cli.main([str(word) for word in words])
        out = capsys.readouterr()
        return SimpleNamespace(code=code, out=out.out, err=out.err)

    return call


def tensors_of(path):
    with open_gguf(path) as gguf:
        return {
            name: (info.fmt, decode_rows(gguf.raw(name)[None], info.fmt, np.prod(info.shape)).reshape(info.shape))
            for name, info in gguf.tensors.items()
        }


@pytest.mark.parametrize("word", ["Q8_0", "Q6_K", "Q5_K_M", "q4_k", "Q4_0", "Q5_1", "IQ4_NL", "Q2_K", "BF16", "f16"])
def test_a_model_in_another_type_is_nearly_the_same_model(word, tiny, tmp_path, run):
    source, target = tiny("F32"), tmp_path / "out.gguf"
    done = run("quantize", source, target, word, 2)
    assert done.code == 0, done.err
    before, after = tensors_of(source), tensors_of(target)
    assert list(before) == list(after)
    bound = {"Q2_K": 0.35, "Q4_0": 0.15, "IQ4_NL": 0.15, "q4_k": 0.15}.get(word, 0.07)
    for name, (fmt, x) in after.items():
        off = np.sqrt(np.square(x - before[name][1]).mean()) / max(float(before[name][1].std()), 1e-9)
        assert fmt == "F32" or off < bound, f"{name} {fmt}: {off}"
    with Model.load(target, ngl=0) as model:
        assert model.config.n_layers == 2


def test_keys_are_copied_and_say_what_the_file_is(tiny, tmp_path, run):
    source, target = tiny("F32"), tmp_path / "out.gguf"
    assert run("quantize", source, target, "Q4_K_M").code == 0
    with open_gguf(source) as a, open_gguf(target) as b:
        changed = {"general.file_type", "general.quantization_version", "general.alignment"}
        assert set(a.metadata) - changed == set(b.metadata) - changed
        for key in set(a.metadata) - changed:
            assert a.metadata.encoded(key) == b.metadata.encoded(key), key
        assert b.metadata.integer("general.file_type") == 15
        assert b.metadata.integer("general.quantization_version") == 2


def test_every_kind_of_value_is_copied_as_it_was(tmp_path):
    keys = [
        ggufs.Key("a", ggufs.BOOL, True),
        ggufs.Key("b", ggufs.U8, 7),
        ggufs.Key("c", ggufs.I64, -5),
        ggufs.Key("d", ggufs.F64, 0.1),
        ggufs.Key("e", ggufs.TEXT, "ä"),
        ggufs.Key("f", ggufs.ARRAY, ["x", "é"], ggufs.TEXT),
        ggufs.Key("g", ggufs.ARRAY, [1, 0, 1], ggufs.BOOL),
        ggufs.Key("h", ggufs.ARRAY, [-3, 9], ggufs.I16),
        ggufs.Key("i", ggufs.ARRAY, [], ggufs.F32),
    ]
    for order in "<>":
        with open_gguf(ggufs.Raw(keys=keys, order=order).write(tmp_path / "keys.gguf")) as gguf:
            for key in keys:
                assert gguf.metadata.encoded(key.name) == key.pack("<")[8 + len(key.name) :], key.name
            assert isinstance(gguf.metadata["f"], Texts)


def test_quantised_weights_are_refused_unless_asked_for(tiny, tmp_path, run):
    source, target = tiny("Q4_0"), tmp_path / "out.gguf"
    done = run("quantize", source, target, "Q8_0")
    assert done.code == 2
    assert "is Q4_0, quantised already" in done.err
    assert "--allow-requantize" in done.err
    assert not target.exists()
    assert run("quantize", "--allow-requantize", source, target, "F32").code == 0
    assert {fmt for fmt, _ in tensors_of(target).values()} == {"F32"}


def test_a_dry_run_writes_a_table_and_no_file(tiny, tmp_path, run):
    done = run("quantize", "--dry-run", tiny("F32"), tmp_path / "out.gguf", "Q4_0")
    assert done.code == 0
    assert any(line.split()[0] == "blk.0.attn_q.weight" and line.endswith("Q4_0") for line in done.out.splitlines())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs IN, OUT and TYPE"),
        (("in.gguf", "out.gguf"), "needs IN, OUT and TYPE"),
        (("in.gguf", "out.gguf", "Q9_9"), "unknown type 'Q9_9'"),
        (("in.gguf", "out.gguf", "Q8_0", "many"), "no number of threads"),
        (("--output-tensor-type", "Q7", "in.gguf", "out.gguf", "Q8_0"), "unknown tensor type 'Q7'"),
        (("--imatrix", "none.dat", "in.gguf", "out.gguf", "Q8_0"), "cannot read 'none.dat'"),
        (("in.gguf", "out.gguf", "Q8_0"), "in.gguf"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(words, said, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    done = run("quantize", *words)
    assert done.code in (1, 2)
    assert said in done.err
    assert len(done.err.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_the_input_is_never_the_output(tiny, tmp_path, run):
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny("F32"))
    before = tiny("F32").read_bytes()
    done = run("quantize", tiny("F32"), link, "Q8_0")
    assert done.code == 2
    assert "is the file that is read" in done.err
    assert tiny("F32").read_bytes() == before


def test_a_weight_that_is_no_number_is_refused_by_name(tmp_path, run):
    x = np.zeros((4, 256), np.float32)
    x[2, 3] = np.nan
    source, target = write(tmp_path / "nan.gguf", {"blk.0.ffn_up.weight": x}), tmp_path / "out.gguf"
    done = run("quantize", source, target, "Q4_0")
    assert done.code == 1
    assert "tensor blk.0.ffn_up.weight, row 2: a number is not finite" in done.err
    assert not target.exists()
    assert os.listdir(tmp_path) == ["nan.gguf"]


def write(path, arrays, **keys):
    """A llama of one layer with only these tensors."""
    given = {"general.architecture": "llama", "llama.block_count": 1, "llama.attention.head_count": 4} | keys
    tensors = [
        NewTensor(name, "F32", x.shape, lambda x=x: [np.ascontiguousarray(x).view(np.uint8).reshape(-1)])
        for name, x in arrays.items()
    ]
    write_gguf(path, given, tensors)
    return path


def test_experts_are_quantised_each_with_its_own_importance(tmp_path, run):
    from layerlift.runtime.quantize.imatrix import Sums, write_imatrix

    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 8, 256)).astype(np.float32)
    x[1] = x[0]
    matters = np.ones((2, 256), np.float32)
    matters[0, :128] = matters[1, 128:] = 1000
    source = write(tmp_path / "moe.gguf", {"blk.0.ffn_up_exps.weight": x})
    imatrix = tmp_path / "imatrix.gguf"
    sums = {"blk.0.ffn_up_exps.weight": Sums(matters, np.ones(2, np.float32))}
    write_imatrix(imatrix, sums, dataset="d", chunks=3, chunk_size=8)
    assert run("quantize", "--pure", "--imatrix", imatrix, source, tmp_path / "out.gguf", "Q2_K").code == 0
    off = np.square(tensors_of(tmp_path / "out.gguf")["blk.0.ffn_up_exps.weight"][1] - x).reshape(2, 8, 2, 128)
    off = off.mean((1, 3))  # [experts, halves]
    assert off[0, 0] < off[1, 0]
    assert off[1, 1] < off[0, 1]
    with open_gguf(tmp_path / "out.gguf") as gguf:
        meta = gguf.metadata
        assert meta.text("quantize.imatrix.file") == str(imatrix)
        assert meta.text("quantize.imatrix.dataset") == "d"
        assert meta.integer("quantize.imatrix.entries_count") == 1
        assert meta.integer("quantize.imatrix.chunks_count") == 3


def split(path, tmp_path):
    """Two parts of a model, as llama.cpp's gguf-split writes them."""
    import struct

    from layerlift.runtime.gguf_writer import Encoded

    with open_gguf(path) as gguf:
        names = list(gguf.tensors)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        for index, half in enumerate(halves):
            keys = {key: Encoded(gguf.metadata.encoded(key)) for key in gguf.metadata} if index == 0 else {}
            keys |= {
                "split.no": Encoded(struct.pack("<IH", 2, index)),
                "split.count": Encoded(struct.pack("<IH", 2, 2)),
            }
            keys["split.tensors.count"] = len(names)
            tensors = [
                NewTensor(n, gguf.tensors[n].fmt, gguf.tensors[n].shape, lambda n=n: [gguf.raw(n)]) for n in half
            ]
            write_gguf(tmp_path / f"in-{index + 1:05}-of-00002.gguf", keys, tensors)
    return tmp_path / "in-00001-of-00002.gguf"


def test_a_split_model_becomes_one_file_or_as_many_as_it_was(tiny, tmp_path, run):
    source = split(tiny("F32"), tmp_path)
    assert run("quantize", source, tmp_path / "one.gguf", "Q8_0").code == 0
    assert run("quantize", "--keep-split", source, tmp_path / "two.gguf", "Q8_0").code == 0
    assert not (tmp_path / "two.gguf").exists()
    whole, parts = tensors_of(tmp_path / "one.gguf"), tensors_of(tmp_path / "two-00002-of-00002.gguf")
    assert set(whole) == set(parts)
    assert all(np.array_equal(whole[name][1], parts[name][1]) for name in whole)
    with open_gguf(tmp_path / "one.gguf") as gguf:
        assert "split.count" not in gguf.metadata


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_while_writing_it_leaves_nothing_under_the_name(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {f"blk.{i}.ffn_up.weight": rng.standard_normal((2048, 2048)).astype(np.float32) for i in range(8)}
    source, target = write(tmp_path / "big.gguf", arrays, **{"llama.block_count": 8}), tmp_path / "out.gguf"
    words = [sys.executable, "-m", "layerlift", "quantize", str(source), str(target), "Q2_K", "1"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.gguf.*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(tmp_path.glob(".out.gguf.*.part"))
        process.send_signal(signal.SIGKILL)
    assert not target.exists()


def test_ctrl_c_leaves_no_file_at_all(tiny, tmp_path, monkeypatch, run):
    from layerlift.backends.quantize import Quantizer

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Quantizer, "rows", interrupted)
    assert run("quantize", tiny("F32"), tmp_path / "out.gguf", "Q8_0").code == 130
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_formats_bytes_has_the_length_that_was_planned(tiny, tmp_path, run):
    assert run("quantize", tiny("F32"), tmp_path / "out.gguf", "Q8_0").code == 0
    with open_gguf(tmp_path / "out.gguf") as gguf:
        for info in gguf.tensors.values():
            assert info.nbytes == np.prod(info.shape[:-1]) * BY_NAME[info.fmt].row_nbytes(info.shape[-1])
