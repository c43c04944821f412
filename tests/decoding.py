"""Steps that decode: one token for each of some sequences, on a model that is whole on one device."""

from __future__ import annotations

import numpy as np
from layerlift.backends.base import Span, Step

TOKENS = [1, 7, 250, 33, 4, 99, 12, 8]


def step_of(tokens, befores, kv):
    """A step of one token for each sequence; sequence i has the cache rows 40 i, 40 i + 1, …"""
    starts = [40 * i for i in range(len(tokens))]
    rows = [np.arange(s, s + before + 1, dtype=np.int32) for s, before in zip(starts, befores, strict=True)]
    own = np.array([r[-1] for r in rows], np.int32)
    spans = tuple(Span(i, 1, r) for i, r in enumerate(rows))
    everywhere = np.arange(len(tokens), dtype=np.int32)
    return Step(np.array(tokens, np.int32), np.array(befores, np.int32), own, spans, everywhere, kv)


def stores(model, capacity=100):
    c = model.config
    return [s.backend.kv_alloc(capacity, c.n_kv_heads, c.head_dim, "f32") for s in model.stages for _ in s.blocks]


def logits_of(model, step):
    backend, logits = model.logits(*model.forward(step))
    return backend.download(logits)
