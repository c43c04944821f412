"""Cache rows whose bytes are the token and the position they stand for, so that every row's content can be checked."""

from __future__ import annotations

import numpy as np
from layerlift.backends.base import DeviceInfo, KVStore, RopeSpec
from layerlift.runtime.kv import KVCache, Sequence

ROPE = RopeSpec(2, "norm", np.ones(1))
UNWRITTEN = -1


class FakeStore(KVStore):
    """One layer's rows. A key is (token, position it is rotated to); a value is (token, token)."""

    def __init__(self, capacity: int, dtype: str = "f32"):
        self.capacity, self.n_kv_heads, self.head_dim, self.dtype = capacity, 1, 2, dtype  # type: ignore[assignment]
        kind = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[dtype]
        self.k = np.full((capacity, 1, 2), UNWRITTEN).astype(kind)
        self.v = self.k.copy()
        self.largest_read = 0

    def read(self, rows):
        self.largest_read = max(self.largest_read, len(rows))
        return self.k[rows], self.v[rows]

    def write(self, rows, k, v):
        self.k[rows], self.v[rows] = k, v


class FakeDevice:
    """The two things a cache asks of a backend. Counts its calls; with `fail` set, the next one raises."""

    def __init__(self, index: int = 0):
        self.device = DeviceInfo("fake", index, "fake", "", True)
        self.copies = self.shifts = 0
        self.fail: Exception | None = None

    def kv_copy(self, kv, source, target):
        self._count()
        self.copies += 1
        assert len(source) == len(target) > 0
        assert not np.intersect1d(source, target).size
        kv.write(target, *kv.read(source))

    def kv_shift(self, kv, rows, delta, rope):
        self._count()
        self.shifts += 1
        assert rope is ROPE
        assert len(np.unique(rows)) == len(rows) == len(delta)
        kv.k[rows, 0, 1] += delta.astype(kv.k.dtype)

    def _count(self):
        if self.fail:
            error, self.fail = self.fail, None
            raise error


def make_cache(capacity=64, *, layers=2, rope: RopeSpec | None = ROPE, dtype="f32", fingerprint="model") -> KVCache:
    """Layers take turns on two devices."""
    devices = [FakeDevice(0), FakeDevice(1)]
    places = [(devices[i % 2], FakeStore(capacity, dtype)) for i in range(layers)]
    return KVCache(capacity, places, rope, fingerprint)  # type: ignore[arg-type]


def write(cache: KVCache, rows, tokens, start: int) -> None:
    """What a step does: fills rows with the keys and values of `tokens` at positions start …"""
    values = np.array([[[t, start + i]] for i, t in enumerate(tokens)]).reshape(-1, 1, 2)
    for store in cache.stores:
        store.write(rows, values.astype(store.k.dtype), values[:, :, :1].repeat(2, axis=2).astype(store.v.dtype))


def append(cache: KVCache, seq: Sequence, tokens) -> None:
    """Evaluates more tokens."""
    tokens = list(tokens)
    rows = cache.reserve(seq, len(tokens))
    write(cache, rows, tokens, seq.length)
    cache.commit(seq, tokens)


def start(cache: KVCache, tokens) -> Sequence:
    """A new sequence that holds all of `tokens`."""
    tokens = list(tokens)
    seq = cache.open(tokens)
    append(cache, seq, tokens[seq.length :])
    return seq


def check_rows(cache: KVCache, seq: Sequence, *, rotated: bool = True) -> None:
    """Every row of a sequence holds its token, at its position."""
    rows = seq.rows[: seq.length]
    assert len(np.unique(rows)) == len(rows) == seq.length == len(seq.tokens)
    for store in cache.stores:
        assert store.k[rows, 0, 0].tolist() == seq.tokens
        assert store.v[rows, 0, 0].tolist() == seq.tokens
        if rotated:
            assert store.k[rows, 0, 1].tolist() == list(range(seq.length))


def check_books(cache: KVCache, sequences) -> None:
    """The counts agree with the rows that the sequences hold."""
    held = {int(row) for seq in sequences for row in seq.rows}
    assert cache.used == len(held)
    assert cache.used + cache.cached + cache.free == cache.capacity
    assert min(cache.used, cache.cached, cache.free) >= 0
