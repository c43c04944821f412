"""Importance matrices: both of llama.cpp's formats read, damage refused, and one collected from a text that helps."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from layerlift.backends import registry
from layerlift.backends.numpy_decode import decode_rows
from layerlift.backends.quantize import Quantizer
from layerlift.runtime import cli
from layerlift.runtime.errors import GGUFError, UserError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.gguf_writer import write_gguf
from layerlift.runtime.quantize.collect import collect
from layerlift.runtime.quantize.imatrix import Sums, read_imatrix, write_imatrix

TEXT = " ".join(f"word {i * i} and {i % 7}" for i in range(120))


def dat(entries, *, chunks=5, dataset=b"text.txt"):
    """llama.cpp's older form: `entries` are (name, calls, values)."""
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        out += np.array(values, "<f4").tobytes()
    return out + struct.pack("<ii", chunks, len(dataset)) + dataset


ENTRIES = [(b"blk.0.attn_q.weight", 2, [2.0, 4.0]), (b"blk.0.ffn_up.weight", 0, [3.0])]


def test_the_older_form_is_read(tmp_path):
    (tmp_path / "old.dat").write_bytes(dat(ENTRIES))
    found = read_imatrix(str(tmp_path / "old.dat"))
    assert {name: mean.tolist() for name, mean in found.means.items()} == {
        "blk.0.attn_q.weight": [1.0, 2.0],
        "blk.0.ffn_up.weight": [3.0],
    }
    assert (found.dataset, found.chunks) == ("text.txt", 5)


def test_what_is_written_is_read(tmp_path):
    sums = {"blk.0.ffn_up_exps.weight": Sums(np.array([[2, 4], [6, 8]], np.float32), np.array([2, 0], np.float32))}
    write_imatrix(tmp_path / "new.gguf", sums, dataset="ü.txt", chunks=7, chunk_size=512)
    found = read_imatrix(str(tmp_path / "new.gguf"))
    # An expert that never had its turn counts alike everywhere.
    assert found.means["blk.0.ffn_up_exps.weight"].tolist() == [1, 2, 1, 1]
    assert (found.dataset, found.chunks) == ("ü.txt", 7)
    with open_gguf(tmp_path / "new.gguf") as gguf:
        assert gguf.metadata.text("general.type") == "imatrix"
        assert gguf.metadata.integer("imatrix.chunk_size") == 512
        assert gguf.tensors["blk.0.ffn_up_exps.weight.counts"].shape == (2, 1)


@pytest.mark.parametrize("at", range(0, len(dat(ENTRIES)), 3))
def test_a_truncated_matrix_is_refused(at, tmp_path):
    """Where it happens to end between two fields it lacks its tail, which older files did not have."""
    (tmp_path / "cut.dat").write_bytes(dat(ENTRIES)[:at])
    tail = len(dat(ENTRIES)) - len(b"text.txt") - 8
    if at == tail:
        assert read_imatrix(str(tmp_path / "cut.dat")).chunks == 0
        return
    with pytest.raises(GGUFError, match="no importance matrix, or damaged"):
        read_imatrix(str(tmp_path / "cut.dat"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_mean_nothing_are_refused(value, tmp_path):
    (tmp_path / "bad.dat").write_bytes(dat([(b"blk.0.attn_q.weight", 1, [1.0, value])]))
    with pytest.raises(GGUFError, match=r"blk\.0\.attn_q\.weight holds a value that is negative or not finite"):
        read_imatrix(str(tmp_path / "bad.dat"))


def test_a_model_is_no_matrix(tiny):
    with pytest.raises(GGUFError, match="is no importance matrix"):
        read_imatrix(str(tiny("F32")))


def test_a_matrix_without_counts_is_refused(tmp_path):
    write_gguf(tmp_path / "empty.gguf", {"general.type": "imatrix"}, [])
    with pytest.raises(GGUFError, match="has no entries"):
        read_imatrix(str(tmp_path / "empty.gguf"))


def test_a_matrix_of_another_model_is_refused(tiny, tmp_path, capsys):
    (tmp_path / "other.dat").write_bytes(dat([(b"blk.0.attn_q.weight", 1, [1.0] * 3)]))
    words = ["quantize", "--imatrix", str(tmp_path / "other.dat"), str(tiny("F32")), str(tmp_path / "o.gguf"), "Q4_0"]
    assert cli.main(words) == 1
    assert "blk.0.attn_q.weight has 3 values" in capsys.readouterr().err


@pytest.mark.parametrize("isa", ["", "numpy"])
def test_sums_are_those_of_the_layers_own_inputs(isa, tiny, monkeypatch):
    monkeypatch.setenv("LAYERLIFT_ISA", isa)
    registry_names = {probe.backend for probe in registry.probe_all(gpus=False) if probe.devices}
    assert "numpy" in registry_names
    sums, chunks, context = collect(tiny("F32"), TEXT, context=32, chunks=2, threads=2)
    assert (chunks, context) == (2, 32)
    with open_gguf(tiny("F32")) as gguf:
        matrices = {name: info.shape for name, info in gguf.tensors.items() if len(info.shape) == 2}
        assert set(sums) == {name for name in matrices if name.startswith("blk.")}
        for name, each in sums.items():
            assert each.squares.shape == (1, matrices[name][1])
            assert (each.squares >= 0).all()
        assert sums["blk.0.attn_q.weight"].counts[0] == 64
        # The three products of one input have one sum.
        assert np.array_equal(sums["blk.0.attn_q.weight"].squares, sums["blk.0.attn_v.weight"].squares)
        # The first layer's input is the normed embedding: its mean square over all columns is the norm's.
        norm = decode_rows(gguf.raw("blk.0.attn_norm.weight")[None], "F32", matrices["blk.0.attn_q.weight"][1])[0]
        mean = sums["blk.0.attn_q.weight"].squares[0] / 64
        np.testing.assert_allclose((mean / norm**2).mean(), 1.0, rtol=0.01)


def test_the_command_writes_what_quantize_reads(tiny, tmp_path, capsys):
    text, target = tmp_path / "text.txt", tmp_path / "imatrix.gguf"
    text.write_text(TEXT)
    words = ["imatrix", "-m", str(tiny("F32")), "-f", str(text), "-c", "32", "-o", str(target), "--chunks", "3"]
    assert cli.main(words) == 0, capsys.readouterr().err
    found = read_imatrix(str(target))
    assert (found.chunks, found.dataset) == (3, str(text))
    made = tmp_path / "out.gguf"
    assert cli.main(["quantize", "--imatrix", str(target), str(tiny("F32")), str(made), "Q2_K"]) == 0
    with open_gguf(made) as gguf:
        assert gguf.metadata.integer("quantize.imatrix.entries_count") == len(found.means)


def test_a_short_text_is_refused(tiny):
    with pytest.raises(UserError, match="fewer than a chunk"):
        collect(tiny("F32"), "a few words", context=512)


def test_with_a_matrix_the_products_of_its_own_inputs_are_closer():
    rng = np.random.default_rng(11)
    inputs = (rng.standard_normal((300, 512)) * rng.gamma(0.5, 2.0, 512)).astype(np.float32)
    w = (rng.standard_normal((64, 512)) * 0.05).astype(np.float32)
    importance = np.square(inputs).mean(0)
    with Quantizer(1) as quantizer:
        for fmt in ("Q2_K", "IQ4_NL", "Q4_0"):
            off = [
                np.square(inputs @ (decode_rows(quantizer.rows(w.view(np.uint8), "F32", 512, fmt, v), fmt, 512) - w).T)
                for v in (None, importance)
            ]
            assert off[1].mean() < 0.9 * off[0].mean(), fmt
