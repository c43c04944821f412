"""Addresses of arrays for native calls. Knows nothing of what lies there."""

from __future__ import annotations

from ctypes import addressof, c_char
from typing import Any

from numpy.typing import NDArray

__all__ = ["address"]

_byte = c_char.from_buffer


def address(x: NDArray[Any]) -> int:
    """Where a C-contiguous array's first element lies; the caller keeps the array alive."""
    return addressof(_byte(x)) if x.flags.writeable else x.__array_interface__["data"][0]
