"""A model's hyperparameters on their way from a checkpoint's JSON to GGUF keys. Knows nothing of tensors or tokens.

Keys: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md). Rope scaling: transformers'
`modeling_rope_utils`, whose names "linear", "yarn" and "llama3" config.json uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError


@dataclass(frozen=True)
class Settings:
    """Sizes in elements, named as in GGUF metadata. `rope` holds the keys below `ARCH.rope.scaling`.

    `rope_factors` [head_dim/2] divide the frequencies of the rotation; `window` 0 attends to everything.
    """

    arch: str
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    norm_eps: float
    rope_base: float
    rope: Mapping[str, Any] = field(default_factory=dict)
    rope_factors: NDArray[np.float32] | None = None
    window: int = 0

    def keys(self) -> dict[str, Any]:
        """The `ARCH.*` keys."""
        keys: dict[str, Any] = {
            "context_length": self.context,
            "embedding_length": self.d_model,
            "block_count": self.n_layers,
            "feed_forward_length": self.d_ff,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": self.norm_eps,
            "vocab_size": self.vocab_size,
            "rope.dimension_count": self.head_dim,
            "rope.freq_base": self.rope_base,
            **{f"rope.scaling.{name}": value for name, value in self.rope.items()},
        }
        if self.window:
            keys["attention.sliding_window"] = self.window
        return {f"{self.arch}.{name}": value for name, value in keys.items()}


_MISSING: Any = object()


class Reader:
    """Typed access to a checkpoint's JSON settings; what is missing or impossible is named."""

    def __init__(self, values: Mapping[str, Any], label: str):
        self.values, self.label = values, label

    def fault(self, name: str, what: str) -> ConvertError:
        return ConvertError(f"{self.label}: {name!r} {what}")

    def integer(self, name: str, default: Any = _MISSING, *, low: int = 1, high: int = 1 << 31) -> int:
        value = self._get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.fault(name, f"is {str(value)[:40]}; a whole number from {low} to {high} expected")
        return value

    def number(self, name: str, default: Any = _MISSING, *, low: float = 0.0) -> float:
        value = self._get(name, default)
        if type(value) not in (int, float) or not low < value < float("inf"):
            raise self.fault(name, f"is {str(value)[:40]}; a number above {low:g} expected")
        return float(value)

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is _MISSING:
            raise self.fault(name, "is missing")
        return value


def rope_scaling(
    scaling: Mapping[str, Any], label: str, *, head_dim: int, base: float, context: int
) -> tuple[dict[str, Any], NDArray[np.float32] | None, str]:
    """GGUF's rope keys and factors for a `rope_scaling` of config.json, and a note for the user, or ""."""
    reader = Reader(scaling, f"{label}: rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type")) or "default"
    if kind == "default":
        return {}, None, ""
    if kind == "linear":
        return {"type": "linear", "factor": reader.number("factor")}, None, ""
    if kind == "dynamic":
        return {}, None, f"rope scaling 'dynamic' acts beyond {context} tokens only and was left out"
    if kind == "yarn":
        return _yarn(reader, context), None, ""
    if kind == "llama3":
        return {}, llama3_factors(reader, head_dim=head_dim, base=base), ""
    raise reader.fault("rope_type", f"is {str(kind)[:40]!r}; known: default, linear, dynamic, yarn, llama3")


def _yarn(reader: Reader, context: int) -> dict[str, Any]:
    """Peng et al. 2023 (arXiv:2309.00071); readers of the keys fix the ramp at 32 and 1 turns."""
    factor = reader.number("factor")
    for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if reader.number(name, usual) != usual:
            raise reader.fault(name, f"is {reader.values[name]}; only {usual:g} is supported")
    for name in ("mscale", "mscale_all_dim"):
        if reader.values.get(name) is not None:
            raise reader.fault(name, "is not supported")
    if reader.values.get("truncate") is False:
        raise reader.fault("truncate", "false is not supported")
    original = reader.integer("original_max_position_embeddings", context)
    keys: dict[str, Any] = {"type": "yarn", "factor": factor, "original_context_length": original}
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    if (magnitude := reader.number("attention_factor", usual)) != usual:
        keys["attn_factor"] = magnitude / usual  # what a reader multiplies the usual one with
    return keys


def llama3_factors(reader: Reader, *, head_dim: int, base: float) -> NDArray[np.float32]:
    """What Llama 3.1 and 3.2 divide their frequencies by [head_dim/2] (Grattafiori et al. 2024, section 3.4.2).

    Waves much shorter than the original context stay, much longer ones are stretched by `factor`, with a ramp between.
    """
    factor = reader.number("factor")
    low, high = reader.number("low_freq_factor"), reader.number("high_freq_factor")
    original = reader.integer("original_max_position_embeddings")
    if low >= high:
        raise reader.fault("low_freq_factor", f"is {low:g}, not below high_freq_factor {high:g}")
    turns = original / (2 * math.pi) * base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)  # [head_dim/2]
    return (1.0 / ((1.0 - keep) / factor + keep)).astype(np.float32)
