"""The pinned host memory that CUDA's copies go through. Knows no kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGING = 4 << 20  # bytes of pinned memory
SMALL = STAGING // 4  # copies up to this size go through it
SLOT, SLOTS = 4 << 10, 4  # bytes and number of the places for what comes while the host goes on
NO_TIMING = 2  # cudaEventDisableTiming


class Staging:
    """A ring of pinned memory: copies from it run while the host goes on, and its bytes wait for them."""

    def __init__(self, runtime: Any, stream: int):
        self._runtime, self._stream = runtime, stream
        nbytes = STAGING + SLOT * SLOTS
        self._base = runtime.hostAlloc(nbytes, runtime.hostAllocDefault)
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self._base))
        self._used = 0
        self._slots = [(STAGING + SLOT * i, runtime.eventCreateWithFlags(NO_TIMING)) for i in range(SLOTS)]

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

    def fetch(self, source: int, host: NDArray[Any]) -> Callable[[], None] | None:
        """Queues a copy to a contiguous array; what it returns waits for it. None: too large, or no place left."""
        if host.nbytes > SLOT or not self._slots:
            return None
        runtime, (at, event) = self._runtime, self._slots.pop()
        runtime.memcpyAsync(self._base + at, source, host.nbytes, runtime.memcpyDeviceToHost, self._stream)
        runtime.eventRecord(event, self._stream)

        def wait() -> None:
            runtime.eventSynchronize(event)
            host.reshape(-1).view(np.uint8)[:] = self._bytes[at : at + host.nbytes]
            self._slots.append((at, event))

        return wait

    def close(self) -> None:
        if self._base:
            for _, event in self._slots:
                self._runtime.eventDestroy(event)
            self._runtime.freeHost(self._base)
            self._base = 0

    def _place(self, nbytes: int) -> int:
        if self._used + nbytes > STAGING:
            self._runtime.streamSynchronize(self._stream)  # every copy out of the ring is done
            self._used = 0
        at = self._used
        self._used += (nbytes + 63) // 64 * 64
        return at
