"""One key-value cache for all layers: sequences of tokens, the rows they occupy, and prefixes kept for reuse.

Bookkeeping only: the bytes are the backends' (`KVStore`), one store a layer, all with the same rows. Knows nothing of
text, steps or devices. Only the engine's thread may call it. Misuse (a closed sequence, a row freed twice, a length
that cannot be) is a bug and raises AssertionError; what a user can run into is ContextFull or SessionError.
"""

from __future__ import annotations

from collections import abc
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Backend, KVStore, RopeSpec
from . import kvfile
from .errors import ContextFull, SessionError
from .radix import Ints, RadixTree, common_prefix
from .rows import RowPool

Tokens = abc.Sequence[int] | NDArray[np.int32]
EVICT_CHUNK = 64  # rows evicted at once in a large cache, so that what takes their place is in one piece


class Sequence:
    """Tokens and the cache rows of their keys and values. Made by a KVCache, whose methods change it."""

    __slots__ = ("_ints", "_rows", "closed", "id", "length", "reserved", "shifted_at", "tokens")

    def __init__(self, number: int):
        self.id = number
        self.tokens: list[int] = []  # evaluated: their keys and values are in the cache
        self.length = 0  # of tokens
        self.reserved = 0  # rows behind those of `tokens`, for the tokens of the step under way
        self.shifted_at: int | None = None  # from here on, keys were computed behind tokens since dropped
        self.closed = False
        self._ints: Ints = np.empty(0, np.int32)  # tokens again, for comparing; grows like _rows
        self._rows: Ints = np.empty(0, np.int32)

    @property
    def rows(self) -> Ints:
        """Rows of the tokens and then of the reserved ones, in position order: [length + reserved].

        A view, good until the sequence next changes; `Span.rows` of the step that fills the reserved rows.
        """
        assert not self.closed, "the sequence is closed"
        return self._rows[: self.length + self.reserved]

    @property
    def private(self) -> bool:
        """Whether it was shifted: its rows are good for itself only and never serve as a prefix."""
        return self.shifted_at is not None


class KVCache:
    """`capacity` tokens, shared by any number of sequences; equal prefixes are held once."""

    def __init__(
        self,
        capacity: int,
        layers: abc.Sequence[tuple[Backend, KVStore]],
        rope: RopeSpec | None,
        fingerprint: str,
    ):
        assert all(store.capacity >= capacity for _, store in layers), "a store is smaller than its cache"
        assert len({store.dtype for _, store in layers}) <= 1, "the stores differ in dtype"
        self.capacity = capacity
        self.fingerprint = fingerprint
        self.stores: tuple[KVStore, ...] = tuple(store for _, store in layers)  # one a layer
        self._backends = tuple(backend for backend, _ in layers)
        self._rope = rope
        self._pool = RowPool(capacity)
        self._tree = RadixTree(self._pool)
        self._live: dict[int, Sequence] = {}
        self._opened = 0

    # -- facts --

    @property
    def used(self) -> int:
        """Rows held by open sequences."""
        return self._pool.used

    @property
    def cached(self) -> int:
        """Rows of ended sequences, kept for reuse until memory is needed."""
        return self._pool.idle

    @property
    def free(self) -> int:
        """Rows that hold nothing. `free + cached` rows can be reserved."""
        return self._pool.free

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of the rows used and cached, by device."""
        return self._nbytes(self.used + self.cached)

    def capacity_by_device(self) -> dict[str, int]:
        """Bytes of all rows, by device: the most that can be committed."""
        return self._nbytes(self.capacity)

    def _nbytes(self, rows: int) -> dict[str, int]:
        nbytes: dict[str, int] = {}
        for backend, store in zip(self._backends, self.stores, strict=True):
            device = str(backend.device)
            nbytes[device] = nbytes.get(device, 0) + rows * store.row_nbytes
        return nbytes

    def shared_prefix(self, tokens: Tokens) -> int:
        """How many leading tokens a new sequence would find in the cache."""
        return len(self._longest(_ints(tokens), touch=False))

    # -- sequences --

    def open(self, tokens: Tokens = (), *, share: bool = True) -> Sequence:
        """A new sequence, starting with the longest cached prefix of `tokens`.

        The prefix is never all of `tokens`: the last one is left to evaluate, since its logits are wanted.
        """
        wanted = _ints(tokens)[:-1]
        seq = self._new()
        if share and len(wanted):
            rows = self._longest(wanted, touch=True)
            self._adopt(seq, wanted[: len(rows)], rows)
        return seq

    def fork(self, seq: Sequence) -> Sequence:
        """A second sequence with the same tokens, sharing all rows."""
        self._check(seq)
        other = self._new()
        self._adopt(other, seq._ints[: seq.length], seq._rows[: seq.length])
        other.shifted_at = seq.shifted_at
        return other

    def close(self, seq: Sequence, *, keep: bool = True) -> None:
        """Ends a sequence; with `keep` its tokens stay reusable as a prefix until memory is needed."""
        self.rollback(seq)
        if keep and not seq.private:
            self._tree.insert(seq._ints[: seq.length], seq._rows[: seq.length])
        self._pool.release(seq._rows[: seq.length])
        seq.closed = True
        del self._live[seq.id]

    def clear(self) -> None:
        """Forgets every cached prefix. Open sequences stay."""
        self._tree.clear()

    # -- growing and shrinking --

    def reserve(self, seq: Sequence, n: int) -> Ints:
        """Rows [n] for the next n tokens: contiguous, right behind the last one, where that is possible.

        Evicts cached prefixes, least recently used first, where rows are missing. Raises ContextFull when that is
        not enough; nothing is changed then.
        """
        assert not seq.closed, "the sequence is closed"
        assert not seq.reserved, f"{seq.reserved} rows are reserved already; commit them or roll back"
        assert n >= 0, f"{n} rows asked"
        if n > self._pool.free:
            self._make_room(n)
        start, end = seq.length, seq.length + n
        if end > len(seq._rows):
            self._grow(seq, end)
        rows = seq._rows[start:end]
        self._pool.take(rows, int(seq._rows[start - 1]) if start else -1)
        seq.reserved = n
        return rows

    def commit(self, seq: Sequence, tokens: Tokens) -> None:
        """The tokens of the reserved rows, all of them, are evaluated: they are part of the sequence now."""
        n = len(tokens)
        assert not seq.closed, "the sequence is closed"
        assert n == seq.reserved, f"{n} tokens for {seq.reserved} reserved rows"
        seq._ints[seq.length : seq.length + n] = tokens
        seq.tokens += tokens.tolist() if isinstance(tokens, np.ndarray) else tokens
        seq.length += n
        seq.reserved = 0

    def rollback(self, seq: Sequence) -> None:
        """Gives back rows reserved and not committed."""
        assert not seq.closed, "the sequence is closed"
        self._pool.release(seq._rows[seq.length : seq.length + seq.reserved])
        seq.reserved = 0

    def truncate(self, seq: Sequence, length: int) -> None:
        """Drops the tokens from `length` on."""
        self._check(seq)
        assert 0 <= length <= seq.length, f"length {length} of a sequence of {seq.length}"
        self._pool.release(seq._rows[length : seq.length])
        self._cut(seq, length)

    def shift(self, seq: Sequence, begin: int, end: int) -> None:
        """Drops tokens [begin, end) and moves those behind them up, rotating their keys to the new positions.

        Rows that others hold are copied first. The sequence is private from then on, since its later keys and values
        still carry what they saw of the dropped tokens. Raises ContextFull, with nothing changed, when rows for the
        copies are missing. When a device fails on the way, the sequence ends at `begin`.
        """
        self._check(seq)
        assert 0 <= begin <= end <= seq.length, f"tokens [{begin}, {end}) of a sequence of {seq.length}"
        if begin == end:
            return
        if end == seq.length:
            self.truncate(seq, begin)
            return
        dropped, tail = seq._rows[begin:end].copy(), seq._rows[end : seq.length].copy()
        shared = self._drop_for_copies(dropped, tail)
        source = tail[shared]
        moved, target = tail.copy(), np.empty(len(source), np.int32)
        self._pool.take(target, int(seq._rows[begin - 1]) if begin else -1)
        moved[shared] = target
        try:
            self._move(source, target, moved, begin - end)
        except BaseException:
            self._pool.release(target)
            self._pool.release(tail)
            self._cut(seq, begin)
            raise
        self._pool.release(source)
        seq._rows[begin : begin + len(tail)] = moved
        seq._ints[begin : begin + len(tail)] = seq._ints[end : seq.length].copy()
        del seq.tokens[begin:end]
        seq.length -= end - begin
        seq.shifted_at = begin if seq.shifted_at is None else min(begin, seq.shifted_at)

    # -- files --

    def save(self, seq: Sequence, path: str | PathLike[str]) -> None:
        """Writes a sequence with its keys and values to a file, which is replaced whole or not at all."""
        self._check(seq)
        shape = kvfile.Shape.of(self.fingerprint, self.stores)
        kvfile.save(path, shape, seq._ints[: seq.length], seq.shifted_at, self.stores, seq._rows[: seq.length])

    def load(self, path: str | PathLike[str]) -> Sequence:
        """A new sequence from a saved one. Raises SessionError when the file is damaged or does not fit here."""
        with kvfile.open_saved(path, kvfile.Shape.of(self.fingerprint, self.stores)) as saved:
            n, available = len(saved.tokens), self.free + self.cached
            if n > available:
                raise SessionError(
                    f"session {saved.path} holds {n} tokens, {available} of {self.capacity} in the context are left",
                    hint="raise -c or close other conversations",
                )
            seq = self._new()
            try:
                saved.restore(self.stores, self.reserve(seq, n))
            except BaseException:
                self.close(seq, keep=False)
                raise
            self.commit(seq, saved.tokens)
            seq.shifted_at = saved.shifted_at
            return seq

    # -- inside --

    def _check(self, seq: Sequence) -> None:
        assert not seq.closed, "the sequence is closed"
        assert not seq.reserved, f"{seq.reserved} rows are reserved; commit them or roll back first"

    def _new(self) -> Sequence:
        seq = Sequence(self._opened)
        self._opened += 1
        self._live[seq.id] = seq
        return seq

    def _adopt(self, seq: Sequence, tokens: Ints, rows: Ints) -> None:
        """Makes `tokens` [n] in `rows` [n], which others hold, the start of an empty sequence."""
        self._pool.hold(rows)
        self._grow(seq, len(rows))
        seq._rows[: len(rows)], seq._ints[: len(rows)] = rows, tokens
        seq.tokens, seq.length = tokens.tolist(), len(rows)

    def _grow(self, seq: Sequence, length: int) -> None:
        size = max(length, min(self.capacity, 2 * length), 64)
        for name in ("_rows", "_ints"):
            grown = np.empty(size, np.int32)
            grown[: seq.length] = getattr(seq, name)[: seq.length]
            setattr(seq, name, grown)

    def _cut(self, seq: Sequence, length: int) -> None:
        del seq.tokens[length:]
        seq.length = length
        if seq.shifted_at is not None and length <= seq.shifted_at:
            seq.shifted_at = None  # what is left was never moved

    def _longest(self, tokens: Ints, *, touch: bool) -> Ints:
        """Rows of the longest prefix of `tokens` that the tree or an open sequence holds."""
        rows = self._tree.match(tokens, touch=touch)
        for seq in self._live.values():
            if seq.length > len(rows) and not seq.private:
                n = common_prefix(seq._ints[: seq.length], tokens)
                if n > len(rows):
                    rows = seq._rows[:n]
        return rows

    def _make_room(self, n: int) -> None:
        """Evicts until n rows are free, or raises ContextFull."""
        pool = self._pool
        if n > pool.free + pool.idle:
            raise ContextFull(pool.used, n, self.capacity)
        chunk = min(EVICT_CHUNK, self.capacity // 64, pool.idle)
        self._tree.evict(max(n - pool.free, chunk))
        assert n <= pool.free, f"{pool.idle} idle rows that the tree does not give back"

    def _drop_for_copies(self, dropped: Ints, tail: Ints) -> NDArray[np.bool_]:
        """Releases `dropped` and makes room to copy what others share of `tail`: a mask of tail [n]."""
        pool = self._pool
        used = pool.used - pool.count_unshared(dropped)
        copies = len(tail) - pool.count_unshared(tail)
        if used + copies > self.capacity:
            raise ContextFull(used, copies, self.capacity)
        pool.release(dropped)
        missing = int(np.count_nonzero(pool.is_shared(tail))) - pool.free
        if missing > 0 and self._tree.evict(missing) < missing:
            self._tree.clear()  # what only the tree shares then needs no copy
        return pool.is_shared(tail)

    def _move(self, source: Ints, target: Ints, rows: Ints, delta: int) -> None:
        """On every layer: copies rows source [n] to target [n], then rotates the keys of `rows` by `delta`."""
        deltas = np.full(len(rows), delta, np.int32)
        for backend, store in zip(self._backends, self.stores, strict=True):
            if len(source):
                backend.kv_copy(store, source, target)
            if self._rope:
                backend.kv_shift(store, rows, deltas, self._rope)


def _ints(tokens: Tokens) -> Ints:
    return np.asarray(tokens, np.int32)
