"""The types that a checkpoint's numbers are written in, and the change from one to another, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends.formats import BY_NAME
from ..errors import ConvertError
from .tensors import DTYPES, Tensor

OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # general.file_type
CHUNK = 8 << 20  # bytes read at a time


def outtype_of(word: str, tensors: dict[str, Tensor]) -> str:
    """The format that `word` asks for; "auto" is what most numbers of the checkpoint are stored in, so exact."""
    if word != "auto":
        return word.upper()
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.fmt] = counts.get(tensor.fmt, 0) + prod(tensor.shape)
    return max(counts, key=lambda fmt: counts[fmt], default="F32")


def format_of(tensor: Tensor, outtype: str) -> str:
    """What a tensor is written in: vectors stay F32, and so do rows that no block of the type divides, at 16 bits."""
    if len(tensor.shape) == 1:
        return "F32"
    return outtype if tensor.shape[-1] % BY_NAME[outtype].block == 0 else "F16"


def chunks(name: str, tensor: Tensor, fmt: str) -> Iterator[NDArray[Any]]:
    """The bytes of a tensor in format `fmt`. Raises ConvertError for a number that does not fit."""
    row = prod(tensor.shape[1:])
    step = max(1, CHUNK // (row * DTYPES[tensor.fmt].itemsize))
    for first in range(0, tensor.shape[0], step):
        rows = tensor.read(first, min(first + step, tensor.shape[0]))
        yield _encoded(name, rows, tensor.fmt, fmt).reshape(-1).view(np.uint8)


def _encoded(name: str, rows: NDArray[Any], stored: str, fmt: str) -> NDArray[Any]:
    rows = np.ascontiguousarray(rows)
    if stored == fmt:
        return rows
    values = (rows.astype(np.uint32) << 16).view(np.float32) if stored == "BF16" else rows.astype(np.float32)
    if fmt == "F32":
        return values
    if fmt == "F16":
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if np.isinf(halves).any() and not np.isinf(values).any():
            most = float(np.abs(values).max())
            raise ConvertError(f"tensor {name} holds {most:g}, more than F16's 65504", hint="--outtype bf16 or f32")
        return halves
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values, GGMLQuantizationType[fmt])
