"""Hands out the rows of the key-value cache, one a token, and counts who holds them.

A row is free, in use (held by one or more sequences) or idle (held by none, but kept by the tree of cached
prefixes). Knows nothing of tokens, trees or the bytes behind a row. One thread at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Free rows to leave in front of a new place, so that whoever has the row before them can grow contiguously too.
SLACKS = (64, 8, 0)


class RowPool:
    """The books of `capacity` rows. Low rows go first, so that memory is committed only as it is used."""

    def __init__(self, capacity: int):
        assert capacity > 0, f"a cache of {capacity} rows"
        self.capacity = capacity
        self.free = capacity  # rows that nobody holds
        self.used = 0  # rows held by sequences
        self._users = np.zeros(capacity, np.int32)  # how many sequences hold each row
        self._kept = np.zeros(capacity, np.bool_)  # rows the tree keeps
        # One byte a row, 1 where free: bytes.find is the fastest search for a run of free rows there is.
        self._free = bytearray(b"\1" * capacity)
        self._free_array = np.frombuffer(self._free, np.uint8)

    @property
    def idle(self) -> int:
        """Rows that only the tree keeps."""
        return self.capacity - self.used - self.free

    # -- sequences --

    def take(self, out: NDArray[np.int32], last: int) -> None:
        """Fills `out` [n] with free rows, held once; right behind row `last` where possible (-1: no such row)."""
        n = len(out)
        assert n <= self.free, f"{n} rows asked of {self.free} free ones"
        if n == 1 and 0 <= last < self.capacity - 1 and self._free[last + 1]:  # a decode step, nearly always
            out[0] = row = last + 1
            self._free[row] = 0
            self._users[row] = 1
        else:
            done = 0
            if last >= 0:
                stop = self._free.find(b"\0", last + 1, last + 1 + n)
                end = min(last + 1 + n, self.capacity) if stop < 0 else stop
                done = end - (last + 1)
                out[:done] = np.arange(last + 1, end, dtype=np.int32)
                self._free_array[last + 1 : end] = 0
            if done < n:
                out[done:] = self._place(n - done)
                self._free_array[out[done:]] = 0
            self._users[out] = 1
        self.free -= n
        self.used += n

    def hold(self, rows: NDArray[np.int32]) -> None:
        """One more sequence holds `rows`, which are in use or idle."""
        users = self._users[rows]
        assert (users.astype(np.bool_) | self._kept[rows]).all(), "a free row cannot be shared"
        self._users[rows] = users + 1
        self.used += len(rows) - int(np.count_nonzero(users))

    def release(self, rows: NDArray[np.int32]) -> None:
        """One sequence lets go of `rows`."""
        users = self._users[rows] - 1
        assert (users >= 0).all(), f"rows freed twice: {rows[users < 0].tolist()}"
        self._users[rows] = users
        unused = rows[users == 0]
        self.used -= len(unused)
        self._set_free(unused[~self._kept[unused]])

    def is_shared(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of `rows` another sequence or the tree holds beside one sequence."""
        return (self._users[rows] > 1) | self._kept[rows]

    def count_unshared(self, rows: NDArray[np.int32]) -> int:
        """How many of `rows` one sequence alone holds, the tree aside."""
        return int(np.count_nonzero(self._users[rows] == 1))

    # -- the tree --

    def keep(self, rows: NDArray[np.int32]) -> None:
        """The tree keeps `rows`, which are in use and not kept yet."""
        assert not self._kept[rows].any(), "a row cannot be in the tree twice"
        assert (self._users[rows] > 0).all(), "only rows in use can be kept"
        self._kept[rows] = True

    def forget(self, rows: NDArray[np.int32]) -> int:
        """The tree lets go of `rows`; how many of them are free now."""
        assert self._kept[rows].all(), "the tree does not keep these rows"
        self._kept[rows] = False
        unused = rows[self._users[rows] == 0]
        self._set_free(unused)
        return len(unused)

    def idle_tail(self, rows: NDArray[np.int32]) -> int:
        """How many rows at the end of `rows`, which the tree keeps, no sequence holds."""
        if self._users[rows[-1]]:
            return 0
        in_use = np.flatnonzero(self._users[rows])
        return len(rows) if not len(in_use) else len(rows) - 1 - int(in_use[-1])

    # -- places --

    def _set_free(self, rows: NDArray[np.int32]) -> None:
        self._free_array[rows] = 1
        self.free += len(rows)

    def _place(self, n: int) -> NDArray[np.int32]:
        """A place for n rows: a low run with room before it, else any run, else the longest pieces."""
        for slack in SLACKS:
            if n + slack > self.free:
                continue
            start = self._free.find(b"\1" * (n + slack))
            if start > 0:
                start += slack
            if start >= 0:
                return np.arange(start, start + n, dtype=np.int32)
        edges = np.diff(self._free_array.astype(np.int8), prepend=0, append=0)
        runs = zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True)
        pieces = []
        for first, end in sorted(runs, key=lambda run: run[0] - run[1]):  # longest first, low ones before high ones
            pieces.append(np.arange(first, min(end, first + n), dtype=np.int32))
            n -= len(pieces[-1])
            if not n:
                break
        return np.concatenate(pieces)
