"""Device memory in pieces: what is handed out never overlaps, and what comes back is handed out again."""

from __future__ import annotations

import itertools
import random

import pytest
from layerlift.backends.cuda_arena import PIECE, Arena


class Driver:
    def __init__(self, capacity=1 << 30):
        self.capacity, self.held, self.next = capacity, {}, 1 << 20

    def malloc(self, nbytes):
        if sum(self.held.values()) + nbytes > self.capacity:
            raise MemoryError(nbytes)
        address, self.next = self.next, self.next + nbytes + 512
        self.held[address] = nbytes
        return address

    def free(self, address):
        del self.held[address]


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def arena(driver):
    return Arena(driver.malloc, driver.free)


def test_what_was_reserved_is_handed_out_without_the_driver(driver, arena):
    arena.reserve(10 << 20)
    kept = [arena.take(1 << 20) for _ in range(10)]
    assert list(driver.held.values()) == [10 << 20]
    assert len({b.ptr for b in kept}) == 10
    assert arena.take(1).ptr
    assert list(driver.held.values()) == [10 << 20, PIECE]


def test_random_buffers_never_overlap_and_everything_comes_back(driver, arena):
    rng, live = random.Random(3), []
    for _ in range(3000):
        if live and rng.random() < 0.5:
            live.pop(rng.randrange(len(live)))
        else:
            live.append(arena.take(rng.choice([1, 500, 4096, 70000, rng.randrange(1, 1 << 20)])))
        spans = sorted((b.ptr, b.ptr + b.nbytes) for b in live)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    live.clear()
    arena.close()
    assert not driver.held


def test_neighbours_that_come_back_are_one_again(driver, arena):
    arena.reserve(3 << 20)
    for order in ([0, 1, 2], [2, 1, 0], [0, 2, 1]):
        buffers = [arena.take(1 << 20) for _ in range(3)]
        for i in order:
            buffers[i] = None
        assert arena.take(3 << 20).nbytes == 3 << 20
    assert len(driver.held) == 1


def test_where_a_whole_piece_is_too_much_what_is_asked_for_is_taken():
    driver = Driver(capacity=1 << 20)
    arena = Arena(driver.malloc, driver.free)
    kept = arena.take(700 << 10)
    with pytest.raises(MemoryError):
        arena.take(400 << 10)
    assert sum(driver.held.values()) == kept.nbytes


def test_buffers_that_outlive_the_arena_give_their_piece_back_when_they_go(driver, arena):
    buffer = arena.take(5)
    arena.close()
    assert driver.held
    del buffer
    assert not driver.held
