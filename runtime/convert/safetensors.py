"""Finds the tensors of .safetensors files. Reads headers only, and believes none of their numbers.

Format: github.com/huggingface/safetensors, README.md: a length (u64), a JSON object, the bytes.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ConvertError
from . import json_file
from .tensors import Stored

MAX_HEADER = 100_000_000  # bytes, the limit of the format's own library
# Bytes an element; only F32, F16 and BF16 are ever read.
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SIZES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}


def read_header(path: Path) -> dict[str, Stored]:
    """Name and place of every tensor. Raises ConvertError where the header lies."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if 8 + length > size or length > MAX_HEADER:
                raise ConvertError(f"{path}: no safetensors file: its header would have {length} of {size} bytes")
            header = json_file.parse(file.read(length), str(path))
    except OSError as error:
        raise ConvertError(f"{path}: {error.strerror or error}") from None
    found = {
        name: _place(path, name, entry, 8 + length, size - 8 - length)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_overlap(path, found)
    return found


def _place(path: Path, name: str, entry: Any, start: int, room: int) -> Stored:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [begin, end, *shape]
    except (TypeError, KeyError, ValueError):
        raise ConvertError(f"{path}: tensor {name!r}: dtype, shape and data_offsets expected") from None
    if dtype not in SIZES:
        raise ConvertError(f"{path}: tensor {name!r} has the unknown type {str(dtype)[:40]!r}")
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) > 8:
        raise ConvertError(f"{path}: tensor {name!r}: shape and data_offsets must be whole numbers from 0 on")
    nbytes = prod(shape) * SIZES[dtype]
    if not begin <= end <= room or end - begin != nbytes:
        raise ConvertError(
            f"{path}: tensor {name!r} of {nbytes} bytes lies at {begin} to {end}, the file has {room} bytes of data"
        )
    return Stored(name, path, start + begin, dtype, tuple(shape))


def _check_overlap(path: Path, found: dict[str, Stored]) -> None:
    end, before = 0, ""
    for name, tensor in sorted(found.items(), key=lambda item: item[1].offset):
        nbytes = prod(tensor.shape) * SIZES[tensor.fmt]
        if tensor.offset < end and nbytes:
            raise ConvertError(f"{path}: tensors {before!r} and {name!r} overlap")
        end, before = max(end, tensor.offset + nbytes), name
