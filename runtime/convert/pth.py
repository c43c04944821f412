"""Finds the tensors of PyTorch's .pth and .bin files: a ZIP archive with a pickle and a member for each storage."""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path

from .. import archive
from ..errors import ConvertError
from . import pickled
from .safetensors import SIZES
from .tensors import Stored


def read_header(path: Path) -> dict[str, Stored]:
    """Name and place of every tensor; no code in the file is run. Raises ConvertError, or GGUFError for a bad ZIP."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                places = archive.places(view, str(path))
                pickle, prefix = _pickle(view, path, places)
            finally:
                view.release()
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    views = pickled.read(pickle, str(path))
    return {name: _place(path, name, view, prefix, places) for name, view in views.items()}


def _pickle(view: memoryview, path: Path, places: dict[str, tuple[int, int]]) -> tuple[bytes, str]:
    """The pickle, and what stands before the names of the members."""
    found = [name for name in places if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise ConvertError(
            f"{path}: no PyTorch checkpoint in a ZIP archive",
            hint="files written before PyTorch 1.6: load and save them again with torch",
        )
    prefix = found[0].removesuffix("data.pkl")
    start, nbytes = places.get(f"{prefix}byteorder", (0, 0))
    if nbytes == 3 and view[start : start + nbytes] == b"big":
        raise ConvertError(f"{path}: big-endian checkpoints are not supported")
    start, nbytes = places[found[0]]
    if nbytes > pickled.MAX_NBYTES:
        raise ConvertError(f"{path}: a pickle of {nbytes} bytes; the limit is {pickled.MAX_NBYTES}")
    return bytes(view[start : start + nbytes]), prefix


def _place(path: Path, name: str, view: pickled.View, prefix: str, places: dict[str, tuple[int, int]]) -> Stored:
    storage, size = view.storage, SIZES[view.storage.fmt]
    member = f"{prefix}data/{storage.key}"
    if member not in places:
        raise ConvertError(f"{path}: tensor {name!r} lies in {member!r}, which is missing")
    start, nbytes = places[member]
    count, strides = prod(view.shape), [prod(view.shape[i + 1 :]) for i in range(len(view.shape))]
    if (view.offset + count) * size > min(nbytes, storage.count * size):
        raise ConvertError(f"{path}: tensor {name!r} {list(view.shape)} runs past its storage of {nbytes} bytes")
    if len(view.strides) != len(strides) or any(
        n > 1 and a != b for n, a, b in zip(view.shape, view.strides, strides, strict=True)
    ):
        raise ConvertError(f"{path}: tensor {name!r} does not lie row after row", hint="save it with .contiguous()")
    return Stored(name, path, start + view.offset * size, storage.fmt, view.shape)
