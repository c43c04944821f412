"""The formats that weights can be quantised to: their levels, their scales, and how a block's bytes are laid out.

Knows nothing of how scales are found (numpy_quantize.py). Source: ggml's block structs; a test decodes every layout
with the `gguf` package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Line(NamedTuple):
    """Where the search for a scale begins: `starts` times, evenly from one share of what a part spans to another.

    The pin stays: where low is 0, the level that the largest weight gets; else the place in the range that does not
    move, from 0, its low end, to 1.
    """

    pin: float
    begin: float
    end: float
    starts: int


class Effort(NamedTuple):
    """How much is tried: `density` times the starts, each moved `polish` times to what its levels want."""

    density: int
    polish: int


ONCE = Effort(1, 0)


@dataclass(frozen=True)
class Scheme:
    """How a format stands for its weights, scale * level + low, and how scales are searched for.

    `sub` weights share a scale; `low` is 0 unless `affine`. Where the format has scales of scales, `scales` is their
    range, in units of the block's own scale, and lows are 0 or below; `units`: the factors tried on that scale, from
    and to. Without `lines` nothing is searched for: the levels just cover the weights. `by_size`: without importance,
    errors are weighed with the size of what is rounded. kernels/cpu/quantize/scheme.cpp has the same table.
    """

    sub: int
    levels: tuple[int, int]
    lines: tuple[Line, ...]
    affine: bool = False
    scales: tuple[int, int] | None = None
    units: tuple[float, float] = (1.0, 1.0)
    plain: Effort = ONCE  # without importance, and with
    weighed: Effort = ONCE
    by_size: bool = False
    table: tuple[int, ...] = ()  # levels that are not evenly spaced


SCHEMES = {
    "Q4_0": Scheme(32, (-8, 7), (Line(-8, 0.85, 1.05, 10), Line(7, 0.92, 1.08, 5)), weighed=Effort(2, 1)),
    "Q5_0": Scheme(32, (-16, 15), (Line(-16, 0.88, 1.04, 10), Line(15, 0.94, 1.06, 5)), weighed=Effort(2, 1)),
    "Q8_0": Scheme(32, (-127, 127), ()),
    "IQ4_NL": Scheme(
        32,
        (IQ4_NL[0], IQ4_NL[-1]),
        (Line(-127, 0.85, 1.08, 15), Line(113, 0.85, 1.08, 16)),
        plain=Effort(1, 1),
        weighed=Effort(1, 2),
        by_size=True,
        table=IQ4_NL,
    ),
    "Q4_1": Scheme(
        32,
        (0, 15),
        (Line(0, 0.94, 1.064, 8), Line(0.5, 0.88, 1.04, 4), Line(1, 0.94, 1.06, 3)),
        affine=True,
        weighed=Effort(3, 3),
    ),
    "Q5_1": Scheme(
        32,
        (0, 31),
        (Line(0, 0.965, 1.035, 7), Line(0.5, 0.94, 1.02, 4), Line(1, 0.97, 1.03, 4)),
        affine=True,
        weighed=Effort(3, 3),
    ),
    "Q2_K": Scheme(
        16,
        (0, 3),
        (Line(0, 0.75, 1.05, 5), Line(0.5, 0.65, 1, 5), Line(1, 0.75, 1.05, 5)),
        affine=True,
        scales=(0, 15),
        units=(0.95, 1.08),
        weighed=Effort(2, 1),
    ),
    "Q3_K": Scheme(
        16,
        (-4, 3),
        (Line(-4, 0.7, 1.1, 8), Line(3, 0.7, 1.1, 7)),
        scales=(-32, 31),
        units=(0.85, 1.15),
        weighed=Effort(2, 0),
    ),
    "Q4_K": Scheme(
        32,
        (0, 15),
        (Line(0, 0.93, 1.07, 15), Line(0.5, 0.84, 1.04, 16), Line(1, 0.93, 1.07, 16)),
        affine=True,
        scales=(0, 63),
        units=(1, 1.06),
        weighed=Effort(1, 1),
    ),
    "Q5_K": Scheme(
        32,
        (0, 31),
        (Line(0, 0.965, 1.035, 15), Line(0.5, 0.92, 1.02, 16), Line(1, 0.965, 1.035, 16)),
        affine=True,
        scales=(0, 63),
        units=(1, 1.06),
        weighed=Effort(1, 1),
    ),
    "Q6_K": Scheme(16, (-32, 31), (Line(-32, 0.91, 1.03, 15),), scales=(-128, 127), units=(1, 1.1)),
}


@dataclass(frozen=True)
class Blocks:
    """Quantised blocks before they are laid out: `q` [blocks, weights] counts from a format's lowest level."""

    q: NDArray[np.uint8]
    d: NDArray[np.float16]  # [blocks]
    low: NDArray[np.float16]  # [blocks]: the unit of the lows, or the low itself
    scales: NDArray[np.int32]  # [blocks, subs], and of the lows
    lows: NDArray[np.int32]


def pack(fmt: str, b: Blocks) -> NDArray[np.uint8]:
    """The bytes of blocks [blocks, block nbytes]."""
    d, low = (v.astype("<f2").view(np.uint8).reshape(-1, 2) for v in (b.d, b.low))
    parts = {
        "Q4_0": lambda: [d, _nibbles(b.q, 32)],
        "IQ4_NL": lambda: [d, _nibbles(b.q, 32)],
        "Q4_1": lambda: [d, low, _nibbles(b.q, 32)],
        "Q5_0": lambda: [d, np.packbits(b.q >> 4, axis=1, bitorder="little"), _nibbles(b.q & 15, 32)],
        "Q5_1": lambda: [d, low, np.packbits(b.q >> 4, axis=1, bitorder="little"), _nibbles(b.q & 15, 32)],
        "Q8_0": lambda: [d, b.q - np.uint8(127)],
        "Q2_K": lambda: [(b.scales | b.lows << 4).astype(np.uint8), _pairs(b.q), d, low],
        "Q3_K": lambda: [_bits(b.q >> 2, range(8)), _pairs(b.q & 3), _six_bits_3(b.scales + 32), d],
        "Q4_K": lambda: [d, low, _six_bits(b.scales, b.lows), _nibbles(b.q, 64)],
        "Q5_K": lambda: [d, low, _six_bits(b.scales, b.lows), _bits(b.q >> 4, range(8)), _nibbles(b.q & 15, 64)],
        "Q6_K": lambda: [_nibbles_6(b.q & 15), _pairs(b.q >> 4), b.scales.astype(np.int8).view(np.uint8), d],
    }[fmt]()
    return np.concatenate(parts, axis=1, dtype=np.uint8)


def _nibbles(q: NDArray[Any], run: int) -> NDArray[np.uint8]:
    """Each `run` weights in half as many bytes: its first half in the low nibbles, its second in the high ones."""
    halves = q.reshape(len(q), -1, 2, run // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(q), -1).astype(np.uint8)


def _nibbles_6(q: NDArray[Any]) -> NDArray[np.uint8]:
    """Q6_K's nibbles: 64 weights apart share a byte."""
    return _nibbles(q, 128)


def _pairs(q: NDArray[Any]) -> NDArray[np.uint8]:
    """Two bits a weight: weights 32 apart share a byte."""
    quarters = q.reshape(len(q), -1, 4, 32)
    packed = quarters[:, :, 0] | quarters[:, :, 1] << 2 | quarters[:, :, 2] << 4 | quarters[:, :, 3] << 6
    return packed.reshape(len(q), -1).astype(np.uint8)


def _bits(q: NDArray[Any], order: range) -> NDArray[np.uint8]:
    """One bit a weight: byte i has bit j of weight 32 * j + i."""
    runs = q.reshape(len(q), 8, 32)
    return np.bitwise_or.reduce([runs[:, j] << j for j in order]).astype(np.uint8)


def _six_bits(scales: NDArray[np.int32], lows: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Eight scales and eight lows of six bits in twelve bytes (Q4_K, Q5_K)."""
    top = np.concatenate([scales[:, :4] | scales[:, 4:] >> 4 << 6, lows[:, :4] | lows[:, 4:] >> 4 << 6], axis=1)
    return np.concatenate([top, scales[:, 4:] & 15 | (lows[:, 4:] & 15) << 4], axis=1).astype(np.uint8)


def _six_bits_3(scales: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Sixteen scales of six bits in twelve bytes (Q3_K)."""
    low = scales[:, :8] & 15 | (scales[:, 8:] & 15) << 4
    high = np.bitwise_or.reduce([(scales[:, 4 * j : 4 * j + 4] >> 4) << 2 * j for j in range(4)])
    return np.concatenate([low, high], axis=1).astype(np.uint8)
