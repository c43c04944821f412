"""The cache's books: prefixes are found, rows are shared, copied and evicted as promised."""

from __future__ import annotations

import time

import numpy as np
import pytest
from fake_store import append, check_books, check_rows, make_cache, start, write
from layerlift.runtime.errors import ContextFull
from layerlift.runtime.kv import KVCache
from layerlift.runtime.radix import common_prefix


def runs(rows) -> int:
    """In how many contiguous pieces rows lie."""
    return 1 + int((np.diff(rows) != 1).sum())


# -- prefixes --


def test_an_ended_sequence_is_found_again_but_for_the_last_token():
    cache = make_cache()
    cache.close(start(cache, range(10)))
    assert (cache.used, cache.cached, cache.free) == (0, 10, 54)
    again = cache.open(list(range(10)))
    assert again.tokens == list(range(9))
    check_rows(cache, again)
    assert (cache.used, cache.cached) == (9, 1)


def test_a_running_sequence_offers_its_prefix():
    cache = make_cache()
    first = start(cache, range(10))
    second = cache.open([*range(7), 50, 51])
    assert second.tokens == list(range(7))
    assert second.rows.tolist() == first.rows[:7].tolist()
    append(cache, second, [50, 51])
    check_rows(cache, first)
    check_rows(cache, second)


def test_reserved_tokens_are_not_offered_before_they_are_evaluated():
    cache = make_cache()
    seq = cache.open()
    cache.reserve(seq, 4)
    assert cache.shared_prefix([0, 0, 0, 0]) == 0
    assert len(seq.rows) == 4
    assert seq.length == 0


def test_without_share_or_keep_nothing_is_reused():
    cache = make_cache()
    cache.close(start(cache, range(10)), keep=False)
    assert cache.free == cache.capacity
    cache.close(start(cache, range(10)))
    assert cache.open(range(10), share=False).length == 0


def test_shared_prefix_counts_all_tokens_and_takes_nothing():
    cache = make_cache()
    cache.close(start(cache, range(10)))
    assert cache.shared_prefix(list(range(10))) == 10
    assert cache.shared_prefix([0, 1, 2, 9]) == 3
    assert cache.shared_prefix([5]) == cache.shared_prefix([]) == 0
    assert (cache.used, cache.cached) == (0, 10)


def test_equal_prefixes_are_kept_once():
    cache = make_cache()
    first, second = start(cache, range(10)), cache.open()
    append(cache, second, range(10))  # evaluated apart, since it did not ask
    assert cache.used == 20
    cache.close(first)
    cache.close(second)
    assert (cache.cached, cache.free) == (10, 54)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 575, 576, 577, 5000])
def test_common_prefix_finds_the_first_difference(length):
    a = np.arange(length + 3, dtype=np.int32)
    b = a.copy()
    b[length:] += 1
    assert common_prefix(a, b) == common_prefix(a, a[:length]) == length


# -- memory --


def test_the_least_recently_used_prefix_goes_first():
    cache = make_cache(30)
    for base in (100, 200, 300):
        cache.close(start(cache, range(base, base + 10)))
    cache.close(cache.open(range(100, 111)))  # used again
    start(cache, range(5))
    assert cache.shared_prefix(range(200, 210)) == 5
    start(cache, range(50, 58))
    assert [cache.shared_prefix(range(b, b + 10)) for b in (100, 200, 300)] == [10, 0, 7]


def test_starting_with_a_prefix_counts_as_using_it():
    cache = make_cache(20)
    cache.close(start(cache, range(100, 110)))
    cache.close(start(cache, range(200, 210)))
    cache.close(cache.open(range(100, 111)), keep=False)
    start(cache, range(5))
    assert [cache.shared_prefix(range(b, b + 10)) for b in (100, 200)] == [10, 5]


def test_a_prefix_passed_over_while_in_use_can_go_later():
    cache = make_cache(20)
    cache.close(start(cache, range(10)))
    holder = cache.open([*range(10), 99])
    cache.close(start(cache, range(50, 60)))
    cache.close(start(cache, range(70, 75)), keep=False)  # evicts of the later one
    cache.close(holder, keep=False)
    check_rows(cache, start(cache, range(200, 220)))


def test_a_prefix_is_evicted_from_its_end():
    cache = make_cache(20)
    cache.close(start(cache, range(20)))
    start(cache, range(50, 57))
    assert cache.shared_prefix(range(20)) == 13


def test_what_a_request_did_not_match_keeps_its_age():
    cache = make_cache(40)
    cache.close(start(cache, range(20)))
    cache.close(start(cache, range(50, 70)))
    cache.close(cache.open([*range(5), 99]))  # of the older one, the first five tokens only
    start(cache, range(80, 95))
    assert (cache.shared_prefix(range(20)), cache.shared_prefix(range(50, 70))) == (5, 20)


def test_rows_in_use_survive_eviction():
    cache = make_cache(20)
    cache.close(start(cache, range(15)))
    held = cache.open([*range(8), 99])
    other = start(cache, range(50, 62))
    assert cache.free == cache.cached == 0
    for seq in (held, other):
        check_rows(cache, seq)
    with pytest.raises(ContextFull):
        cache.reserve(held, 1)


def test_idle_rows_above_a_branch_in_use_can_be_evicted():
    cache = make_cache(20)
    twin, kept = start(cache, range(5)), cache.open()
    append(cache, kept, range(8))  # its own rows for the same first five tokens
    holder = cache.open([*range(8), 0])
    assert holder.rows.tolist() == kept.rows.tolist()
    cache.close(twin)
    cache.close(kept)  # hangs tokens 5 to 7 below the twin's idle five; `holder` holds them
    assert (cache.used, cache.cached, cache.free) == (8, 5, 7)
    seq = cache.open()
    append(cache, seq, range(50, 62))
    check_rows(cache, holder)
    check_rows(cache, seq)
    check_books(cache, [holder, seq])


def test_context_full_tells_the_numbers_and_changes_nothing():
    cache = make_cache(16)
    cache.close(start(cache, range(4)))
    seq = start(cache, range(50, 60))
    with pytest.raises(ContextFull, match=r"context full: 10 used \+ 7 asked > 16"):
        cache.reserve(seq, 7)
    assert (cache.used, cache.cached, cache.free) == (10, 4, 2)
    assert cache.shared_prefix(range(4)) == 4
    append(cache, seq, range(6))
    check_rows(cache, seq)


def test_rollback_gives_reserved_rows_back():
    cache = make_cache()
    seq = start(cache, range(3))
    cache.reserve(seq, 5)
    assert cache.used == 8
    cache.rollback(seq)
    assert (cache.used, len(seq.rows)) == (3, 3)


def test_clear_forgets_prefixes_and_leaves_open_sequences():
    cache = make_cache()
    cache.close(start(cache, range(10)))
    seq = start(cache, [*range(5), 60])
    cache.clear()
    assert (cache.used, cache.cached) == (6, 0)
    check_rows(cache, seq)
    cache.close(seq)
    assert cache.shared_prefix([*range(5), 60]) == 6


def test_bytes_are_counted_by_device():
    cache = make_cache(64, layers=3)
    cache.close(start(cache, range(10)))
    start(cache, range(50, 55))
    assert cache.bytes_by_device() == {"fake:0": 2 * 15 * 16, "fake:1": 15 * 16}
    assert cache.capacity_by_device() == {"fake:0": 2 * 64 * 16, "fake:1": 64 * 16}


# -- where rows lie --


def test_one_sequence_lies_in_one_piece_from_row_0():
    cache = make_cache(4096)
    seq = start(cache, range(100))
    for token in range(500):
        append(cache, seq, [token])
    assert seq.rows.tolist() == list(range(600))


def test_sequences_that_grow_together_lie_in_long_pieces():
    cache = make_cache(4096)
    sequences = [start(cache, [base] * 30) for base in range(4)]
    for token in range(100):
        for seq in sequences:
            append(cache, seq, [token])
    assert max(runs(seq.rows) for seq in sequences) <= 4
    assert max(seq.rows.max() for seq in sequences) < 1200  # and low


def test_scattered_free_rows_are_used_longest_piece_first():
    cache = make_cache(16)
    by_row = {int(seq.rows[0]): seq for seq in [start(cache, [i]) for i in range(16)]}
    for i in (1, 4, 5, 6, 9, 10, 15):
        cache.close(by_row[i], keep=False)
    seq = cache.open()
    assert cache.reserve(seq, 5).tolist() == [4, 5, 6, 9, 10]


# -- misuse --


@pytest.mark.parametrize(
    "misuse",
    [
        lambda c, s: c.reserve(s, -1),
        lambda c, s: c.commit(s, [1]),
        lambda c, s: c.truncate(s, -1),
        lambda c, s: c.truncate(s, 11),
        lambda c, s: c.shift(s, 5, 4),
        lambda c, s: c.shift(s, -1, 4),
        lambda c, s: c.shift(s, 5, 11),
        lambda c, s: (c.reserve(s, 2), c.reserve(s, 2)),
        lambda c, s: (c.reserve(s, 2), c.truncate(s, 1)),
        lambda c, s: (c.reserve(s, 2), c.commit(s, [1])),
        lambda c, s: (c.close(s), c.close(s)),
        lambda c, s: (c.close(s), c.reserve(s, 1)),
        lambda c, s: (c.close(s), c.truncate(s, 0)),
        lambda c, s: (c.close(s), c.fork(s)),
        lambda c, s: (c.close(s), s.rows),
        lambda c, s: c._pool.release(np.array([40], np.int32)),
        lambda c, s: c._pool.hold(np.array([40], np.int32)),
    ],
)
def test_misuse_is_a_bug(misuse):
    cache = make_cache()
    seq = start(cache, range(10))
    with pytest.raises(AssertionError):
        misuse(cache, seq)


# -- speed --


def fastest(call, repeat: int) -> float:
    best = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def test_a_decode_step_costs_microseconds():
    cache = KVCache(131072, [], None, "model")
    seq = cache.open()

    def steps():
        for _ in range(1000):
            cache.reserve(seq, 1)
            cache.commit(seq, [7])
            assert len(seq.rows)

    assert fastest(steps, 5) / 1000 < 20e-6  # 2e-6 on a quiet core; room for a busy one


@pytest.mark.parametrize("ended", [False, True])
def test_opening_against_ten_thousand_cached_tokens_is_quick(ended):
    cache = KVCache(131072, [], None, "model")
    tokens = list(range(10_001))
    seq = cache.open()
    cache.reserve(seq, len(tokens))
    cache.commit(seq, tokens)
    if ended:
        cache.close(seq)

    def again():
        other = cache.open(tokens)
        assert other.length == 10_000
        cache.close(other)

    assert fastest(again, 5) < 10e-3  # 0.5e-3 on a quiet core


def test_a_view_of_rows_ends_with_the_rows_of_the_step():
    cache = make_cache()
    seq = start(cache, range(5))
    rows = cache.reserve(seq, 3)
    assert seq.rows[-3:].tolist() == rows.tolist()
    write(cache, rows, [7, 8, 9], 5)
    cache.commit(seq, np.array([7, 8, 9], np.int32))
    assert seq.tokens[-3:] == [7, 8, 9]
    assert all(type(token) is int for token in seq.tokens)
