"""The likeliest tokens selected on the device: what a draw sees of them is what it would have taken from all."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.backends.base import Backend
from layerlift.backends.numpy_ import NumpyBackend
from layerlift.backends.opencl import OpenCLBackend
from layerlift.runtime.engine import Engine
from layerlift.runtime.errors import BackendError
from layerlift.runtime.model import Model
from layerlift.runtime.request import Request
from layerlift.runtime.sampler import Sampler, Sampling
from opencl_here import opencl_device

RANDOM = np.random.default_rng(7)


@pytest.fixture(scope="module", params=["numpy", "opencl"])
def backend(request):
    if request.param == "numpy":
        yield NumpyBackend.open(NumpyBackend.probe().devices[0])
        return
    opened = OpenCLBackend.open(opencl_device())
    yield opened
    opened.close()


def rows(kind):
    logits = RANDOM.standard_normal((3, 5003)).astype(np.float32)
    if kind == "all equal":
        logits[:] = 1.5
    if kind == "few levels":  # thousands of ties at the bound
        logits = np.round(logits)
    if kind == "one segment":  # all of the best side by side
        logits[:, 1000:1090] += 100
    if kind == "mostly impossible":
        logits[:, 60:] = -np.inf
    if kind == "signed zeros":
        logits[:] = np.where(logits > 0, np.float32(0), np.float32(-0.0))
    return logits


@pytest.mark.parametrize(
    "kind", ["random", "all equal", "few levels", "one segment", "mostly impossible", "signed zeros"]
)
@pytest.mark.parametrize("k", [1, 40, 128])
def test_the_likeliest_come_first_and_of_equals_the_lower_id(backend, kind, k):
    logits = rows(kind)
    ids, values = backend.topk(backend.upload(logits), k)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    want = np.take_along_axis(logits, best, -1)
    np.testing.assert_array_equal(values, want)
    possible = want > -np.inf
    np.testing.assert_array_equal(ids[possible], best[possible])


@pytest.mark.parametrize("width", [1, 7, 255, 256, 257])
def test_any_width_and_a_k_beyond_it(backend, width):
    logits = RANDOM.standard_normal((2, width)).astype(np.float32)
    ids, values = backend.topk(backend.upload(logits), 40)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :40]
    np.testing.assert_array_equal(ids, best)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, best, -1))


def test_a_nan_comes_first_so_that_it_is_noticed(backend):
    logits = RANDOM.standard_normal((1, 600)).astype(np.float32)
    logits[0, 321] = np.nan
    ids, values = backend.topk(backend.upload(logits), 5)
    assert ids[0, 0] == 321
    with pytest.raises(BackendError, match="nan as the logit of token 321"):
        Sampler(Sampling()).sample_among(ids[0], values[0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 5, "top_p": 1.0, "min_p": 0.0},
        {"top_k": 2, "min_keep": 30, "typical_p": 0.5},
        {"temperature": 3.0, "top_k": 128},
        {"samplers": ("top_k", "temperature")},
    ],
)
def test_a_draw_from_the_likeliest_is_the_draw_from_all(backend, settings):
    several, whole = Sampler(Sampling(seed=3, **settings)), Sampler(Sampling(seed=3, **settings))
    assert several.top_k == max(several.sampling.top_k, several.sampling.min_keep)
    for kind in ("random", "few levels", "all equal", "mostly impossible"):
        for row in rows(kind):
            ids, values = backend.topk(backend.upload(row[None]), 128)  # another sequence may ask for more
            assert several.sample_among(ids[0], values[0]) == whole.sample(row)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0},
        {"temperature": 0.0},
        {"repeat_penalty": 1.1},
        {"logit_bias": {3: 1.0}},
        {"n_probs": 0},
        {"mirostat": 2},
        {"samplers": ("top_p", "top_k", "temperature")},
        {"samplers": ("temperature",)},
    ],
)
def test_a_draw_that_needs_more_than_the_likeliest_says_so(settings):
    assert Sampler(Sampling(**settings)).top_k == 0


def test_a_sampled_answer_is_the_same_and_downloads_few_numbers(tiny, monkeypatch):
    opencl_device()
    prompts, answers, downloaded = [[1, 7, 250], [33, 4, 99, 12]], [], []
    real = OpenCLBackend._copy_out
    monkeypatch.setattr(
        OpenCLBackend, "_copy_out", lambda self, h, host: (downloaded.append(host.nbytes), real(self, h, host))
    )
    for select in (True, False):
        with monkeypatch.context() as patch:
            if not select:
                patch.setattr(Sampler, "top_k", property(lambda self: 0))
            with (
                Model.load(tiny("F32"), ngl=999, gpu="opencl", context=64) as model,
                Engine(model, context=64, kv_dtype="f32") as engine,
            ):
                downloaded.clear()
                requests = [Request(p, Sampling(seed=5, top_k=8), max_tokens=6, ignore_eos=True) for p in prompts]
                streams = [engine.submit(request) for request in requests]
                answers.append([[t.id for t in stream.result().tokens] for stream in streams])
                if select:
                    assert max(downloaded) <= 2 * 2 * 8 * 4  # ids and logits of two sequences
    assert answers[0] == answers[1]


def test_the_engine_asks_for_the_most_that_any_sequence_needs(tiny, monkeypatch):
    asked = []
    real = Backend.topk
    monkeypatch.setattr(Backend, "topk", lambda self, x, k: (asked.append(k), real(self, x, k))[1])
    with Model.load(tiny("F32"), ngl=0, gpu="disable") as model, Engine(model, context=64) as engine:
        settings = [Sampling(temperature=0), Sampling(seed=1, top_k=7), Sampling(seed=1, top_k=3)]
        streams = [engine.submit(Request([1, 7], s, max_tokens=4, ignore_eos=True)) for s in settings]
        assert all(len(stream.result().tokens) == 4 for stream in streams)
    assert max(asked) == 7
