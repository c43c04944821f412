"""Random but sound blocks of every format: finite, mean near zero, a chosen deviation. For tests and benchmarks."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from .formats import BY_NAME
from .numpy_decode import decode_rows

# Where a block's half-precision scales are: (byte offset, value as a multiple of the main scale).
# The minima are set so that the mean of the decoded values is about zero.
SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 1.0),),
    "Q4_1": ((0, 1.0), (2, -7.5)),
    "Q5_0": ((0, 1.0),),
    "Q5_1": ((0, 1.0), (2, -15.5)),
    "Q8_0": ((0, 1.0),),
    "Q2_K": ((80, 1.0), (82, 1.5)),
    "Q3_K": ((108, 1.0),),
    "Q4_K": ((0, 1.0), (2, 7.5)),
    "Q5_K": ((0, 1.0), (2, 15.5)),
    "Q6_K": ((208, 1.0),),
    "IQ2_XXS": ((0, 1.0),),
    "IQ2_XS": ((0, 1.0),),
    "IQ2_S": ((0, 1.0),),
    "IQ3_XXS": ((0, 1.0),),
    "IQ3_S": ((0, 1.0),),
    "IQ1_S": ((0, 1.0),),
    "IQ4_NL": ((0, 1.0),),
    "IQ4_XS": ((0, 1.0),),
    "TQ1_0": ((52, 1.0),),
    "TQ2_0": ((64, 1.0),),
}
FLOATS = ("F32", "F16", "BF16", "F64")
FORMATS = (*FLOATS, *SCALES, "IQ1_M", "MXFP4")


def random_rows(fmt: str, rows: int, columns: int, std: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """[rows, row_nbytes] uint8: random blocks whose decoded values have mean near 0 and deviation `std`."""
    if fmt in FLOATS:
        return _random_floats(fmt, rows, columns, std, rng)
    blocks = rows * columns // BY_NAME[fmt].block
    data = _random_blocks(fmt, blocks, std / _unit_deviation(fmt), rng)
    return data.reshape(rows, BY_NAME[fmt].row_nbytes(columns))


def _random_floats(fmt: str, rows: int, columns: int, std: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    x = rng.random((rows, columns), np.float32)
    x -= np.float32(0.5)
    x *= np.float32(std * math.sqrt(12.0))  # a uniform variable on [0, 1) has deviation 1/sqrt(12)
    if fmt == "BF16":
        return np.ascontiguousarray(x.view(np.uint16)[:, 1::2]).view(np.uint8)
    return x.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[fmt]).view(np.uint8)


def _random_blocks(fmt: str, blocks: int, scale: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """[blocks, block_nbytes] uint8 with the main scale of each block within a quarter of `scale`."""
    nbytes = BY_NAME[fmt].nbytes
    data = np.frombuffer(rng.bytes(blocks * nbytes), np.uint8).reshape(blocks, nbytes).copy()
    if fmt == "MXFP4":
        data[:, 0] = 128 + round(math.log2(scale))  # an exponent; the decoder's table is doubled, hence 128
        return data
    scales = (rng.random(blocks, np.float32) * np.float32(0.5) + np.float32(0.75)) * np.float32(scale)
    if fmt == "IQ1_M":  # the scale's four nibbles are the high ones of the last four words
        words, bits = data[:, 48:].view("<u2"), scales.astype("<f2").view("<u2")
        words[:] = words & 0x0FFF | (bits[:, None] << np.array([12, 8, 4, 0], "<u2")) & 0xF000
        return data
    for offset, multiple in SCALES[fmt]:
        data[:, offset : offset + 2] = (scales * np.float32(multiple)).astype("<f2")[:, None].view(np.uint8)
    return data


@functools.cache
def _unit_deviation(fmt: str) -> float:
    """The deviation of the decoded values of random blocks whose main scale is about 1/64."""
    data = _random_blocks(fmt, 64, 1 / 64, np.random.default_rng(0))
    return float(decode_rows(data, fmt, BY_NAME[fmt].block).std()) * 64
