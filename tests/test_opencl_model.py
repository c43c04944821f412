"""Whole models on OpenCL: the same logits, few launches, one copy up and one down for each token."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from layerlift.backends.base import DeviceOutOfMemory, Span, Step
from layerlift.backends.opencl import OpenCLBackend
from layerlift.runtime.engine import Engine
from layerlift.runtime.model import Model
from layerlift.runtime.perplexity import perplexity
from layerlift.runtime.request import Request
from layerlift.runtime.sampler import Sampling
from opencl_here import opencl_device
from paper import forward

TOKENS = [1, 7, 250, 33, 4, 99, 12, 8, 3, 200, 41]


@dataclass
class Traffic:
    up: int = 0
    down: int = 0
    allocated: int = 0


@pytest.fixture
def traffic(monkeypatch):
    """Counts what passes the driver."""
    counted = Traffic()

    def counting(hook, name):
        def wrapped(*args):
            setattr(counted, name, getattr(counted, name) + 1)
            return hook(*args)

        return wrapped

    for hook, name in (("_copy_in", "up"), ("_copy_out", "down"), ("_alloc", "allocated")):
        monkeypatch.setattr(OpenCLBackend, hook, counting(getattr(OpenCLBackend, hook), name))
    return counted


def step_of(tokens, before, kv):
    """A step of `tokens` behind `before` rows of one sequence; the last token's logits are wanted."""
    rows = np.arange(before + len(tokens), dtype=np.int32)
    own = rows[before:]
    return Step(np.array(tokens, np.int32), own, own, (Span(0, len(tokens), rows),), own[-1:] - before, kv)


def logits_of(model, step):
    backend, logits = model.logits(*model.forward(step))
    return backend.download(logits)[-1]


@pytest.mark.parametrize("ngl", [0, 1, 2, 3])
def test_any_number_of_layers_gives_the_papers_logits(tiny, ngl):
    opencl_device()
    path = tiny("F32")
    want = forward(path, TOKENS)
    with Model.load(path, ngl=ngl, gpu="opencl", context=32) as model:
        assert len(model.backends) == (1 if ngl in (0, 3) else 2)
        kv = [
            backend.kv_alloc(32, model.config.n_kv_heads, model.config.head_dim, "f32") for backend in kv_places(model)
        ]
        first = logits_of(model, step_of(TOKENS[:10], 0, kv))  # more tokens than the fused products take
        second = logits_of(model, step_of(TOKENS[10:], 10, kv))
    np.testing.assert_allclose(first, want[9], atol=2e-4 * np.abs(want).max())
    np.testing.assert_allclose(second, want[10], atol=2e-4 * np.abs(want).max())


def kv_places(model):
    return [stage.backend for stage in model.stages for _ in stage.blocks]


def test_a_token_costs_five_launches_a_layer_and_one_copy_each_way(tiny, traffic):
    opencl_device()
    with Model.load(tiny("F32"), ngl=999, gpu="opencl", context=32) as model:
        (backend,) = model.backends
        assert isinstance(backend, OpenCLBackend)
        kv = [place.kv_alloc(32, model.config.n_kv_heads, model.config.head_dim) for place in kv_places(model)]
        for position, token in enumerate(TOKENS):
            if position == 3:  # the first tokens allocate
                before, launches = Traffic(traffic.up, traffic.down, traffic.allocated), backend.launches
            on, logits = model.logits(*model.forward(step_of([token], position, kv)))
            on.pick(logits).wait()
        tokens = len(TOKENS) - 3
        assert backend.launches - launches == tokens * (5 * len(kv) + 3)
        assert (traffic.up - before.up, traffic.down - before.down) == (tokens, tokens)
        assert traffic.allocated == before.allocated


def test_the_engine_runs_many_sequences_and_shifts(tiny):
    opencl_device()
    prompts = [TOKENS[:3], TOKENS[2:9], TOKENS[5:]]
    answers = []
    for gpu in ("disable", "opencl"):
        with Model.load(tiny("F32"), ngl=999, gpu=gpu) as model, Engine(model, context=64, kv_dtype="f32") as engine:
            requests = [Request(p, sampling=Sampling(temperature=0), max_tokens=6, ignore_eos=True) for p in prompts]
            answers.append([stream.result().tokens for stream in [engine.submit(request) for request in requests]])
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_default_models_answers_equal_the_cpus(default_model):
    opencl_device()
    prompts = ["The capital of France is", "Once upon a time", "def fibonacci(n):"]
    answers = []
    for gpu in ("disable", "opencl"):
        with Model.load(default_model, ngl=999, gpu=gpu) as model, Engine(model, context=256) as engine:
            encoded = [model.tokenizer.encode(prompt) for prompt in prompts]
            requests = [Request(tokens, sampling=Sampling(temperature=0), max_tokens=6) for tokens in encoded]
            answers.append([engine.submit(request).result().text for request in requests])
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_models_perplexity_equals_the_cpus(default_model):
    opencl_device()
    text = (Path(__file__).parent.parent / "README.md").read_text()
    found = []
    for gpu in ("disable", "opencl"):
        with Model.load(default_model, ngl=999, gpu=gpu) as model:
            scores = list(perplexity(model, model.tokenizer.encode(text), context=128, batch=128, chunks=2))
            found.append(scores[-1].perplexity)
    assert abs(found[1] / found[0] - 1) < 0.003, found


def test_out_of_memory_at_any_allocation_means_fewer_layers(tiny, monkeypatch):
    opencl_device()
    path, real, calls = tiny("F32"), OpenCLBackend._alloc, []

    def fails_at(place):
        def allocate(self, nbytes):
            calls.append(nbytes)
            if len(calls) == place:
                raise DeviceOutOfMemory(f"{self.device}: no memory for {nbytes} bytes", nbytes=nbytes)
            return real(self, nbytes)

        monkeypatch.setattr(OpenCLBackend, "_alloc", allocate)
        calls.clear()

    fails_at(0)
    Model.load(path, ngl=999, gpu="opencl", context=32).close()
    for place in range(1, len(calls) + 1):
        fails_at(place)
        notices: list[str] = []
        with Model.load(path, ngl=999, gpu="opencl", context=32, notify=notices.append) as model:
            on_gpu = sum(len(stage.blocks) for stage in model.stages if stage.backend.name == "opencl")
            assert model.plan.layers_gpu == on_gpu <= 2
            assert any(backend.name != "opencl" for backend in model.backends)
        assert any("trying again" in line for line in notices), place


def test_a_cache_that_does_not_fit_means_fewer_layers_before_an_engine_starts(tiny, monkeypatch):
    opencl_device()
    real, failures = OpenCLBackend.kv_alloc, [2]  # the second layer's cache finds no memory

    def full_once(self, *args, **kwargs):
        failures[0] -= 1
        if failures[0] == 0:
            raise DeviceOutOfMemory(f"{self.device}: no memory for 4096 bytes", nbytes=4096)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(OpenCLBackend, "kv_alloc", full_once)
    notices: list[str] = []
    with Model.load(tiny("F32"), ngl=2, gpu="opencl", context=32, notify=notices.append) as model:
        assert model.plan.layers_gpu == 1
        with Engine(model, context=32) as engine:
            request = Request(TOKENS[:3], sampling=Sampling(temperature=0), max_tokens=2, ignore_eos=True)
            assert len(engine.submit(request).result().tokens) == 2
    assert "trying again" in notices[0]


@pytest.mark.slow
def test_two_devices_share_the_layers(tiny):
    opencl_device()
    code = """
import sys
from layerlift.runtime.engine import Engine
from layerlift.runtime.model import Model
from layerlift.runtime.request import Request
from layerlift.runtime.sampler import Sampling
places = (
    {"ngl": 0},
    {"ngl": 999, "tensor_split": (1, 1)},
    {"ngl": 999, "main_gpu": 1},
    {"ngl": 1, "main_gpu": 1},
    {"ngl": 2, "tensor_split": (1, 1)},
)
for place in places:
    with Model.load(sys.argv[1], gpu="opencl", context=64, **place) as model:
        with Engine(model, context=64, kv_dtype="f32") as engine:
            request = Request([1, 7, 250, 33, 4], sampling=Sampling(temperature=0), max_tokens=6, ignore_eos=True)
            on = "+".join(sorted(str(b.device) for b in model.backends if b.name == "opencl"))
            print(on, [token.id for token in engine.submit(request).result().tokens], sep="|")
"""
    env = {**os.environ, "POCL_DEVICES": "pthread pthread"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny("F32"))], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    places, answers = zip(*(line.split("|") for line in done.stdout.splitlines()), strict=True)
    assert places == ("", "opencl:0+opencl:1", "opencl:1", "opencl:1", "opencl:0+opencl:1")
    assert len(set(answers)) == 1
