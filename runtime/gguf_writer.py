"""Writes a GGUF file of any size, tensor by tensor, so that it is whole under its name or not there.

Knows the container only; what the keys mean and where the bytes come from is the caller's.
Format: github.com/ggml-org/ggml, docs/gguf.md, version 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..backends.formats import BY_NAME
from .metadata import KINDS
from .pack_writer import Advance, replacing

ALIGNMENT = 32
_DTYPES = {np.dtype(f"<{code}"): kind for code, kind in (("i4", "int32"), ("u4", "uint32"), ("f4", "float32"))}


class Encoded(bytes):
    """A key's value as the file holds it, its type in front."""


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write; `chunks` gives its bytes, `nbytes` in all, when its turn has come."""

    name: str
    fmt: str  # a name of backends/formats.py
    shape: tuple[int, ...]  # NumPy order, as in gguf.TensorInfo
    chunks: Callable[[], Iterable[Any]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * BY_NAME[self.fmt].row_nbytes(self.shape[-1])


def file_nbytes(keys: Mapping[str, Any], tensors: Sequence[NewTensor]) -> int:
    """How long the file will be."""
    return len(_header(keys, tensors)) + sum(_padded(tensor.nbytes) for tensor in tensors)


def write_gguf(
    target: Path, keys: Mapping[str, Any], tensors: Sequence[NewTensor], *, advance: Advance = lambda n: None
) -> int:
    """Writes `target`, replacing a file of that name; its length in bytes.

    A key's value is a bool, int (uint32, uint64 or int32 as it fits), float (float32) or str, a list of str, or an
    int32, uint32 or float32 array, or Encoded. `advance` hears of every piece of tensor data. Raises PackError where
    the folder or the disk refuses.
    """
    size = file_nbytes(keys, tensors)
    with replacing(target, size) as file:
        write_open(file, keys, tensors, advance=advance)
    return size


def write_open(
    file: BinaryIO, keys: Mapping[str, Any], tensors: Sequence[NewTensor], *, advance: Advance = lambda n: None
) -> None:
    """The same into an open file, from where it stands."""
    file.write(_header(keys, tensors))
    for tensor in tensors:
        written = 0
        for chunk in tensor.chunks():
            written += file.write(chunk)
            advance(memoryview(chunk).nbytes)
        assert written == tensor.nbytes, f"{tensor.name}: {written} bytes for {tensor.nbytes}"
        file.write(bytes(_padded(written) - written))


def _header(keys: Mapping[str, Any], tensors: Sequence[NewTensor]) -> bytes:
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    for key, value in keys.items():
        out += [_text(key), _value(value)]
    at = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        out.append(_text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        out.append(struct.pack("<IQ", BY_NAME[tensor.fmt].id, at))
        at += _padded(tensor.nbytes)
    header = b"".join(out)
    return header + bytes(_padded(len(header)) - len(header)) if tensors else header


def _value(value: Any) -> bytes:
    """A key's value with its type in front."""
    if isinstance(value, Encoded):
        return value
    if isinstance(value, bool):
        return _kind("boolean") + struct.pack("<B", value)
    if isinstance(value, int):
        kind, code = ("int32", "i") if value < 0 else ("uint32", "I") if value < 1 << 32 else ("uint64", "Q")
        return _kind(kind) + struct.pack("<" + code, value)
    if isinstance(value, float):
        return _kind("float32") + struct.pack("<f", value)
    if isinstance(value, str):
        return _kind("text") + _text(value)
    if isinstance(value, np.ndarray):
        dtype = value.dtype.newbyteorder("<")
        head = _kind("array") + _kind(_DTYPES[dtype]) + struct.pack("<Q", len(value))
        return head + value.astype(dtype).tobytes()
    assert all(isinstance(item, str) for item in value), "an array of texts expected"
    return _kind("array") + _kind("text") + struct.pack("<Q", len(value)) + b"".join(map(_text, value))


def _kind(name: str) -> bytes:
    return struct.pack("<I", KINDS.index(name))


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(data)) + data


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
