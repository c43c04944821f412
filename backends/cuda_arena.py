"""Device memory of CUDA in few large pieces, which are cut up here. Knows no kernels and no streams.

The device works through its queue in order, so memory may be handed out again while a kernel that reads it waits there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

ALIGNMENT = 512  # bytes
PIECE = 32 << 20  # bytes that are taken at least, where the device has them


class CudaBuffer:
    """Memory on a device; goes back to its arena when nothing refers to it."""

    __slots__ = ("_arena", "nbytes", "ptr")

    def __init__(self, arena: Arena, ptr: int, nbytes: int):
        self._arena, self.ptr, self.nbytes = arena, ptr, nbytes

    def __del__(self) -> None:
        self._arena.give(self.ptr, self.nbytes)

    def part(self, at: int, nbytes: int) -> CudaBuffer:
        """The nbytes from byte `at` on, which are there as long as the part is."""
        return CudaPart(self, at, nbytes)


class CudaPart(CudaBuffer):
    """A part of a buffer that others share."""

    __slots__ = ("_whole",)

    def __init__(self, whole: CudaBuffer, at: int, nbytes: int):
        assert 0 <= at <= at + nbytes <= whole.nbytes, (at, nbytes, whole.nbytes)
        self._whole, self.ptr, self.nbytes = whole, whole.ptr + at, nbytes

    def __del__(self) -> None:
        """The whole gives the memory back."""


class Piece:
    """One allocation of the driver's. `holes` are (start, nbytes) of what is not handed out, by address."""

    def __init__(self, base: int, nbytes: int):
        self.base, self.nbytes = base, nbytes
        self.holes = [(base, nbytes)]

    @property
    def idle(self) -> bool:
        return self.holes == [(self.base, self.nbytes)]

    def cut(self, nbytes: int) -> int:
        """The address of nbytes from the smallest hole that has them; 0 where none has."""
        fitting = [(size, i) for i, (_, size) in enumerate(self.holes) if size >= nbytes]
        if not fitting:
            return 0
        size, i = min(fitting)
        start = self.holes[i][0]
        self.holes[i : i + 1] = [(start + nbytes, size - nbytes)] if size > nbytes else []
        return start

    def mend(self, start: int, nbytes: int) -> None:
        """The inverse of `cut`: neighbouring holes become one."""
        i = sum(hole < start for hole, _ in self.holes)
        if i < len(self.holes) and start + nbytes == self.holes[i][0]:
            nbytes += self.holes.pop(i)[1]
        if i and sum(self.holes[i - 1]) == start:
            i, (start, before) = i - 1, self.holes.pop(i - 1)
            nbytes += before
        self.holes.insert(i, (start, nbytes))


class Arena:
    """`malloc(nbytes)` and `free(address)` are the driver's; what they raise is raised here."""

    def __init__(self, malloc: Callable[[int], int], free: Callable[[int], None]):
        self._malloc, self._free = malloc, free
        self._pieces: list[Piece] = []
        self._returned: deque[tuple[int, int]] = deque()  # by destructors, which may run at any moment
        self._open = True

    def reserve(self, nbytes: int) -> None:
        """Takes nbytes from the driver now, in one piece, for what comes."""
        nbytes = _aligned(nbytes)
        self._pieces.append(Piece(self._malloc(nbytes), nbytes))

    def take(self, nbytes: int) -> CudaBuffer:
        nbytes = _aligned(max(nbytes, 1))
        self._collect()
        address = self._cut(nbytes)
        if not address:
            self._grow(nbytes)
            address = self._cut(nbytes)
        return CudaBuffer(self, address, nbytes)

    def give(self, address: int, nbytes: int) -> None:
        self._returned.append((address, nbytes))
        if not self._open:
            self._collect()
            self._release()

    def close(self) -> None:
        """Gives idle pieces back to the driver, and others when they become idle."""
        self._open = False
        self._collect()
        self._release()

    def _cut(self, nbytes: int) -> int:
        return next((address for piece in self._pieces if (address := piece.cut(nbytes))), 0)

    def _grow(self, nbytes: int) -> None:
        try:
            self.reserve(max(nbytes, PIECE))
        except Exception:
            if nbytes >= PIECE:
                raise
            self.reserve(nbytes)

    def _collect(self) -> None:
        while self._returned:
            address, nbytes = self._returned.popleft()
            next(p for p in self._pieces if p.base <= address < p.base + p.nbytes).mend(address, nbytes)

    def _release(self) -> None:
        idle = [piece for piece in self._pieces if piece.idle]
        self._pieces = [piece for piece in self._pieces if not piece.idle]
        for piece in idle:
            try:
                self._free(piece.base)
            except Exception:  # the process ends, or the device is gone with all its memory
                pass


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
