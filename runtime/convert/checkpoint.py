"""What a checkpoint folder holds, in GGUF's terms: the same for Hugging Face's folders and Meta's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ConvertError
from .settings import Settings
from .tensors import DTYPES, Given, Tensor, same


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` have GGUF's names; `vocab` are the `tokenizer.*` keys; `notes` are lines for the user."""

    name: str
    settings: Settings
    tensors: Mapping[str, Tensor]
    vocab: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors.values())


def checked(
    found: Mapping[str, Tensor], settings: Settings, folder: Path, *, tied: bool | None = None
) -> dict[str, Tensor]:
    """The tensors in the order of the layers, each of the shape that the settings ask for, the rope's factors among
    them. A head that is tied to the embedding is left out: `tied` None finds out by comparing the two.

    Raises ConvertError for a tensor that is missing, too many, or of another shape or type.
    """
    found = dict(found)
    head, embedding = found.get("output.weight"), found.get("token_embd.weight")
    if tied is None and head is not None and embedding is not None:
        tied = _is_number(head) and same(head, embedding)
    if tied:
        found.pop("output.weight", None)
    tensors: dict[str, Tensor] = {}
    missing = []
    for name, (shape, needed) in _wanted(settings, tied=bool(tied)).items():
        tensor = found.pop(name, None)
        if tensor is None:
            missing += [name] if needed else []
            continue
        if not _is_number(tensor):
            raise ConvertError(f"{folder}: tensor {name} is {tensor.fmt}; F32, F16 and BF16 can be converted")
        if tensor.shape != shape:
            raise ConvertError(
                f"{folder}: tensor {name} is {list(tensor.shape)}, the model's settings ask for {list(shape)}"
            )
        tensors[name] = tensor
    if missing:
        raise ConvertError(f"{folder}: {_some(missing)} missing", hint="is every file of the checkpoint there?")
    if found:
        raise ConvertError(f"{folder}: {_some(list(found))} have no place in architecture {settings.arch!r}")
    if settings.rope_factors is not None:
        tensors["rope_freqs.weight"] = Given(settings.rope_factors)
    return tensors


def _is_number(tensor: Tensor) -> bool:
    return tensor.fmt in DTYPES


def _wanted(s: Settings, *, tied: bool) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Shape of every tensor, and whether the model needs it: biases it may have."""
    heads, kv_heads = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
    wanted: dict[str, tuple[tuple[int, ...], bool]] = {"token_embd.weight": ((s.vocab_size, s.d_model), True)}
    for layer in range(s.n_layers):
        for name in ("attn_norm", "ffn_norm"):
            wanted[f"blk.{layer}.{name}.weight"] = ((s.d_model,), True)
        for name, rows, columns in (
            ("attn_q", heads, s.d_model),
            ("attn_k", kv_heads, s.d_model),
            ("attn_v", kv_heads, s.d_model),
            ("attn_output", s.d_model, heads),
            ("ffn_gate", s.d_ff, s.d_model),
            ("ffn_up", s.d_ff, s.d_model),
            ("ffn_down", s.d_model, s.d_ff),
        ):
            wanted[f"blk.{layer}.{name}.weight"] = ((rows, columns), True)
            wanted[f"blk.{layer}.{name}.bias"] = ((rows,), False)
    wanted["output_norm.weight"] = ((s.d_model,), True)
    if not tied:
        wanted["output.weight"] = ((s.vocab_size, s.d_model), True)
    return wanted


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(repr(n[:80]) for n in names[:3])}{more}"
