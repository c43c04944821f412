"""Sequences that part, shrink or drop a span leave each other's rows as they were."""

from __future__ import annotations

import numpy as np
import pytest
from fake_store import append, check_books, check_rows, make_cache, start
from layerlift.backends.base import RopeSpec, Step
from layerlift.backends.numpy_ import NumpyBackend
from layerlift.runtime.errors import ContextFull
from layerlift.runtime.kv import KVCache


def test_a_fork_shares_rows_and_goes_its_own_way():
    cache = make_cache()
    seq = start(cache, range(10))
    other = cache.fork(seq)
    assert cache.used == 10
    append(cache, seq, [20, 21])
    append(cache, other, [30])
    cache.close(seq, keep=False)
    check_rows(cache, other)
    assert other.tokens == [*range(10), 30]
    check_books(cache, [other])


def test_truncate_gives_back_only_rows_nobody_else_holds():
    cache = make_cache()
    seq = start(cache, range(10))
    other = cache.fork(seq)
    append(cache, seq, [20, 21])
    cache.truncate(seq, 4)
    assert cache.used == 10
    check_rows(cache, other)
    append(cache, seq, [40, 41])
    check_rows(cache, seq)
    check_rows(cache, other)


def test_truncate_then_append_equals_fresh_prefill():
    cache, fresh = make_cache(), make_cache()
    seq = start(cache, range(10))
    cache.truncate(seq, 6)
    append(cache, seq, [30, 31])
    same = start(fresh, [*range(6), 30, 31])
    assert seq.tokens == same.tokens
    for a, b in zip(cache.stores, fresh.stores, strict=True):
        for left, right in zip(a.read(seq.rows), b.read(same.rows), strict=True):
            np.testing.assert_array_equal(left, right)


def test_shift_drops_a_span_and_rotates_what_follows():
    cache = make_cache()
    seq = start(cache, range(10))
    cache.shift(seq, 2, 5)
    assert seq.tokens == [0, 1, 5, 6, 7, 8, 9]
    check_rows(cache, seq)
    assert cache.used == 7
    append(cache, seq, [20])
    cache.shift(seq, 0, 1)
    check_rows(cache, seq)


def test_shift_calls_each_layer_once():
    cache = make_cache(layers=4)
    seq = start(cache, range(10))
    other = cache.fork(seq)
    cache.shift(seq, 2, 5)
    devices = {id(backend): backend for backend in cache._backends}.values()
    assert sum(d.copies for d in devices) == sum(d.shifts for d in devices) == 4
    check_rows(cache, seq)
    check_rows(cache, other)
    assert cache.used == 10 + 5


def test_shift_leaves_cached_prefixes_whole():
    cache = make_cache()
    cache.close(start(cache, range(10)))
    seq = cache.open([*range(10), 10])
    cache.shift(seq, 2, 5)
    again = cache.open([*range(10), 10])
    assert again.length == 10
    check_rows(cache, again)
    check_rows(cache, seq)


def test_a_shifted_sequence_serves_nobody():
    cache = make_cache()
    seq = start(cache, range(10))
    cache.shift(seq, 2, 5)
    assert seq.private
    assert cache.shared_prefix([0, 1, 5, 6]) == 0
    assert cache.fork(seq).private
    cache.close(seq)
    assert cache.shared_prefix([0, 1, 5, 6]) == cache.cached == 0


def test_a_sequence_cut_to_before_its_shift_is_like_any_other():
    cache = make_cache()
    seq = start(cache, range(10))
    cache.shift(seq, 4, 6)
    cache.truncate(seq, 5)
    assert seq.private
    cache.truncate(seq, 4)
    assert not seq.private
    assert cache.shared_prefix(range(10)) == 4


def test_shift_at_the_end_is_truncation():
    cache = make_cache()
    seq = start(cache, range(10))
    cache.shift(seq, 6, 10)
    cache.shift(seq, 3, 3)
    assert (seq.tokens, seq.private) == (list(range(6)), False)


def test_shift_without_rope_moves_nothing():
    cache = make_cache(rope=None)
    seq = start(cache, range(10))
    cache.shift(seq, 2, 5)
    check_rows(cache, seq, rotated=False)


def test_shift_in_a_full_context_drops_before_it_copies():
    cache = make_cache(12)
    cache.close(start(cache, range(10)))
    seq = cache.open([*range(10), 10])
    append(cache, seq, [10, 11])
    assert cache.free == 0  # every row is in use; tokens 0 to 9 are in the tree as well
    cache.shift(seq, 2, 6)
    check_rows(cache, seq)
    assert seq.tokens == [0, 1, *range(6, 12)]
    check_books(cache, [seq])


def test_a_shift_that_cannot_copy_changes_nothing():
    cache = make_cache(11)
    seq = start(cache, range(10))
    other = cache.fork(seq)
    with pytest.raises(ContextFull, match=r"10 used \+ 7 asked > 11"):
        cache.shift(seq, 2, 3)
    assert not seq.private
    for each in (seq, other):
        assert each.tokens == list(range(10))
        check_rows(cache, each)
    check_books(cache, [seq, other])


def test_a_device_failing_in_a_shift_leaves_the_sound_part():
    cache = make_cache()
    seq = start(cache, range(10))
    other = cache.fork(seq)
    cache._backends[1].fail = RuntimeError("device lost")
    with pytest.raises(RuntimeError, match="device lost"):
        cache.shift(seq, 2, 5)
    assert seq.tokens == [0, 1]
    for each in (seq, other):
        check_rows(cache, each)
    check_books(cache, [seq, other])


@pytest.mark.parametrize("style", ["norm", "neox"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_shifted_keys_equal_keys_computed_at_their_new_positions(style, dtype):
    backend = NumpyBackend.open(NumpyBackend.probe().devices[0])
    rope = RopeSpec(8, style, 10_000.0 ** -(np.arange(4) / 4), magnitude=1.2)
    store = backend.kv_alloc(64, 2, 16, dtype)
    cache = KVCache(64, [(backend, store)], rope, "model")
    rng = np.random.default_rng(1)
    keys, values = rng.standard_normal((2, 20, 32), np.float32)

    def rotated(chosen, positions):
        positions = np.asarray(positions, np.int32)
        step = Step(positions, positions, positions, (), positions, (store,))
        return backend.rope(keys[chosen], 16, rope, step).reshape(-1, 2, 16)

    seq = cache.open()
    rows = cache.reserve(seq, 20)
    store.write(rows, rotated(range(20), range(20)).astype(store.k.dtype), values.reshape(20, 2, 16))
    cache.commit(seq, range(20))
    cache.shift(cache.fork(seq), 0, 1)  # a fork that moves must not be felt
    cache.shift(seq, 3, 9)
    k, v = store.read(seq.rows)
    left = [0, 1, 2, *range(9, 20)]
    np.testing.assert_allclose(k.astype(np.float32), rotated(left, range(14)), atol=1e-5 if dtype == "f32" else 4e-3)
    np.testing.assert_allclose(v.astype(np.float32), values[left].reshape(14, 2, 16), atol=2e-3)
