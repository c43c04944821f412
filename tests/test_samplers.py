"""The sampler's steps against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.runtime import samplers as step
from sampling import INF, candidates, logits, softmax


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000, 4097, 50_000])
@pytest.mark.parametrize("k", [1, 2, 40, 1000])
def test_top_k_equals_a_full_stable_sort(n, k):
    values = np.round(logits(n, n), 1)  # many ties
    ids, best = step.top_k(np.arange(n, dtype=np.int32), values, k)
    expected = np.argsort(-values, kind="stable")[:k]
    assert ids.tolist() == expected.tolist()
    assert best.tolist() == values[expected].tolist()


def test_top_k_never_keeps_what_is_forbidden():
    values = np.full(5000, -INF, np.float32)
    values[[7, 4999]] = [1, 2]
    ids, _ = step.top_k(np.arange(5000, dtype=np.int32), values, 40)
    assert ids.tolist() == [4999, 7]


def test_top_k_off_keeps_everything():
    assert step.top_k(*candidates([1, 2, 3]), 0)[0].size == 3


def test_ascending_sorts_a_whole_vocabulary_as_a_stable_sort_does():
    values = np.round(logits(1, 9000), 1)
    values[:4] = [0.0, -0.0, -INF, INF]
    assert step.ascending(values).tolist() == np.argsort(values, kind="stable").tolist()


@pytest.mark.parametrize(("p", "kept"), [(0.0, 1), (0.5, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    ids, _ = step.top_p(*candidates(np.log([0.1, 0.5, 0.1, 0.3]) + 1e-7), p)
    assert set(ids.tolist()) == {1, 3, 0, 2} if kept == 4 else ids.tolist() == [1, 3, 0, 2][:kept]


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_top_p_of_a_large_vocabulary_equals_the_definition(scale):
    values = logits(2, 20_000, scale)
    ids, _ = step.top_p(np.arange(20_000, dtype=np.int32), values, 0.9)
    order = np.argsort(-values, kind="stable")
    expected = int(np.argmax(np.cumsum(softmax(values)[order]) >= 0.9)) + 1
    assert abs(ids.size - expected) <= 1  # one token on the edge may fall to rounding
    assert ids.tolist() == order[: ids.size].tolist()


def test_min_p_keeps_those_near_the_best():
    ids, _ = step.min_p(*candidates(np.log([0.6, 0.05, 0.31, 0.04])), 0.5)
    assert ids.tolist() == [0, 2]


def test_typical_keeps_the_surprise_nearest_to_the_entropy():
    # The entropy of these is 1.26 nats; the surprises are 0.69, 1.61, 1.61, 2.30.
    ids, _ = step.typical_p(*candidates(np.log([0.5, 0.2, 0.2, 0.1])), 0.3)
    assert ids.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["top_p", "min_p", "typical_p"])
def test_min_keep_holds_for_every_truncation(name):
    values = np.array([10, 0, -1, -2, -3], np.float32)
    ids, _ = getattr(step, name)(*candidates(values), 0.9, 3)
    assert ids.size == 3


def test_penalties_follow_their_definition():
    values = np.array([2.0, -2.0, 1.0, 5.0], np.float32)
    tokens, counts = np.array([0, 1], np.int32), np.array([1, 3], np.int32)
    _, out = step.penalties(*candidates(values), tokens, counts, repeat=2.0, presence=0.5, frequency=0.25)
    assert out.tolist() == [1 - 0.75, -4 - 1.25, 1, 5]
    assert values.tolist() == [2, -2, 1, 5]


def test_penalties_find_tokens_among_candidates_and_ignore_the_rest():
    ids, values = np.array([30, 10, 20], np.int32), np.array([3, 1, 2], np.float32)
    tokens, counts = np.array([10, 99, 30], np.int32), np.array([2, 5, 1], np.int32)
    _, out = step.penalties(ids, values, tokens, counts, repeat=1.0, presence=0.0, frequency=1.0)
    assert out.tolist() == [2, -1, 2]


def test_draw_never_takes_what_has_no_probability():
    values = np.array([-INF, 0, -INF, 0, -INF], np.float32)
    assert {step.draw(values, u) for u in (0.0, 0.2, 0.499, 0.5, 0.9, 1 - 2**-53)} == {1, 3}
