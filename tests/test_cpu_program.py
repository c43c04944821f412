"""A recorded stage gives what its blocks give, and what cannot be recorded runs as it is written."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from layerlift.backends import base, cpu_program
from layerlift.backends.base import Span, Stage, Step
from layerlift.kernels.cpu import native
from layerlift.runtime.model import Model

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.reason() or "built")


@pytest.fixture(params=["Q4_0", "F32"])
def model(request, tiny):
    with Model.load(tiny(request.param), ngl=0, gpu="disable", threads=2) as model:
        yield model


def steps(stores, lengths, n, *, tokens_each=1, seed=0):
    """`n` steps in which sequences of `lengths` rows grow by `tokens_each`; their rows are far apart."""
    rng = np.random.default_rng(seed)
    rows = [np.arange(64 * i, 64 * i + 64, dtype=np.int32) for i in range(len(lengths))]
    lengths = list(lengths)
    for _ in range(n):
        spans, positions, written = [], [], []
        for i in range(len(lengths)):
            before, lengths[i] = lengths[i], lengths[i] + tokens_each
            spans.append(Span(len(positions), tokens_each, rows[i][: lengths[i]]))
            positions += range(before, lengths[i])
            written += rows[i][before : lengths[i]].tolist()
        count = len(positions)
        yield Step(
            rng.integers(0, 250, count, np.int32),
            np.array(positions, np.int32),
            np.array(written, np.int32),
            tuple(spans),
            np.arange(count, dtype=np.int32),
            stores,
        )


def plain(model, step):
    """The blocks one by one, without a program."""
    backend, table = model.embedding
    return base.Backend.run(backend, model.stages[0], backend.embed(table, step.tokens), step)


@pytest.mark.parametrize(("lengths", "tokens_each"), [([0], 1), ([5], 3), ([3, 0, 17], 1), ([2, 9], 2)])
def test_replay_equals_the_blocks_bit_by_bit(model, lengths, tokens_each):
    recorded, written = model.new_cache(256).stores, model.new_cache(256).stores
    for one, other in zip(
        steps(recorded, lengths, 6, tokens_each=tokens_each),
        steps(written, lengths, 6, tokens_each=tokens_each),
        strict=True,
    ):
        got = model.forward(one)[1]
        np.testing.assert_array_equal(got, plain(model, other))
    programs = model.stages[0].backend._programs._found
    assert [type(program) for program in programs.values()] == [cpu_program.Program]
    for a, b in zip(recorded, written, strict=True):
        for x, y in zip(a.read(np.arange(40)), b.read(np.arange(40)), strict=True):
            np.testing.assert_array_equal(x, y)


def test_an_output_stays_what_it_was_when_the_next_step_runs(model):
    first, second = steps(model.new_cache(128).stores, [4], 2)
    got = model.forward(first)[1]
    kept = got.copy()
    model.forward(second)
    np.testing.assert_array_equal(got, kept)


def test_another_cache_is_recorded_anew(model):
    (first,) = steps(model.new_cache(128).stores, [0], 1)
    (second,) = steps(model.new_cache(128).stores, [0], 1)
    model.forward(first)
    np.testing.assert_array_equal(model.forward(second)[1], plain(model, second))
    assert len(model.stages[0].backend._programs._found) == 1


def test_steps_that_want_fewer_outputs_or_have_many_tokens_run_as_written(model):
    stores = model.new_cache(128).stores
    (pair,) = steps(stores, [0], 1, tokens_each=2)
    model.forward(replace(pair, outputs=np.array([1], np.int32)))
    (long,) = steps(stores, [0], 1, tokens_each=cpu_program.MAX_TOKENS + 1)
    model.forward(long)
    assert not model.stages[0].backend._programs._found


@pytest.mark.parametrize("change", ["arithmetic", "primitive", "stale"])
def test_what_cannot_be_recorded_runs_as_written(model, change):
    blocks = model.stages[0].blocks

    def block(b, x, step):
        if change == "arithmetic":
            x = x * np.float32(0.5)
        elif change == "primitive":
            x = b.add(x, x)
        else:  # the residual stream of before the layer, which project_add has overwritten or not, as it likes
            h = b.gated(x, blocks[1].ffn_norm, blocks[1].gate, blocks[1].up, "silu")
            b.gated(x, blocks[1].ffn_norm, blocks[1].gate, blocks[1].up, "gelu")
            x = b.project_add(h, blocks[1].down, x)
        return blocks[1](b, x, step)

    stage = Stage(model.stages[0].backend, (blocks[0], block), 0)
    backend, table = model.embedding
    for one, other in zip(
        steps(model.new_cache(64).stores, [3], 3), steps(model.new_cache(64).stores, [3], 3), strict=True
    ):
        got = backend.run(stage, backend.embed(table, one.tokens), one)
        want = base.Backend.run(backend, stage, backend.embed(table, other.tokens), other)
        np.testing.assert_array_equal(got, want)
    assert list(backend._programs._found.values()) == [None]


def test_programs_go_with_their_stage(model):
    stage = Stage(model.stages[0].backend, model.stages[0].blocks, 0)
    backend, table = model.embedding
    (step,) = steps(model.new_cache(64).stores, [0], 1)
    backend.run(stage, backend.embed(table, step.tokens), step)
    assert backend._programs._found
    del stage
    gc.collect()
    assert not backend._programs._found
