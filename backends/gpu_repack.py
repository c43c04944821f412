"""Rearranges GGUF blocks into planes that a GPU reads 16 bytes at a time, as kernels/shared/decode.h does. Pure NumPy.

A GGUF block holds codes and scales side by side, in 18, 34 or 210 bytes, which no wide load fits. Here a matrix is
cut into units of 32 weights, in row order, and each kind of data lies together for all units: codes first (byte j of 16
holds weight j low and weight 16 + j high; further bits as 32-bit masks, where bit 8 i + v is of weight 4 v + i: one
shift brings the bits of four weights to their four bytes), then scales. Every value stays exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import BY_NAME

Bytes = NDArray[Any]  # uint8
Planes = list[Bytes]
UNIT = 32  # weights
TILE_UNITS = 1 << 19  # units rearranged at a time, which bounds the memory this takes


def supported() -> tuple[str, ...]:
    """Names of the formats that have planes."""
    return (*FLOATS, *PLANES)


def repack(raw: Bytes, fmt: str, shape: tuple[int, int]) -> Bytes:
    """The planes of a matrix [rows, columns], one after the other, flat; zeros fill rows up to whole units."""
    rows, columns = shape
    if fmt in FLOATS:
        size = FLOATS[fmt]
        matrix = raw.reshape(rows, columns * size)
        missing = -columns % UNIT * size
        return np.pad(matrix, ((0, 0), (0, missing))).reshape(-1) if missing else matrix.reshape(-1)
    form = BY_NAME[fmt]
    blocks = raw.reshape(-1, form.nbytes)
    tile = max(1, TILE_UNITS * UNIT // form.block)
    parts = [PLANES[fmt](blocks[first : first + tile]) for first in range(0, len(blocks), tile)]
    return np.concatenate([part[i].reshape(-1) for i in range(len(parts[0])) for part in parts])


def pack_4(codes: Bytes) -> Bytes:
    """Codes [..., 32] below 16 to 16 bytes."""
    return codes[..., :16] | codes[..., 16:] << 4


def pack_bit(codes: Bytes, place: int) -> Bytes:
    """Bit `place` of codes [..., 32] as a mask of 4 bytes: byte i has it of weights i, 4 + i, … 28 + i."""
    turned = codes.reshape(*codes.shape[:-1], 8, 4).swapaxes(-1, -2)  # [..., 4, 8]
    return np.packbits(turned >> place & 1, axis=-1, bitorder="little")[..., 0]


def _scale_and_codes(blocks: Bytes, head: int) -> Planes:
    """A block of `head` bytes of scale and the codes as they are."""
    return [blocks[:, head:], blocks[:, :head]]


def _five_bits(blocks: Bytes, head: int) -> Planes:
    high = np.unpackbits(blocks[:, head : head + 4], axis=-1, bitorder="little")  # [n, 32]
    return [blocks[:, head + 4 :], pack_bit(high, 0), blocks[:, :head]]


def _sub_scales(packed: Bytes) -> Bytes:
    """[n, 12] bytes of 6-bit scales and minima of Q4_K and Q5_K to [n, 8, 2] bytes."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, high & 15 | (low >> 6) << 4], axis=1)
    minima = np.concatenate([middle & 63, high >> 4 | (middle >> 6) << 4], axis=1)
    return np.stack([scales, minima], axis=-1)


def _low_halves(qs: Bytes) -> Bytes:
    """[n, 4, 32] bytes, whose low halves are 32 weights and whose high halves the next 32, to [n, 8, 16] packed."""
    low = pack_4(qs & 15)
    high = qs[..., :16] >> 4 | qs[..., 16:] & 0xF0
    return np.stack([low, high], axis=2)


def _q4_k(blocks: Bytes) -> Planes:
    return [_low_halves(blocks[:, 16:].reshape(-1, 4, 32)), blocks[:, :4], _sub_scales(blocks[:, 4:16])]


def _q5_k(blocks: Bytes) -> Planes:
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]  # [n, 8, 32]: bit i is of unit i
    codes = _low_halves(blocks[:, 48:].reshape(-1, 4, 32))
    return [codes, pack_bit(high, 0), blocks[:, :4], _sub_scales(blocks[:, 4:16])]


def _q6_k(blocks: Bytes) -> Planes:
    low = blocks[:, :128].reshape(-1, 2, 2, 32)  # of each 128 weights: 64 bytes with 4 bits of two weights
    high = blocks[:, 128:192].reshape(-1, 2, 32)  # 2 bits of four weights
    codes = np.stack([low[:, :, 0] & 15, low[:, :, 1] & 15, low[:, :, 0] >> 4, low[:, :, 1] >> 4], axis=2)
    upper = high[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)[:, None]  # [n, 2, 4, 32]
    masks = np.concatenate([pack_bit(upper, 0), pack_bit(upper, 1)], axis=-1)
    return [pack_4(codes), masks, blocks[:, 192:208], blocks[:, 208:]]


def _two_bits(qs: Bytes) -> Bytes:
    """[n, 64] bytes of 2-bit codes to masks [n, 2, 4, 8]: 32 bytes hold 4 units, 2 bits apart."""
    codes = qs.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.concatenate([pack_bit(codes, 0), pack_bit(codes, 1)], axis=-1)


def _q2_k(blocks: Bytes) -> Planes:
    return [_two_bits(blocks[:, 16:80]), blocks[:, 80:84], blocks[:, :16]]


def _q3_k(blocks: Bytes) -> Planes:
    high = blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)  # [n, 16]
    upper = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = (low | upper << 4) - np.uint8(32)  # wraps: signed bytes
    return [_two_bits(blocks[:, 32:96]), pack_bit(high, 0), scales, blocks[:, 108:]]


def _iq4_xs(blocks: Bytes) -> Planes:
    upper = blocks[:, 2:4].copy().view("<u2") >> (2 * np.arange(8, dtype=np.uint16)) & 3  # [n, 8]
    lower = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    return [blocks[:, 8:], blocks[:, :2], (lower | upper.astype(np.uint8) << 4) - np.uint8(32)]


FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
PLANES: dict[str, Callable[[Bytes], Planes]] = {
    "Q4_0": lambda blocks: _scale_and_codes(blocks, 2),
    "Q4_1": lambda blocks: _scale_and_codes(blocks, 4),
    "Q5_0": lambda blocks: _five_bits(blocks, 2),
    "Q5_1": lambda blocks: _five_bits(blocks, 4),
    "Q8_0": lambda blocks: _scale_and_codes(blocks, 2),
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": lambda blocks: _scale_and_codes(blocks, 2),
    "IQ4_XS": _iq4_xs,
    "MXFP4": lambda blocks: _scale_and_codes(blocks, 1),
}
