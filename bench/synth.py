"""Writes GGUF models of a given shape with random weights, for benchmarks and tests.

Knows nothing of running them. The blocks are random bytes with sound scales, so that any format costs what it
costs in a real model, every format decodes to finite values, and activations keep their variance from layer
to layer: logits neither vanish nor explode.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..backends.formats import BY_NAME
from ..backends.random_blocks import FLOATS, FORMATS, random_rows
from .vocab import Vocabulary, read_vocabulary, synthetic_vocabulary

CHUNK_NBYTES = 8 << 20  # of random blocks in memory at a time
LOGITS_STD = 3.0  # peaked enough that the most likely token means something


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama-like model."""

    name: str
    d: int
    layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab: int
    context: int
    rope_base: float
    rope_factors: bool  # the frequency factors of Llama 3.1 and later
    tied: bool = True
    eps: float = 1e-5


SHAPES = {
    s.name: s
    for s in (
        Shape("1b", 2048, 16, 32, 8, 64, 8192, 128256, 131072, 500000.0, True),  # Llama 3.2 1B
        Shape("3b", 3072, 28, 24, 8, 128, 8192, 128256, 131072, 500000.0, True),  # Llama 3.2 3B
        Shape("135m", 576, 30, 9, 3, 64, 1536, 49152, 8192, 100000.0, False),  # SmolLM2 135M
        Shape("tiny", 256, 2, 4, 2, 64, 512, 300, 4096, 10000.0, True),
    )
}

# Mixed files: (format of most matrices, format of the more sensitive ones).
MIXES = {"Q4_K_M": ("Q4_K", "Q6_K"), "Q5_K_M": ("Q5_K", "Q6_K")}


@dataclass(frozen=True)
class RandomTensor:
    """A matrix made while it is written, chunk by chunk; has the two members the GGUF writer uses."""

    fmt: str
    shape: tuple[int, int]  # rows, columns
    std: float
    seed: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.shape[0] * BY_NAME[self.fmt].row_nbytes(self.shape[1])

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        rng = np.random.Generator(np.random.SFC64(self.seed))
        rows, columns = self.shape
        tile = max(1, CHUNK_NBYTES // BY_NAME[self.fmt].row_nbytes(columns))
        for first in range(0, rows, tile):
            yield random_rows(self.fmt, min(tile, rows - first), columns, self.std, rng)

    def tofile(self, file: BinaryIO) -> None:
        for chunk in self.chunks():
            file.write(chunk.data)


# ----------------------------------------------------------------------------------------------------------
# The model


def write_model(
    path: str | PathLike[str],
    shape: Shape | str,
    fmt: str,
    layers: int | None = None,
    vocab: Vocabulary | str | PathLike[str] | None = None,
    seed: int = 0,
    *,
    pure: bool = True,
) -> None:
    """Writes a llama model; `vocab` is a vocabulary, a GGUF to take it from, or None for a made-up one.

    `fmt` is a tensor format or a mix (Q4_K_M, Q5_K_M). Unless `pure`, the head of a small format is Q6_K,
    as in the files that llama.cpp's quantiser writes.
    """
    import gguf

    s = SHAPES[shape] if isinstance(shape, str) else shape
    s = s if layers is None else replace(s, layers=layers)
    words = _vocabulary(vocab, s.vocab)
    s = replace(s, vocab=len(words.tokens))
    writer = gguf.GGUFWriter(path, "llama")
    _write_metadata(writer, s, fmt, words)
    tensors: list[NDArray[np.float32] | RandomTensor] = []
    for index, (name, kind, rows, columns, std) in enumerate(_tensors(s, fmt, pure)):
        if kind == "vector":
            tensor: Any = _vector(s, name, columns, std, np.random.default_rng((seed, index)))
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
        else:
            tensor = RandomTensor(kind, (rows, columns), std, (seed, index))
            form = (rows, BY_NAME[kind].row_nbytes(columns))
            qtype = getattr(gguf.GGMLQuantizationType, kind)
            writer.add_tensor_info(name, form, np.dtype(np.uint8), tensor.nbytes, raw_dtype=qtype)
        tensors.append(tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor)  # type: ignore[arg-type]
    writer.close()


def _vocabulary(vocab: Vocabulary | str | PathLike[str] | None, size: int) -> Vocabulary:
    if vocab is None:
        return synthetic_vocabulary(size)
    return vocab if isinstance(vocab, Vocabulary) else read_vocabulary(vocab)


def _write_metadata(writer: Any, s: Shape, fmt: str, vocab: Vocabulary) -> None:
    writer.add_name(f"random {s.name} {fmt}")
    writer.add_quantization_version(2)
    writer.add_block_count(s.layers)
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.d)
    writer.add_feed_forward_length(s.d_ff)
    writer.add_head_count(s.n_heads)
    writer.add_head_count_kv(s.n_kv_heads)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_layer_norm_rms_eps(s.eps)
    writer.add_rope_freq_base(s.rope_base)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_vocab_size(s.vocab)
    vocab.write(writer)


def _tensors(s: Shape, fmt: str, pure: bool) -> Iterator[tuple[str, str, int, int, float]]:
    """(name, format or "vector", rows, columns, deviation) of every tensor, in the order of the file."""
    common, better = MIXES.get(fmt, (fmt, fmt))
    head = better if pure or fmt in (*FLOATS, "Q8_0") else "Q6_K"
    residual = 1 / math.sqrt(2 * s.layers)  # two additions a layer leave the stream's variance near one (GPT-2)
    q_dim, kv_dim = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
    yield "token_embd.weight", head if s.tied else common, s.vocab, s.d, 1 / math.sqrt(s.d)
    if s.rope_factors:
        yield "rope_freqs.weight", "vector", 1, s.head_dim // 2, 0.0
    for i in range(s.layers):
        sensitive = better if _uses_more_bits(i, s.layers) else common
        b = f"blk.{i}"
        yield f"{b}.attn_norm.weight", "vector", 1, s.d, 1.0
        yield f"{b}.attn_q.weight", common, q_dim, s.d, 1 / math.sqrt(s.d)
        yield f"{b}.attn_k.weight", common, kv_dim, s.d, 1 / math.sqrt(s.d)
        yield f"{b}.attn_v.weight", sensitive, kv_dim, s.d, 1 / math.sqrt(s.d)
        yield f"{b}.attn_output.weight", common, s.d, q_dim, residual / math.sqrt(q_dim)
        yield f"{b}.ffn_norm.weight", "vector", 1, s.d, 1.0
        yield f"{b}.ffn_gate.weight", common, s.d_ff, s.d, 1 / math.sqrt(s.d)
        yield f"{b}.ffn_up.weight", common, s.d_ff, s.d, 1 / math.sqrt(s.d)
        yield f"{b}.ffn_down.weight", sensitive, s.d, s.d_ff, residual / math.sqrt(s.d_ff)
    yield "output_norm.weight", "vector", 1, s.d, LOGITS_STD
    if not s.tied:
        yield "output.weight", head, s.vocab, s.d, 1 / math.sqrt(s.d)


def _uses_more_bits(layer: int, layers: int) -> bool:
    """The layers whose attn_v and ffn_down get the better format in the "M" mixes of llama.cpp."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _vector(s: Shape, name: str, columns: int, scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    if name == "rope_freqs.weight":
        return llama3_rope_factors(s.rope_base, s.head_dim)
    return ((0.8 + 0.4 * rng.random(columns)) * scale).astype(np.float32)


def llama3_rope_factors(
    base: float,
    head_dim: int,
    *,
    factor: float = 32.0,
    low: float = 1.0,
    high: float = 4.0,
    original_context: int = 8192,
) -> NDArray[np.float32]:
    """[head_dim/2] divisors of the rope frequencies, as Llama 3.1 defines them (rope type "llama3")."""
    turns = original_context * base ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 0: slow frequencies, divided; 1: fast ones, kept
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="layerlift.bench.synth", description=__doc__)
    parser.add_argument("path", metavar="OUT", help="the GGUF to write")
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--format", choices=[*FORMATS, *MIXES], default="Q6_K", metavar="FORMAT")
    parser.add_argument("--layers", type=int, help="number of blocks (default: the shape's)")
    parser.add_argument("--vocab", metavar="GGUF", help="file to take the vocabulary from (default: made up)")
    parser.add_argument("--pure", action="store_true", help="the head in the same format too")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(argv)
    write_model(a.path, a.shape, a.format, a.layers, a.vocab, a.seed, pure=a.pure)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
