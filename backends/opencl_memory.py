"""Host memory that a device copies to and from without a detour: allocated by its driver, mapped for good.

Drivers of graphics cards pin such memory, so that a copy runs beside the host's work and needs no copy of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGING = 4 << 20  # bytes
SMALL = STAGING // 4  # copies up to this size go through it


class Staging:
    """A ring: what was copied into it stays until the queue is known to be past it."""

    def __init__(self, cl: Any, context: Any, queue: Any):
        self._cl, self._queue = cl, queue
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR
        self._buffer = cl.Buffer(context, flags, STAGING)
        both = cl.map_flags.READ | cl.map_flags.WRITE
        self._bytes, _ = cl.enqueue_map_buffer(queue, self._buffer, both, 0, STAGING, np.uint8)
        self._used = 0
        self._copies: list[Any] = []  # of this turn of the ring; an event that is dropped waits for its copy

    def copy_in(self, target: Any, host: NDArray[Any]) -> None:
        """Queues a copy of a small contiguous array; the array may change at once."""
        part = self._part(host.nbytes)
        part[:] = host.reshape(-1).view(np.uint8)
        self._copies.append(self._cl.enqueue_copy(self._queue, target, part, is_blocking=False))

    def copy_out(self, source: Any, host: NDArray[Any]) -> None:
        """Copies to a small contiguous array and waits, for all that was queued before too."""
        part = self._part(host.nbytes)
        self._cl.enqueue_copy(self._queue, part, source, is_blocking=True)
        host.reshape(-1).view(np.uint8)[:] = part
        self._restart()

    def close(self) -> None:
        self._copies.clear()
        self._bytes = np.empty(0, np.uint8)  # unmapped when nothing refers to it

    def _part(self, nbytes: int) -> NDArray[np.uint8]:
        if self._used + nbytes > STAGING:
            self._queue.finish()
            self._restart()
        first = self._used
        self._used += (nbytes + 63) // 64 * 64
        return self._bytes[first : first + nbytes]

    def _restart(self) -> None:
        self._copies.clear()
        self._used = 0
