"""Written models are sound GGUF files whose random weights keep activations in range."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.backends.formats import BY_NAME
from layerlift.backends.numpy_decode import decode_rows
from layerlift.bench import synth
from layerlift.bench.vocab import byte_characters, synthetic_vocabulary


@pytest.fixture
def read(tmp_path):
    import gguf

    def write_and_read(shape, fmt, **options):
        path = tmp_path / "model.gguf"
        synth.write_model(path, shape, fmt, **options)
        return gguf.GGUFReader(path)

    return write_and_read


@pytest.mark.parametrize("fmt", synth.FORMATS)
def test_random_blocks_decode_to_the_deviation_asked_for(fmt):
    rows = synth.random_rows(fmt, 32, 512, 0.05, np.random.default_rng(1))
    assert rows.shape == (32, BY_NAME[fmt].row_nbytes(512))
    values = decode_rows(rows, fmt, 512)
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(0.05, rel=0.12)
    assert abs(values.mean()) < 0.025


@pytest.mark.parametrize("fmt", synth.FORMATS)
def test_a_tiny_model_has_every_tensor_in_its_format(read, fmt):
    reader = read("tiny", fmt)
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert len(kinds) == 2 * 9 + 3
    assert {kinds[n] for n in kinds if "norm" not in n and "rope" not in n} == {fmt}
    assert {kinds[n] for n in kinds if "norm" in n or "rope" in n} == {"F32"}


def test_the_mix_gives_sensitive_matrices_the_better_format(read):
    reader = read("tiny", "Q4_K_M", layers=8)
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    better = [i for i in range(8) if kinds[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert better == [0, 3, 6, 7]
    assert all(kinds[f"blk.{i}.attn_v.weight"] == kinds[f"blk.{i}.ffn_down.weight"] for i in range(8))
    assert kinds["blk.0.attn_q.weight"] == "Q4_K"
    assert kinds["token_embd.weight"] == "Q6_K"


def test_a_small_format_has_its_head_in_q6_k_unless_pure(read):
    kinds = {t.name: t.tensor_type.name for t in read("tiny", "Q4_0", pure=False).tensors}
    assert (kinds["token_embd.weight"], kinds["blk.1.attn_q.weight"]) == ("Q6_K", "Q4_0")


def test_a_tensor_is_made_in_chunks_of_bounded_size(monkeypatch):
    monkeypatch.setattr(synth, "CHUNK_NBYTES", 7 * BY_NAME["Q8_0"].row_nbytes(64))
    tensor = synth.RandomTensor("Q8_0", (40, 64), 0.1, (0, 3))
    chunks = list(tensor.chunks())
    assert [len(c) for c in chunks] == [7, 7, 7, 7, 7, 5]
    assert sum(c.nbytes for c in chunks) == tensor.nbytes


def test_the_same_seed_writes_the_same_file(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        synth.write_model(tmp_path / name, "tiny", "Q4_K", seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_llama3_factors_keep_fast_frequencies_and_divide_slow_ones_by_32():
    factors = synth.llama3_rope_factors(500000.0, 64)
    assert factors[0] == 1.0
    assert factors[-1] == 32.0
    assert (np.diff(factors) >= 0).all()
    assert ((factors > 1) & (factors < 32)).any()


def test_a_made_up_vocabulary_has_every_byte_and_whole_merges():
    vocab = synthetic_vocabulary(300)
    assert len(vocab.tokens) == len(vocab.types) == len(set(vocab.tokens)) == 300
    assert set(byte_characters()) <= set(vocab.tokens)
    assert all(merge.replace(" ", "") in vocab.tokens for merge in vocab.merges)
    assert len(synthetic_vocabulary(1000).tokens) == 1000
    with pytest.raises(ValueError, match="at least 260"):
        synthetic_vocabulary(100)


def test_the_command_line_writes_the_shape_asked_for(tmp_path):
    import gguf

    path = tmp_path / "out.gguf"
    assert synth.main(["--shape", "tiny", "--format", "Q4_0", "--layers", "1", str(path)]) == 0
    reader = gguf.GGUFReader(path)
    assert reader.get_field("llama.block_count").contents() == 1
    assert reader.get_field("llama.embedding_length").contents() == 256
