"""A prompt's costs by context are taken over a cache whose rows all hold something."""

from __future__ import annotations

import numpy as np


def test_costs_are_measured_behind_nothing_and_up_to_the_last_step(tiny):
    from layerlift.bench.context import costs
    from layerlift.runtime.model import Model

    with Model.load(tiny("Q8_0"), ngl=0, gpu="disable", threads=1) as model:
        found = costs(model, 64, 8)
    assert [c.before for c in found] == [0, 8, 16, 32, 56]
    assert all(c.step > 0 and c.attention > 0 for c in found)


def test_every_row_of_the_cache_is_filled(tiny):
    from layerlift.bench.context import _fill
    from layerlift.runtime.model import Model

    with Model.load(tiny("Q8_0"), ngl=0, gpu="disable", threads=1) as model:
        cache = model.new_cache(21)
        for store in cache.stores:
            for part in store.read(np.arange(21, dtype=np.int32)):
                assert not part.any()
        _fill(model, cache, 8)
        for store in cache.stores:
            for part in store.read(np.arange(21, dtype=np.int32)):
                assert part.reshape(21, -1).any(axis=1).all()
