"""Device memory of CUDA and the pinned host memory that copies go through. Knows no kernels."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGING = 4 << 20  # bytes of pinned memory
SMALL = STAGING // 4  # copies up to this size go through it


class CudaBuffer:
    """Memory on a device, freed when nothing refers to it. Freeing waits for the device, so that no kernel loses it."""

    __slots__ = ("_free", "nbytes", "ptr")

    def __init__(self, runtime: Any, nbytes: int):
        self.ptr, self.nbytes = 0, nbytes
        self._free = runtime.free
        self.ptr = runtime.malloc(nbytes)

    def __del__(self) -> None:
        if self.ptr:
            try:
                self._free(self.ptr)
            except Exception:  # the process ends, or the device is gone with all its memory
                pass


class Staging:
    """A ring of pinned memory: copies from it run while the host goes on, and its bytes wait for them."""

    def __init__(self, runtime: Any, stream: int):
        self._runtime, self._stream = runtime, stream
        self._base = runtime.hostAlloc(STAGING, runtime.hostAllocDefault)
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * STAGING).from_address(self._base))
        self._used = 0

    def copy_in(self, target: int, host: NDArray[Any]) -> None:
        """Queues a copy of a small contiguous array; the array may change at once."""
        at = self._place(host.nbytes)
        self._bytes[at : at + host.nbytes] = host.reshape(-1).view(np.uint8)
        runtime = self._runtime
        runtime.memcpyAsync(target, self._base + at, host.nbytes, runtime.memcpyHostToDevice, self._stream)

    def copy_out(self, source: int, host: NDArray[Any]) -> None:
        """Copies to a small contiguous array and waits."""
        at, runtime = self._place(host.nbytes), self._runtime
        runtime.memcpyAsync(self._base + at, source, host.nbytes, runtime.memcpyDeviceToHost, self._stream)
        runtime.streamSynchronize(self._stream)
        host.reshape(-1).view(np.uint8)[:] = self._bytes[at : at + host.nbytes]

    def close(self) -> None:
        if self._base:
            self._runtime.freeHost(self._base)
            self._base = 0

    def _place(self, nbytes: int) -> int:
        if self._used + nbytes > STAGING:
            self._runtime.streamSynchronize(self._stream)  # every copy out of the ring is done
            self._used = 0
        at = self._used
        self._used += (nbytes + 63) // 64 * 64
        return at
