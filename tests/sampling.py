"""Logits to sample from, and what sampling means in plain NumPy."""

from __future__ import annotations

import math

import numpy as np
from layerlift.runtime.sampler import Sampler

VOCAB = 1000
INF = math.inf


def logits(seed=0, n=VOCAB, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def candidates(values):
    values = np.array(values, np.float32)
    return np.arange(values.size, dtype=np.int32), values


def chosen(sampling, values, count, context=()):
    """The ids of `count` independent draws from the same logits."""
    sampler = Sampler(sampling, context=context)
    return np.array([sampler.sample(values).id for _ in range(count)])


def softmax(values):
    p = np.exp(values.astype(np.float64) - values.max())
    return p / p.sum()
