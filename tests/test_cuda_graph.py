"""Decoding by CUDA graphs equals decoding launch by launch, on a CUDA that is not there."""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import fake_cuda
import numpy as np
import pytest
from decoding import TOKENS, logits_of, step_of, stores
from layerlift.backends.base import Draw, Span, Step
from layerlift.backends.cuda_staging import SLOTS
from layerlift.backends.gpu_replay import SHORTEST, bucket, filled_up, is_decode
from layerlift.runtime.engine import Engine
from layerlift.runtime.model import Model
from layerlift.runtime.request import Request
from layerlift.runtime.sampler import Sampling
from paper import forward
from test_cuda_backend import SMALL


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path))
    monkeypatch.setattr("layerlift.backends.cuda._tuning", lambda properties: SMALL)
    with fake_cuda.installed() as fake:
        yield fake


@contextmanager
def on_device(tiny):
    """An engine over a model that is whole on the fake device."""
    with (
        Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model,
        Engine(model, context=100, kv_dtype="f32") as engine,
    ):
        yield engine


def test_a_sequence_by_graphs_has_the_papers_logits(tiny, cuda):
    want = forward(tiny("F32"), TOKENS)
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv = stores(model)
        found = [logits_of(model, step_of([t], [i], kv))[0] for i, t in enumerate(TOKENS)]
    np.testing.assert_allclose(found, want, atol=2e-4 * np.abs(want).max())
    # The first step teaches the rope, the second rehearses; all others are replayed.
    assert cuda.calls["graphLaunch"] == len(TOKENS) - 2


def test_a_token_takes_five_kernels_a_layer(tiny, cuda):
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv = stores(model)
        for i in range(3):
            cuda.ran.clear()
            model.answer(step_of([TOKENS[i]], [i], kv), ())[1].wait()
    layer = ["qkv", "attend_few", "project", "gated", "project"]
    assert cuda.ran == ["embed", *layer * len(kv), "project", "sample_slices", "sample_pick"]
    assert cuda.dependent > 2 * len(layer) * len(kv)


def test_two_sequences_with_lengths_of_their_own(tiny, cuda):
    want = forward(tiny("F32"), TOKENS)
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv = stores(model)
        for i in range(3):
            logits_of(model, step_of([TOKENS[i]], [i], kv))
        for i in range(3, len(TOKENS)):
            found = logits_of(model, step_of([TOKENS[i], TOKENS[i - 3]], [i, i - 3], kv))
            np.testing.assert_allclose(found, want[[i, i - 3]], atol=2e-4 * np.abs(want).max())
        (graphs,) = model.backends[0]._kept.values()
        assert [key[1] for key in graphs] == [1, 2]


GREEDY, DRAWN = Draw(), Draw(0.8, 40, 0.95, 0.05, seed=5)
GOES_ON = [
    pytest.param([GREEDY], id="greedy"),
    pytest.param([DRAWN], id="drawn"),
    pytest.param([replace(DRAWN, seed=7), GREEDY, replace(DRAWN, top_k=0, top_p=1.0, min_p=0.0)], id="batch"),
]


def chain(model, draws, count, spent=lambda: None):
    """Tokens of sequences that go on by themselves, [count, n]; `spent` is called after each."""
    kv, tokens, found = stores(model, 40 * len(draws)), None, []
    for i in range(count):
        step = step_of(TOKENS[: len(draws)], [i] * len(draws), kv)
        step = replace(step, tokens=tokens) if i else step
        _, picked = model.answer(step, [replace(draw, number=i) for draw in draws])
        tokens = picked.ids
        found.append(picked.wait().tolist())
        spent()
    return found


@pytest.mark.parametrize("draws", GOES_ON)
def test_a_token_is_one_graph_one_copy_up_and_one_down_and_the_same_as_launch_by_launch(tiny, cuda, draws):
    seen: list[Counter[str]] = []
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        found = chain(model, draws, 6, lambda: seen.append(Counter(cuda.calls)))
        model.backends[0].replays = False
        assert chain(model, draws, 6) == found
        assert all(0 <= token < model.config.vocab_size for tokens in found for token in tokens)
    for before, after in pairwise(seen[2:]):  # the first teaches the rope, the second rehearses, the third is recorded
        spent = after - before
        assert spent == {"graphLaunch": 1, "memcpyAsync": 2, "eventSynchronize": 1}


def test_a_token_that_the_host_chooses_takes_the_logits_down_and_no_launch_beside_the_graph(tiny, cuda):
    want = forward(tiny("F32"), TOKENS)
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv, (backend,) = stores(model), model.backends
        for i, token in enumerate(TOKENS):
            before = Counter(cuda.calls)
            logits, picked = model.answer(step_of([token], [i], kv), None)
            np.testing.assert_allclose(backend.download(logits)[0], want[i], atol=2e-4 * np.abs(want).max())
            assert picked is None
        spent = Counter(cuda.calls) - before
        assert spent == {"graphLaunch": 1, "memcpyAsync": 2, "streamSynchronize": 1}


def test_tokens_on_the_device_go_on_in_another_graph(tiny, cuda, monkeypatch):
    monkeypatch.setattr("layerlift.backends.gpu_replay.SHORTEST", 4)
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        (backend,), seen = model.backends, []
        found = chain(model, [GREEDY], 12, lambda: seen.append([list(steps) for steps in backend._kept.values()]))
        backend.replays = False
        assert chain(model, [GREEDY], 12) == found
    assert [key[1:3] for key in seen[-1][0]] == [(1, 4), (1, 8), (1, 16)]


def test_a_token_that_nobody_waited_for_does_not_hold_up_the_next(tiny, cuda):
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv = stores(model)
        for _ in range(2 * SLOTS):
            model.answer(step_of([TOKENS[0]], [0], kv), ())
        _, first = model.answer(step_of([TOKENS[0]], [0], kv), ())
        _, second = model.answer(step_of([TOKENS[1]], [1], kv), ())
        found = [int(first.wait()[0]), int(second.wait()[0])]
    assert found == forward(tiny("F32"), TOKENS)[:2].argmax(-1).tolist()


def test_the_engine_spends_no_more_on_a_token(tiny, cuda):
    spent = []
    with on_device(tiny) as engine:
        for count in (4, 6, 11):
            before = Counter(cuda.calls)
            engine.submit(Request(TOKENS[:6], Sampling(seed=3), max_tokens=count, ignore_eos=True)).result()
            spent.append(Counter(cuda.calls) - before)
    assert spent[2] - spent[1] == {"graphLaunch": 5, "memcpyAsync": 10, "eventSynchronize": 5}


def test_a_graph_ends_with_its_cache_and_never_serves_another(tiny, cuda):
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv, (backend,) = stores(model), model.backends
        for i in range(3):
            logits_of(model, step_of([TOKENS[i]], [i], kv))
        other = stores(model)
        first = logits_of(model, step_of([TOKENS[0]], [0], other))[0]
        want = forward(tiny("F32"), TOKENS[:1])[0]
        np.testing.assert_allclose(first, want, atol=2e-4 * np.abs(want).max())
        assert len(backend._kept) == 2
        del kv
        assert len(backend._kept) == 1


def test_only_so_many_graphs_are_kept_and_what_runs_is_waited_for(tiny, cuda, monkeypatch):
    monkeypatch.setattr("layerlift.backends.gpu_replay.KEPT", 1)
    want = forward(tiny("F32"), TOKENS)
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv, (backend,) = stores(model), model.backends
        for i in range(3):
            logits_of(model, step_of([TOKENS[i]], [i], kv))
        for i in (3, 4):
            found = logits_of(model, step_of([TOKENS[i], TOKENS[i - 3]], [i, i - 3], kv))
            np.testing.assert_allclose(found, want[[i, i - 3]], atol=2e-4 * np.abs(want).max())
        (graphs,) = backend._kept.values()
        assert [key[1] for key in graphs] == [2]
        assert len(cuda._graphs) == 1, "the graph of one token is gone from the driver"


def test_what_cannot_be_recorded_runs_launch_by_launch(tiny, cuda):
    want = forward(tiny("F32"), TOKENS)
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv, (backend,) = stores(model), model.backends
        for i in range(2):
            logits_of(model, step_of([TOKENS[i]], [i], kv))
        backend._kept_pool._idle.clear()  # the recording would have to ask for memory
        found = logits_of(model, step_of([TOKENS[2]], [2], kv))[0]
        np.testing.assert_allclose(found, want[2], atol=2e-4 * np.abs(want).max())
        assert cuda.recording is None
        for i in range(3, 6):
            found = logits_of(model, step_of([TOKENS[i]], [i], kv))[0]
            np.testing.assert_allclose(found, want[i], atol=2e-4 * np.abs(want).max())
        assert cuda.calls["graphLaunch"] == 2


def test_a_driver_that_refuses_graphs_gets_plain_launches_in_them_and_then_none(tiny, cuda):
    want = forward(tiny("F32"), TOKENS)
    cuda.fail["graphInstantiate"] = [801, 801]
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv, (backend,) = stores(model), model.backends
        seen = []
        for i in range(8):
            found = logits_of(model, step_of([TOKENS[i]], [i], kv))[0]
            np.testing.assert_allclose(found, want[i], atol=2e-4 * np.abs(want).max())
            seen.append((backend._launcher.dependent, backend.replays))
    # The third step is the first to be recorded, the fifth the second: one rehearses in between.
    assert seen == [(True, True)] * 2 + [(False, True)] * 2 + [(False, False)] * 4
    assert "graphLaunch" not in cuda.calls


def test_without_memory_for_graphs_the_answer_is_the_same(tiny, cuda):
    want = forward(tiny("F32"), TOKENS)
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv, (backend,) = stores(model), model.backends
        logits_of(model, step_of([TOKENS[0]], [0], kv))
        backend._kept_pool.take = lambda nbytes: backend._alloc(1 << 40)
        for i in range(1, 4):
            found = logits_of(model, step_of([TOKENS[i]], [i], kv))[0]
            np.testing.assert_allclose(found, want[i], atol=2e-4 * np.abs(want).max())
        assert "graphLaunch" not in cuda.calls


def test_the_engine_answers_as_without_a_gpu(tiny, cuda):
    def answer(**options):
        with (
            Model.load(tiny("F32"), context=100, **options) as model,
            Engine(model, context=100, kv_dtype="f32") as engine,
        ):
            request = Request(TOKENS[:6], Sampling(temperature=0), max_tokens=8, ignore_eos=True)
            return engine.submit(request).result().tokens

    assert answer(ngl=999, gpu="nvidia") == answer(ngl=0)
    assert cuda.calls["graphLaunch"] >= 5


def test_drawn_tokens_repeat_with_their_seed_whatever_else_is_in_the_steps(tiny, cuda):
    drawn = Request(TOKENS[:6], Sampling(seed=11), max_tokens=6, ignore_eos=True)
    other = Request(TOKENS[:5], Sampling(temperature=0.9, n_probs=2, seed=4), max_tokens=4, ignore_eos=True)
    with on_device(tiny) as engine:
        alone = [t.id for t in engine.submit(drawn).result().tokens]
        assert cuda.ran.count("sample_pick") >= len(alone)
        together = [engine.submit(request) for request in (drawn, other)]
        assert [t.id for t in together[0].result().tokens] == alone
        assert all(t.logprob is not None for t in together[1].result().tokens), "these need all logits on the host"
        again = Request(TOKENS[:6], Sampling(seed=12), max_tokens=6, ignore_eos=True)
        assert [t.id for t in engine.submit(again).result().tokens] != alone


def test_the_next_step_starts_before_the_host_has_the_token(tiny, cuda):
    with on_device(tiny) as engine:
        seen: list[tuple[int, int]] = []
        take = cuda.eventSynchronize

        def waiting(event):
            seen.append((len(cuda._pending), cuda._events[event]))
            take(event)

        cuda.eventSynchronize = waiting
        engine.submit(Request(TOKENS[:6], Sampling(seed=3), max_tokens=5, ignore_eos=True)).result()
    assert len(seen) == 5
    assert all(queued > before for queued, before in seen[:-1]), "the device had nothing to go on with"
    assert seen[-1][0] == seen[-1][1], "a step behind the last token"


def test_memory_is_weights_cache_and_a_little_and_closing_gives_it_back(tiny, cuda):
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100) as model:
        kv = stores(model)
        for i in range(4):
            logits_of(model, step_of([TOKENS[i]], [i], kv))
        assert cuda.in_use <= 1.03 * model.gguf.nbytes + 100 * sum(s.row_nbytes for s in kv) + (64 << 20)
        del kv
    del model
    gc.collect()
    assert not cuda.in_use


def test_the_driver_is_asked_for_memory_once_before_the_model_is_loaded(tiny, cuda):
    with on_device(tiny) as engine:
        assert cuda.calls["malloc"] == 1
        requests = [Request(TOKENS[: 3 + i] * 5, Sampling(), max_tokens=4, ignore_eos=True) for i in range(2)]
        for stream in [engine.submit(request) for request in requests]:
            stream.result()
        assert cuda.calls["malloc"] == 1


def test_a_device_without_the_memory_of_the_plan_takes_fewer_layers(tiny, cuda):
    cuda.fail["malloc"] = [fake_cuda.OUT_OF_MEMORY]
    said: list[str] = []
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100, notify=said.append) as model:
        assert model.plan.layers_gpu < model.config.n_layers or model.plan.head_on.backend != "cuda"
        want = forward(tiny("F32"), TOKENS[:1])
        found = logits_of(model, step_of([TOKENS[0]], [0], stores(model)))
        np.testing.assert_allclose(found, want, atol=2e-4 * np.abs(want).max())
    assert any("no memory for" in line and "trying again" in line for line in said)


@pytest.mark.parametrize(("rows", "expected"), [(1, SHORTEST), (256, 256), (257, 512), (131072, 131072)])
def test_buckets_double(rows, expected):
    assert bucket(rows, SHORTEST) == expected


@pytest.mark.slow
def test_three_sequences_replay_the_graph_of_four_and_no_row_is_touched_that_is_not_theirs(tiny, cuda):
    want = forward(tiny("F32"), TOKENS)
    with Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=130) as model:
        kv = stores(model, 130)
        for i in range(6):
            found = logits_of(model, step_of([TOKENS[i]] * (3 if i % 2 else 4), [i] * (3 if i % 2 else 4), kv))
            np.testing.assert_allclose(found, np.tile(want[i], (len(found), 1)), atol=2e-4 * np.abs(want).max())
            if i % 2:  # the fourth sequence has missed this token
                logits_of(model, step_of([TOKENS[i]] * 4, [i] * 4, kv))
        (graphs,) = model.backends[0]._kept.values()
        assert [key[1] for key in graphs] == [4]
        assert np.isnan(kv[0].read(np.arange(10, 40, dtype=np.int32))[0]).all()


def test_a_step_is_filled_up_with_its_own_sequences():
    step = step_of([1, 2, 3, 4, 5], [4, 0, 2, 6, 1], [])
    whole = filled_up(step, 8)
    assert is_decode(whole)
    assert whole.positions.tolist() == [4, 0, 2, 6, 1, 4, 0, 2]
    assert [span.start for span in whole.spans] == list(range(8))
    assert all(np.array_equal(whole.spans[i].rows, step.spans[i % 5].rows) for i in range(8))
    assert filled_up(step, 5) is step


def test_only_one_token_of_each_sequence_is_decoding():
    one = step_of([1, 2], [3, 4], [])
    assert is_decode(one)
    prompt = Step(one.tokens, one.positions, one.rows, (Span(0, 2, one.rows),), one.outputs, [])
    assert not is_decode(prompt)
    assert not is_decode(step_of([], [], []))
