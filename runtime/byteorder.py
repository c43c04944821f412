"""Turns tensors of big-endian GGUF files into the little-endian form that every backend reads.

Knows where a block keeps numbers of more than one byte; nothing of what they mean.
Source: the block structs of ggml's ggml-common.h, whose fields such files keep in the writer's byte order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..backends.formats import BY_NAME

# format: (first byte, width, how many) of each run of wide numbers in a block; all other bytes stay.
# IQ2_XXS is missing: its 32-bit words are read both as words and as bytes, so its big-endian form is undefined.
_WIDE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "F32": ((0, 4, 1),),
    "F16": ((0, 2, 1),),
    "BF16": ((0, 2, 1),),
    "F64": ((0, 8, 1),),
    "I8": (),
    "I16": ((0, 2, 1),),
    "I32": ((0, 4, 1),),
    "I64": ((0, 8, 1),),
    "Q4_0": ((0, 2, 1),),
    "Q4_1": ((0, 2, 2),),
    "Q5_0": ((0, 2, 1), (2, 4, 1)),
    "Q5_1": ((0, 2, 2), (4, 4, 1)),
    "Q8_0": ((0, 2, 1),),
    "Q2_K": ((80, 2, 2),),
    "Q3_K": ((108, 2, 1),),
    "Q4_K": ((0, 2, 2),),
    "Q5_K": ((0, 2, 2),),
    "Q6_K": ((208, 2, 1),),
    "IQ2_XS": ((0, 2, 33),),
    "IQ2_S": ((0, 2, 1),),
    "IQ3_XXS": ((0, 2, 1), (66, 4, 8)),
    "IQ3_S": ((0, 2, 1),),
    "IQ1_S": ((0, 2, 1), (34, 2, 8)),
    "IQ1_M": ((48, 2, 4),),
    "IQ4_NL": ((0, 2, 1),),
    "IQ4_XS": ((0, 2, 2),),
    "TQ1_0": ((52, 2, 1),),
    "TQ2_0": ((64, 2, 1),),
    "MXFP4": (),
    "NVFP4": (),
}


def can_swap(fmt: str) -> bool:
    """Whether the big-endian form of a format is known."""
    return fmt in _WIDE


def swapped(raw: NDArray[np.uint8], fmt: str) -> NDArray[np.uint8]:
    """A copy of `raw` [nbytes] with the byte order of each wide number reversed; its own inverse."""
    blocks = raw.reshape(-1, BY_NAME[fmt].nbytes).copy()  # [blocks, nbytes]
    for first, width, count in _WIDE[fmt]:
        run = blocks[:, first : first + width * count]
        run[:] = run.reshape(-1, count, width)[:, :, ::-1].reshape(-1, count * width)
    return blocks.reshape(-1)
