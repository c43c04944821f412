"""Python's share is measured with native calls that do nothing, and the backend computes again afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.reason() or "built")


def test_native_calls_do_nothing_while_idle_and_compute_again_after(tiny):
    from layerlift.bench.share import idle_backend
    from layerlift.runtime.model import Model

    with Model.load(tiny("Q8_0"), ngl=0, gpu="disable", threads=1) as model:
        (backend,) = model.backends
        x = np.full((1, 8), 2.0, np.float32)
        with idle_backend(backend):
            backend.add(x, x)
            assert backend.pick(np.array([[0.0, 1.0]], np.float32)).wait().tolist() == [0]
            assert backend._lib.ll_program_run(1, 2, 3) == 0
        np.testing.assert_array_equal(backend.add(x, x), x + x)
        assert backend.pick(np.array([[0.0, 1.0]], np.float32)).wait().tolist() == [1]


def test_the_share_is_below_the_whole(tiny):
    from layerlift.bench.share import share
    from layerlift.runtime.engine import Engine
    from layerlift.runtime.model import Model

    with (
        Model.load(tiny("Q8_0"), ngl=0, gpu="disable", threads=1) as model,
        Engine(model, context=64, slots=1) as engine,
    ):
        whole, python = share(engine, 16, repetitions=3)
        assert 0 < python < 2 * whole  # the tiny model is nearly all Python, and a busy machine is noisy
