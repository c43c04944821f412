"""Reads rotary-embedding settings from GGUF metadata. Knows nothing of tensors beyond the factors it is given.

Sources: Su et al. 2021 (arXiv:2104.09864); YaRN, Peng et al. 2023 (arXiv:2309.00071); the GGUF specification's
`[arch].rope.*` keys.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..backends.base import RopeSpec
from .errors import ModelError
from .gguf import Metadata


def read_rope(
    meta: Metadata,
    arch: str,
    n_dims: int,
    context: int,
    style: Literal["norm", "neox"],
    factors: NDArray[np.float32] | None,
) -> RopeSpec:
    """The rope of the first `n_dims` of each head; `factors` [n_dims/2] (Llama 3's `rope_freqs.weight`) divide its
    frequencies."""
    if n_dims % 2:
        raise ModelError(f"gguf: {n_dims} dimensions of a head cannot be rotated in pairs")
    base = meta.number(f"{arch}.rope.freq_base", 10000.0, low=1.0 + 1e-6)
    inv_freq = base ** (-np.arange(0, n_dims, 2, dtype=np.float64) / n_dims)  # [n_dims/2]
    if factors is not None:
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise ModelError("gguf: tensor rope_freqs.weight holds factors that are not positive numbers")
        inv_freq = inv_freq / factors.astype(np.float64)
    kind = meta.text(f"{arch}.rope.scaling.type", "none")
    old_linear = meta.number(f"{arch}.rope.scale_linear", 1.0, low=1e-6)  # the key of early files
    factor = meta.number(f"{arch}.rope.scaling.factor", old_linear, low=1e-6)
    magnitude = meta.number(f"{arch}.rope.scaling.attn_factor", 1.0, low=1e-6)
    if kind == "linear" or (kind == "none" and old_linear != 1.0):
        inv_freq = inv_freq / factor
    elif kind == "yarn":
        original = meta.integer(f"{arch}.rope.scaling.original_context_length", context, low=1)
        inv_freq = _yarn(inv_freq, base, n_dims, factor, original)
        magnitude *= 1.0 + 0.1 * math.log(factor) if factor > 1.0 else 1.0
    elif kind not in ("none", "longrope"):
        raise ModelError(f"gguf: '{arch}.rope.scaling.type' is {kind!r}; known: none, linear, yarn, longrope")
    return RopeSpec(n_dims, style, inv_freq, magnitude)


def _yarn(inv_freq: NDArray[np.float64], base: float, n_dims: int, factor: float, original: int) -> NDArray[np.float64]:
    """Slow frequencies are interpolated, fast ones kept, with a ramp between 32 and 1 turns (YaRN, section 3.2)."""

    def dimension_of(turns: float) -> float:
        return n_dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(dimension_of(32.0)))
    high = min(n_dims - 1.0, math.ceil(dimension_of(1.0)))
    keep = 1.0 - np.clip((np.arange(n_dims // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    return inv_freq * keep + inv_freq / factor * (1.0 - keep)
