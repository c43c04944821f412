"""The forward pass: placing layers, crossing devices, and what a file must hold."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from fake import HOST, FakeBackend, HostBackend, fake_gpu, open_fake
from layerlift.backends.base import Span, Step
from layerlift.bench.synth import SHAPES
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.model import Model, model_sizes
from layerlift.runtime.models import architecture, known
from layerlift.runtime.scheduler import plan_layers

N_LAYERS = SHAPES["tiny"].layers


def planned(path, ngl, devices, **options) -> Model:
    gguf = open_gguf(path)
    config = architecture(gguf).read_config(gguf)
    plan = plan_layers(model_sizes(gguf, config, "f32"), ngl, 512, devices, host=HOST)
    return Model(gguf, plan, open_device=open_fake, **options)


def step_over(model: Model, tokens, cache=None, *, outputs=None) -> Step:
    cache = cache or model.new_cache(64, "f32")
    sequence = cache.open()
    rows = cache.reserve(sequence, len(tokens))
    n = len(tokens)
    outputs = np.arange(n) if outputs is None else np.array(outputs)
    return Step(
        np.array(tokens, np.int32),
        np.arange(n, dtype=np.int32),
        rows.copy(),
        (Span(0, n, sequence.rows.copy()),),
        outputs.astype(np.int32),
        cache.stores,
    )


def logits_of(model: Model, step: Step) -> np.ndarray:
    backend, logits = model.logits(*model.forward(step))
    return np.asarray(backend.download(logits))


@pytest.fixture(scope="module")
def prompt():
    return [5, 17, 123, 42, 7, 250, 3]


@pytest.fixture(scope="module")
def on_host(tiny, prompt):
    with planned(tiny("F32"), 0, []) as model:
        return logits_of(model, step_over(model, prompt))


@pytest.mark.parametrize("ngl", range(N_LAYERS + 2))
def test_layers_on_a_device_give_the_logits_of_the_host(tiny, prompt, on_host, ngl):
    with planned(tiny("F32"), ngl, [fake_gpu()]) as model:
        assert np.array_equal(logits_of(model, step_over(model, prompt)), on_host)


@pytest.mark.parametrize("ngl", range(N_LAYERS + 2))
def test_a_step_crosses_once_up_and_once_down(tiny, prompt, ngl):
    with planned(tiny("F32"), ngl, [fake_gpu()]) as model:
        step = step_over(model, prompt, outputs=[6])
        fakes = [b for b in model.backends if isinstance(b, FakeBackend)]
        for fake in fakes:
            fake.ups = fake.downs = 0
        logits_of(model, step)
        assert len(fakes) == (ngl > 0)
        for fake in fakes:
            # With everything on the device token ids go up (which NumPy needs no upload for) and logits come down.
            assert (fake.ups, fake.downs) == ((0, 1) if ngl > N_LAYERS else (1, 1))


def test_two_devices_share_the_layers(tiny, prompt, on_host):
    with planned(tiny("F32"), 999, [fake_gpu(0), fake_gpu(1)]) as model:
        assert sum(isinstance(b, FakeBackend) for b in model.backends) == 2
        assert np.array_equal(logits_of(model, step_over(model, prompt)), on_host)


def test_only_the_wanted_rows_reach_the_head(tiny, prompt, on_host):
    with planned(tiny("F32"), 0, []) as model:
        assert np.allclose(logits_of(model, step_over(model, prompt, outputs=[2, 6])), on_host[[2, 6]], atol=1e-4)
        _, x = model.forward(step_over(model, prompt, outputs=[]))
        assert x.shape == (0, model.config.d_model)


def test_a_ragged_batch_equals_its_sequences_alone(tiny, prompt):
    others = [[9, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [44]]
    with planned(tiny("F32"), 0, []) as model:
        alone = [logits_of(model, step_over(model, tokens)) for tokens in (prompt, *others)]
        cache = model.new_cache(64, "f32")
        steps = [step_over(model, tokens, cache) for tokens in (prompt, *others)]
        starts = np.cumsum([0, *(len(s.tokens) for s in steps)])
        together = Step(
            np.concatenate([s.tokens for s in steps]),
            np.concatenate([s.positions for s in steps]),
            np.concatenate([s.rows for s in steps]),
            tuple(Span(int(a), len(s.tokens), s.spans[0].rows) for a, s in zip(starts, steps, strict=False)),
            np.arange(starts[-1], dtype=np.int32),
            cache.stores,
        )
        assert np.allclose(logits_of(model, together), np.concatenate(alone), atol=1e-4)


@pytest.mark.parametrize("fmt", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K"])
def test_every_format_runs(tiny, prompt, fmt):
    with planned(tiny(fmt), 0, []) as model:
        logits = logits_of(model, step_over(model, prompt))
        assert np.isfinite(logits).all()
        assert logits.std() > 0.1


def test_known_architectures_are_the_files():
    assert {"llama", "qwen2"} <= set(known())
    assert "config" not in known()


def test_the_model_gives_back_its_devices(tiny):
    model = planned(tiny("F32"), 1, [fake_gpu()])
    assert {type(b) for b in model.backends} == {FakeBackend, HostBackend}
    model.close()
    assert not model.backends


def test_without_native_kernels_numpy_computes_and_says_why_once(tiny, monkeypatch):
    monkeypatch.setenv("LAYERLIFT_ISA", "numpy")
    lines = []
    with Model.load(tiny("F32"), ngl=0, notify=lines.append) as model:
        assert [b.name for b in model.backends] == ["numpy"]
    assert len(lines) == 1
    assert lines[0].startswith("computing with NumPy, which is slow: ")
    assert "LAYERLIFT_ISA=numpy" in lines[0]


def test_without_a_gpu_wanted_no_driver_is_loaded(tiny):
    code = """
import sys, layerlift
layerlift.LLM(sys.argv[1], gpu="disable", threads=1).close()
print(sorted({"pyopencl", "cupy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, tiny()], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
