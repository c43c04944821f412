"""Decoding by kept launches equals decoding launch by launch, and ends as clearly where something is wrong."""

from __future__ import annotations

import _ctypes
import gc
import weakref

import numpy as np
import pytest
from decoding import TOKENS, logits_of, step_of, stores
from layerlift.backends import gpu_replay
from layerlift.backends.base import BackendError
from layerlift.backends.opencl_launch import driver_enqueue
from layerlift.runtime.model import Model
from opencl_here import opencl_device
from paper import forward

DEVICE_NOT_AVAILABLE, OUT_OF_RESOURCES = -2, -5


@pytest.fixture
def model(tiny):
    opencl_device()
    with Model.load(tiny("F32"), ngl=999, gpu="opencl", context=100) as loaded:
        yield loaded


@pytest.fixture
def want(tiny):
    return forward(tiny("F32"), TOKENS)


def close_to(want):
    return {"desired": want, "atol": 2e-4 * np.abs(want).max()}


def decoded(model, kv, places):
    """Logits of the tokens TOKENS[i] for i in places, one sequence."""
    return [logits_of(model, step_of([TOKENS[i]], [i], kv))[0] for i in places]


def kept_in(model):
    """The keys of the steps that are kept for the only cache."""
    (steps,) = model.backends[0]._kept.values()
    return list(steps)


def watched(backend, answer=None):
    """Counts the launches that are made again; the driver's answer to each is `answer` where there is one."""
    real, seen = backend._enqueue, []

    def enqueue(*call):
        seen.append(call)
        return real(*call) if answer is None else answer

    backend._enqueue = enqueue
    return seen


def test_a_sequence_has_the_papers_logits_and_pyopencl_launches_only_around_the_layers(model, want, monkeypatch):
    (backend,), kv = model.backends, stores(model)
    again, one_by_one, launch = watched(backend), [], backend._launch
    monkeypatch.setattr(backend, "_launch", lambda kernel, *a: (one_by_one.append(kernel.name), launch(kernel, *a))[1])
    # The first step teaches the rope, the second is kept; all others are made again.
    np.testing.assert_allclose(decoded(model, kv, range(2)), **close_to(want[:2]))
    one_by_one.clear()
    np.testing.assert_allclose(decoded(model, kv, range(2, len(TOKENS))), **close_to(want[2:]))
    assert one_by_one == ["embed", "product"] * (len(TOKENS) - 2)
    assert len(again) == 5 * len(kv) * (len(TOKENS) - 2)


def test_sequences_come_and_go_and_a_long_one_is_of_another_bucket(model, want, monkeypatch):
    monkeypatch.setattr(gpu_replay, "SHORTEST", 4)
    kv = stores(model)
    np.testing.assert_allclose(decoded(model, kv, range(3)), **close_to(want[:3]))
    for i in range(3, len(TOKENS)):
        found = logits_of(model, step_of([TOKENS[i], TOKENS[i - 3]], [i, i - 3], kv))
        np.testing.assert_allclose(found, **close_to(want[[i, i - 3]]))
    assert [key[1:3] for key in kept_in(model)] == [(1, 4), (2, 4), (2, 8)]


def test_what_a_step_left_stays_while_the_next_one_runs(model):
    kv = stores(model)
    decoded(model, kv, range(3))
    _, x = model.forward(step_of([TOKENS[3]], [3], kv))
    before = model.backends[0].download(x)
    decoded(model, kv, [4])
    np.testing.assert_array_equal(model.backends[0].download(x), before)


def test_steps_in_tiles_are_not_kept(model):
    kv, t = stores(model, 400), model.backends[0].tuning.few + 1
    for _ in range(2):
        logits_of(model, step_of([5] * t, [1] * t, kv))
    assert not model.backends[0]._kept


def test_a_kept_step_ends_with_its_cache_and_never_serves_another(model, want):
    (backend,), kv = model.backends, stores(model)
    decoded(model, kv, range(3))
    (kept,) = backend._kept[kv[0]].values()
    launches, other = weakref.ref(kept.launches), stores(model)
    del kept
    np.testing.assert_allclose(decoded(model, other, range(2)), **close_to(want[:2]))
    assert len(backend._kept) == 2
    del kv
    gc.collect()
    assert len(backend._kept) == 1
    assert launches() is None, "its kernels hold the old cache's memory"


def test_a_closed_model_keeps_no_launches(tiny):
    opencl_device()
    with Model.load(tiny("F32"), ngl=999, gpu="opencl", context=100) as model:
        kv = stores(model)
        decoded(model, kv, range(3))
        (kept,) = model.backends[0]._kept[kv[0]].values()
        launches = weakref.ref(kept.launches)
        del kept
    gc.collect()
    assert launches() is None


def test_only_so_many_steps_are_kept(model, want, monkeypatch):
    monkeypatch.setattr(gpu_replay, "KEPT", 1)
    kv = stores(model)
    decoded(model, kv, range(3))
    for i in (3, 4):
        found = logits_of(model, step_of([TOKENS[i], TOKENS[i - 3]], [i, i - 3], kv))
        np.testing.assert_allclose(found, **close_to(want[[i, i - 3]]))
    assert [key[1] for key in kept_in(model)] == [2]


def test_a_device_that_disappears_is_one_clear_error(model):
    kv = stores(model)
    decoded(model, kv, range(3))
    watched(model.backends[0], DEVICE_NOT_AVAILABLE)
    with pytest.raises(BackendError, match=r"opencl:0: kernel qkv failed: .*DEVICE_NOT_AVAILABLE") as caught:
        decoded(model, kv, [3])
    assert "\n" not in str(caught.value)


def test_without_memory_for_a_launch_the_step_is_launched_one_by_one(model, want):
    kv = stores(model)
    decoded(model, kv, range(3))
    refused = watched(model.backends[0], OUT_OF_RESOURCES)
    np.testing.assert_allclose(decoded(model, kv, range(3, 6)), **close_to(want[3:6]))
    assert len(refused) == 1, "and later ones are too"


def test_layers_that_send_something_up_by_themselves_are_never_kept(model, want, monkeypatch):
    (backend,), kv = model.backends, stores(model)
    again, attend = watched(backend), backend.attend
    monkeypatch.setattr(backend, "attend", lambda *a: (backend.upload(np.zeros(3, np.float32)), attend(*a))[1])
    np.testing.assert_allclose(decoded(model, kv, range(4)), **close_to(want[:4]))
    assert not again
    assert not kept_in(model)


def test_where_the_drivers_call_cannot_be_reached_pyopencl_launches(tiny, want, monkeypatch):
    opencl_device()
    monkeypatch.setattr("layerlift.backends.opencl.driver_enqueue", lambda cl: None)
    with Model.load(tiny("F32"), ngl=999, gpu="opencl", context=100) as model:
        np.testing.assert_allclose(decoded(model, stores(model), range(4)), **close_to(want[:4]))
        assert not model.backends[0]._kept


@pytest.mark.parametrize("library", [_ctypes.__file__, "no/such/library.so"])
def test_a_library_without_the_call_is_no_error(library):
    class PyOpenCL:
        class _cl:
            __file__ = library

    assert driver_enqueue(PyOpenCL) is None
