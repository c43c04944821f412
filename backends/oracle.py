"""The ops in float64 NumPy, written for clarity: what opcases.py compares every backend with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Activation, AttnSpec, RopeSpec, Step


def exact_norm(x: NDArray[Any], weight: NDArray[Any], eps: float, width: int = 0) -> NDArray[np.float64]:
    parts = x.astype(np.float64).reshape(len(x), -1, width or x.shape[1])
    return (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + eps) * weight).reshape(x.shape)


def exact_rope(x: NDArray[Any], head_dim: int, rope: RopeSpec, positions: NDArray[Any]) -> NDArray[np.float64]:
    heads = x.astype(np.float64).reshape(len(x), -1, head_dim).copy()
    angle = positions.astype(np.float64)[:, None, None] * rope.inv_freq
    turn = np.exp(1j * angle) * rope.magnitude
    half = rope.n_dims // 2
    first, second = (
        (slice(0, rope.n_dims, 2), slice(1, rope.n_dims, 2))
        if rope.style == "norm"
        else (slice(0, half), slice(half, rope.n_dims))
    )
    z = (heads[..., first] + 1j * heads[..., second]) * turn
    heads[..., first], heads[..., second] = z.real, z.imag
    return heads.reshape(x.shape)


def exact_attention(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], step: Step, spec: AttnSpec
) -> NDArray[np.float64]:
    """q [T, heads * head_dim]; k and v [capacity, n_kv_heads, head_dim] hold every row."""
    n_kv_heads, head_dim = k.shape[1:]
    heads = q.astype(np.float64).reshape(len(q), n_kv_heads, -1, head_dim)
    out = np.empty_like(heads)
    for span in step.spans:
        for j in range(span.length):
            rows = span.rows[: len(span.rows) - span.length + j + 1]
            rows = rows[-spec.window :] if spec.window else rows
            scores = np.einsum("hgd,nhd->hgn", heads[span.start + j], k[rows].astype(np.float64)) * spec.scale
            if spec.softcap:
                scores = spec.softcap * np.tanh(scores / spec.softcap)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[span.start + j] = np.einsum("hgn,nhd->hgd", p / p.sum(-1, keepdims=True), v[rows].astype(np.float64))
    return out.reshape(q.shape)


def exact_activation(x: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    return {
        "silu": lambda: x / (1 + np.exp(-x)),
        "gelu": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "gelu_quick": lambda: x / (1 + np.exp(-1.702 * x)),
        "relu2": lambda: np.maximum(x, 0) ** 2,
    }[activation]()
