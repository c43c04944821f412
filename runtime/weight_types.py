"""The types that weights can be quantised to, by name. quantize/mixes.py says which weight gets which format."""

from __future__ import annotations

from dataclasses import dataclass

from ..backends.formats import BY_NAME
from .errors import UserError


@dataclass(frozen=True)
class Mix:
    """A kind of file: `fmt` is what most weights become, `file_type` the value of general.file_type."""

    name: str
    fmt: str
    file_type: int

    @property
    def bits(self) -> float:
        """Of most weights."""
        return BY_NAME[self.fmt].bits


MIXES = tuple(
    Mix(*row)
    for row in (
        ("F32", "F32", 0),
        ("F16", "F16", 1),
        ("BF16", "BF16", 32),
        ("Q8_0", "Q8_0", 7),
        ("Q6_K", "Q6_K", 18),
        ("Q5_K_M", "Q5_K", 17),
        ("Q5_K_S", "Q5_K", 16),
        ("Q5_1", "Q5_1", 9),
        ("Q5_0", "Q5_0", 8),
        ("Q4_K_M", "Q4_K", 15),
        ("Q4_K_S", "Q4_K", 14),
        ("IQ4_NL", "IQ4_NL", 25),
        ("Q4_1", "Q4_1", 3),
        ("Q4_0", "Q4_0", 2),
        ("Q3_K_L", "Q3_K", 13),
        ("Q3_K_M", "Q3_K", 12),
        ("Q3_K_S", "Q3_K", 11),
        ("Q2_K", "Q2_K", 10),
    )
)
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}


def mix_named(word: str) -> Mix:
    """A mix by its name in any case, an alias, or llama.cpp's number for it. Raises UserError."""
    name = ALIASES.get(word.upper(), word.upper())
    for mix in MIXES:
        if name == mix.name or word == str(mix.file_type):
            return mix
    raise UserError(f"unknown type {word!r}", hint="types: " + ", ".join(mix.name for mix in MIXES))
