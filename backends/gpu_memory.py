"""Device arrays and the pool their memory comes from. Knows no ops and no driver: it is handed a way to allocate.

Memory of a dead array goes back to the pool, so that after the first steps nothing is allocated any more. The device
works through its queue in order: memory may be handed out again while a kernel that reads it still waits there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import DeviceOutOfMemory

Handle = Any  # a driver's buffer


class Pool:
    """Blocks of device memory by size. `allocate(nbytes)` asks the driver and raises DeviceOutOfMemory."""

    def __init__(self, allocate: Callable[[int], Handle]):
        self._allocate = allocate
        self._idle: dict[int, list[Handle]] = {}
        self.open = True

    def take(self, nbytes: int) -> Block:
        """A block of at least `nbytes`; when the device is full, what lies idle is given up first."""
        size = rounded(nbytes)
        idle = self._idle.get(size)
        if idle:
            return Block(self, idle.pop(), size)
        try:
            return Block(self, self._allocate(size), size)
        except DeviceOutOfMemory:
            if not any(self._idle.values()):
                raise
            self._idle.clear()
            return Block(self, self._allocate(size), size)

    def give(self, handle: Handle, size: int) -> None:
        if self.open:
            self._idle.setdefault(size, []).append(handle)

    def close(self) -> None:
        """Gives idle memory back to the driver, and what comes in later too."""
        self.open = False
        self._idle.clear()


class Block:
    """A piece of device memory; goes back to its pool when nothing refers to it."""

    __slots__ = ("handle", "pool", "size")

    def __init__(self, pool: Pool, handle: Handle, size: int):
        self.pool, self.handle, self.size = pool, handle, size

    def __del__(self) -> None:
        self.pool.give(self.handle, self.size)


class Lent:
    """In place of a block: memory that its pool may give to others."""

    __slots__ = ("handle",)

    def __init__(self, handle: Handle):
        self.handle = handle


class GpuArray:
    """An array on the device, C order. `handle` is what kernels take."""

    __slots__ = ("block", "dtype", "handle", "shape")

    def __init__(self, block: Block | Lent, shape: tuple[int, ...], dtype: Any = np.float32):
        self.block, self.handle, self.shape, self.dtype = block, block.handle, shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    def __repr__(self) -> str:
        return f"GpuArray({list(self.shape)}, {np.dtype(self.dtype).name})"


def lent(x: GpuArray) -> GpuArray:
    """The same array, which does not keep its memory: it is there until the pool gives it away."""
    return GpuArray(Lent(x.handle), x.shape, x.dtype)


def rounded(nbytes: int) -> int:
    """Sizes in classes, an eighth apart, so that steps of different lengths share blocks."""
    if nbytes <= 2048:
        return max(256, (nbytes + 255) // 256 * 256)
    step = 1 << (nbytes.bit_length() - 4)
    return (nbytes + step - 1) // step * step
