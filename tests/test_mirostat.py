"""Mirostat against its paper, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.runtime import samplers as step
from layerlift.runtime.sampler import Sampler, Sampling
from sampling import INF, VOCAB, candidates, logits, softmax


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_mirostat_brings_the_surprise_to_its_target(version, tau):
    values = (-1.5 * np.log(np.arange(1, 5001))).astype(np.float32)  # Zipf's law
    surprise = -np.log2(softmax(values))
    sampler = Sampler(Sampling(temperature=1, mirostat=version, mirostat_tau=tau, seed=3))
    seen = []
    for _ in range(1500):
        token = sampler.sample(values).id
        sampler.accept(token)
        seen.append(surprise[token])
    # The target is of the truncated distribution, whose surprises are lower than the whole one's.
    assert np.mean(seen[300:]) == pytest.approx(tau, rel=0.35)


def test_mirostat_1_chooses_k_by_the_papers_formula():
    values = logits(3, 2000)
    mu = 6.0
    best = np.sort(values)[::-1][:100].astype(np.float64)
    i = np.arange(1, 100)
    t, b = np.log((i + 1) / i), best[:-1] - best[1:]
    s = (t * b).sum() / (t * t).sum()
    k = ((s - 1) * 2**mu / (1 - 2000 ** (1 - s))) ** (1 / s)
    assert step.mirostat_1(*candidates(values), mu, 2000)[0].size == max(1, int(k))


@pytest.mark.parametrize("values", [np.zeros(500), [3.0], [0.0] + [-INF] * 20, [1000.0, -1000.0]])
@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_survives_extreme_logits(values, version):
    values = np.array(values, np.float32)
    sampler = Sampler(Sampling(mirostat=version, seed=1))
    for _ in range(30):
        found = sampler.sample(values)
        assert values[found.id] > -INF
        sampler.accept(found.id)


def test_mirostat_learns_only_from_what_is_accepted():
    sampler = Sampler(Sampling(mirostat=2, seed=1))
    start = sampler._mu
    token = sampler.sample(logits()).id
    sampler.accept((token + 1) % VOCAB)
    assert sampler._mu == start
