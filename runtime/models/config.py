"""The hyperparameters that decoder-only transformers share, read from GGUF metadata and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...backends.base import AttnSpec, RopeSpec
from ..errors import ModelError
from ..gguf import GGUF
from ..rope import read_rope
from ..tensors import host_vector


@dataclass(frozen=True)
class Config:
    """Sizes in elements, named as in GGUF metadata and the literature."""

    arch: str
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int  # tokens the model was trained for
    norm_eps: float
    rope: RopeSpec
    attn: AttnSpec


def read_config(gguf: GGUF, *, rope_style: Literal["norm", "neox"]) -> Config:
    """Reads the keys under the file's architecture. Raises ModelError naming the key that is missing or impossible."""
    meta = gguf.metadata
    arch = meta.text("general.architecture")
    d_model = meta.integer(f"{arch}.embedding_length", low=1, high=1 << 20)
    n_heads = meta.integer(f"{arch}.attention.head_count", low=1, high=1 << 12)
    n_kv_heads = meta.integer(f"{arch}.attention.head_count_kv", n_heads, low=1, high=n_heads)
    if d_model < n_heads:
        raise meta.fault(f"{arch}.attention.head_count", f"is {n_heads}, more than the embedding length {d_model}")
    head_dim = meta.integer(f"{arch}.attention.key_length", d_model // n_heads, low=1, high=1 << 12)
    value_dim = meta.integer(f"{arch}.attention.value_length", head_dim, low=1, high=1 << 12)
    context = meta.integer(f"{arch}.context_length", low=1, high=1 << 31)
    if n_heads % n_kv_heads:
        key = f"{arch}.attention.head_count_kv"
        raise meta.fault(key, f"is {n_kv_heads}, among which {n_heads} heads do not divide")
    if value_dim != head_dim:
        raise ModelError(f"gguf: {gguf.path}: keys of {head_dim} and values of {value_dim} per head are not supported")
    if meta.integer(f"{arch}.expert_count", 0) > 0:
        raise ModelError(f"gguf: {gguf.path}: {arch} with a mixture of experts is not supported")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"gguf: tensor token_embd.weight missing in {gguf.path}")
    n_dims = meta.integer(f"{arch}.rope.dimension_count", head_dim, low=2, high=head_dim)
    has_factors = "rope_freqs.weight" in gguf.tensors
    factors = host_vector(gguf, "rope_freqs.weight", n_dims // 2) if has_factors else None
    return Config(
        arch=arch,
        n_layers=meta.integer(f"{arch}.block_count", low=1, high=1 << 12),
        d_model=d_model,
        d_ff=meta.integer(f"{arch}.feed_forward_length", low=1, high=1 << 24),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=embedding.shape[0],
        context=context,
        norm_eps=meta.number(f"{arch}.attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
        rope=read_rope(meta, arch, n_dims, context, rope_style, factors),
        attn=AttnSpec(n_heads, head_dim**-0.5, window=meta.integer(f"{arch}.attention.sliding_window", 0, low=0)),
    )
