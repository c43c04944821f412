"""Addresses of arrays for native calls, and giving mapped files' pages back. Knows nothing of what lies there."""

from __future__ import annotations

import mmap
from ctypes import addressof, c_char
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["address", "give_back", "ready"]

_byte = c_char.from_buffer


def address(x: NDArray[Any]) -> int:
    """Where a C-contiguous array's first element lies; the caller keeps the array alive."""
    if x.flags.writeable and x.size:
        return addressof(_byte(x))  # pyright: ignore[reportArgumentType]  (an ndarray is a buffer)
    return x.__array_interface__["data"][0]


def ready(x: NDArray[Any]) -> NDArray[np.float32]:
    """x itself if it is what native code reads: C-contiguous float32; else a copy that is."""
    return np.ascontiguousarray(x, np.float32)


def give_back(raw: NDArray[np.uint8]) -> None:
    """Lets the system drop the pages of a view into a mapped file: they have been read and will not be needed soon."""
    owner: Any = raw
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not raw.size:
        return
    whole = np.frombuffer(owner, np.uint8, 1)
    start = address(raw) - address(whole)
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + raw.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if whole.flags.writeable or length <= 0:  # a writable map may be private: dropping would lose what was written
        return
    owner.madvise(mmap.MADV_DONTNEED, first, length)
