"""The types that weights are quantised to: each mix's main type, and which weights get another, as llama.cpp chooses.

A pure table over names and shapes; knows nothing of files or numbers. The rules, with their order, are those of
llama.cpp's src/llama-quant.cpp, so that a file of one name has the same types from either program.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...backends.formats import BY_NAME
from ..errors import UserError
from ..weight_types import Mix

PLAIN = ("F32", "F16", "BF16")
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

# Weights that stay as they are: small ones, on which much depends.
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d"),
    *("shortconv.conv.weight", "attn_rel_b.weight", ".position_embd", ".patch_embd", ".patch_merger"),
    *("time_mix_first.weight", "time_mix_lerp_fused.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight"),
    *(f"time_mix_{letter}{digit}.weight" for letter in "wvag" for digit in "012" if letter + digit != "g0"),
)
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")


@dataclass(frozen=True)
class Shape:
    """What the rules ask of a model."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0

    @property
    def heads_share(self) -> bool:
        """Whether four or more heads have their keys and values in common."""
        return self.n_heads >= 4 * max(1, self.n_kv_heads)

    @property
    def is_70b(self) -> bool:
        return self.architecture == "llama" and self.n_layers == 80 and self.n_heads != self.n_kv_heads


@dataclass(frozen=True)
class Wishes:
    """What the user decides instead of the rules."""

    pure: bool = False  # one type for all
    output: str | None = None  # a format of its own
    embedding: str | None = None
    leave_output: bool = False


PLAINLY = Wishes()


@dataclass(frozen=True)
class Weight:
    name: str
    fmt: str
    shape: tuple[int, ...]


def choose(
    weights: Sequence[Weight], mix: Mix, shape: Shape, wishes: Wishes = PLAINLY, *, has_imatrix: bool = False
) -> dict[str, str]:
    """The format of every weight by name. Raises UserError where one that was asked for does not fit."""
    names = {w.name for w in weights}
    chooser = _Chooser(mix, shape, wishes, has_imatrix, "output.weight" not in names)
    chooser.n_values = sum(_is_value(w.name) for w in weights)
    ordered = sorted(weights, key=lambda w: (_layer(w.name), w.name))
    return {w.name: chooser.format_of(w) if may_change(w, wishes) else w.fmt for w in ordered}


def may_change(weight: Weight, wishes: Wishes = PLAINLY) -> bool:
    """Whether a weight is quantised at all: a matrix, and none of those that stay."""
    name = weight.name
    if sum(n > 1 for n in weight.shape[:-1]) < 1 or not name.endswith("weight"):
        return False
    if name == "output.weight" and wishes.leave_output:
        return False
    return name not in _KEPT_NAMES and not any(part in name for part in _KEPT)


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _is_value(name: str) -> bool:
    return any(part in name for part in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"))


def _is_embedding(name: str) -> bool:
    return name in ("token_embd.weight", "per_layer_token_embd.weight")


def more_bits(layer: int, n_layers: int) -> bool:
    """The layers that mixes spend more on: the first and last eighths, and every third between them."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


class _Chooser:
    """The rules, and how many weights of a kind have been seen."""

    def __init__(self, mix: Mix, shape: Shape, wishes: Wishes, has_imatrix: bool, is_tied: bool):
        self.mix, self.shape, self.wishes = mix, shape, wishes
        self.has_imatrix, self.is_tied = has_imatrix, is_tied
        self.n_values = self.value = self.down = 0

    def format_of(self, w: Weight) -> str:
        wished = self.wishes.embedding if _is_embedding(w.name) else None
        if w.name == "output.weight":
            wished = self.wishes.output
        if wished:
            return _fitting(w, wished)
        fmt = self.mix.fmt
        if fmt in PLAIN:
            return fmt
        if not self.wishes.pure:
            fmt = self._by_rules(w)
        return fallback(fmt, w.shape[-1])

    def _by_rules(self, w: Weight) -> str:
        name, fmt = w.name, self.mix.fmt
        if name == "output.weight" or (self.is_tied and _is_embedding(name)):
            if self.wishes.output:
                return _fitting(w, self.wishes.output)
            if self.shape.architecture == "falcon" or w.shape[-1] % BY_NAME[fmt].block:
                return "Q8_0"
            return fmt if fmt == "Q8_0" else "Q6_K"
        if _is_embedding(name):
            return fmt
        if _is_value(name):
            self.value += 1
            return self._of_values(fmt, self.value - 1)
        if "attn_k.weight" in name:
            return "Q8_0" if self.shape.n_experts == 8 else fmt
        if "attn_q.weight" in name:
            return fmt
        if "attn_output.weight" in name:
            return self._of_attention_output(fmt)
        if "ffn_up" in name or "ffn_gate" in name:
            return fmt
        if "ffn_down" in name:
            self.down += 1
            return self._of_down(fmt, _layer(name) if self.shape.n_experts > 1 else self.down - 1)
        return fmt

    def _of_values(self, fmt: str, index: int) -> str:
        mix, shares = self.mix.name, self.shape.heads_share
        if mix == "Q2_K":
            fmt = "Q4_K" if shares else "Q3_K"
        elif mix == "Q3_K_M":
            fmt = "Q5_K" if index < 2 else "Q4_K"
        elif mix == "Q3_K_L" or (mix == "IQ4_NL" and shares):
            fmt = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and more_bits(index, self.n_values):
            fmt = "Q6_K"
        elif mix == "Q4_K_S" and index < 4:
            fmt = "Q5_K"
        if self.shape.is_70b and fmt in ("Q3_K", "Q4_K"):
            fmt = "Q5_K"  # eight heads share them: little space, much to gain
        return "Q8_0" if self.shape.n_experts == 8 else fmt

    def _of_attention_output(self, fmt: str) -> str:
        mix = self.mix.name
        if self.shape.architecture == "falcon":
            return "Q4_K" if mix == "Q3_K_L" else fmt
        if self.shape.n_experts == 8:
            low = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M")
            return "Q5_K" if mix in low else fmt
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, fmt)

    def _of_down(self, fmt: str, layer: int) -> str:
        mix, n = self.mix.name, self.shape.n_layers
        is_falcon, early = self.shape.architecture == "falcon", layer < n // 8
        if mix == "Q2_K":
            return "Q3_K"
        if mix == "Q3_K_M":
            if layer < n // 16:
                return "Q5_K"
            return "Q4_K" if not is_falcon or more_bits(layer, n) else "Q3_K"
        if mix == "Q3_K_L":
            return "Q4_K" if is_falcon else "Q5_K"
        if mix == "Q4_K_M" and is_falcon:
            return "Q6_K" if layer < n // 16 else "Q5_K" if more_bits(layer, n) else "Q4_K"
        if mix in ("Q4_K_M", "Q5_K_M") and more_bits(layer, n):
            return "Q6_K"
        if early and ((mix == "IQ4_NL" and not self.has_imatrix) or (mix == "Q4_K_S" and not is_falcon)):
            return "Q5_K"
        if early and self.has_imatrix and mix in ("Q4_0", "Q5_0"):
            return "Q4_1" if mix == "Q4_0" else "Q5_1"
        return fmt


def fallback(fmt: str, columns: int) -> str:
    """The format itself where its blocks divide the rows, else the one that takes its place, at last F16."""
    if columns % BY_NAME[fmt].block:
        fmt = FALLBACKS.get(fmt, "F16")
    return fmt if columns % BY_NAME[fmt].block == 0 else "F16"


def _fitting(w: Weight, fmt: str) -> str:
    block = BY_NAME[fmt].block
    if w.shape[-1] % block:
        raise UserError(f"{w.name} has rows of {w.shape[-1]}, not a multiple of {fmt}'s block of {block}")
    return fmt
