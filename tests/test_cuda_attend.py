"""Attention of kernels/cuda, run on the CPU by the emulator, is that of float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import Emulator, prelude, read_only
from layerlift.backends.base import AttnSpec
from layerlift.backends.cuda_kernels import AttendFew, AttendMany
from layerlift.backends.gpu_step import StepLayout
from layerlift.backends.opcases import normal, one_step
from layerlift.backends.oracle import exact_attention

STORAGE = (np.float16, np.uint16, np.float32)


def cache(capacity, heads_kv, head_dim, dtype, seed):
    """What is stored, and its values; rows that no span owns are NaN."""
    values = normal(capacity, heads_kv, head_dim, seed=seed)
    if dtype == 1:
        bits = values.view(np.uint32) >> 16
        return bits.astype(np.uint16), (bits << 16).view(np.float32)
    stored = values.astype(STORAGE[dtype])
    return stored, stored.astype(np.float32)


def forget_others(stored, step):
    """Rows that the step does not name become NaN: reading them would show."""
    used = np.unique(np.concatenate([span.rows for span in step.spans]))
    others = np.setdiff1d(np.arange(len(stored)), used)
    stored[others] = 0xFFFF if stored.dtype == np.uint16 else np.nan
    return read_only(stored)


def check_few(lengths, *, head_dim=64, heads=4, heads_kv=1, dtype=0, window=0, softcap=0.0, splits=3, sanitize=False):
    program = AttendFew(head_dim, heads, heads_kv, dtype, warps=2, split_rows=24)
    capacity = sum(before + length for before, length in lengths) + 5
    step = one_step(lengths, capacity)
    (k, k_values), (v, v_values) = (cache(capacity, heads_kv, head_dim, dtype, i) for i in (1, 2))
    k, v, tokens, layout = forget_others(k, step), forget_others(v, step), len(step.tokens), StepLayout(step, [])
    q, o = 2 * normal(tokens, heads * head_dim), np.full((tokens, heads * head_dim), np.nan, np.float32)
    spec = AttnSpec(heads, head_dim**-0.5, window, softcap)
    want = exact_attention(q, k_values, v_values, step, spec)
    parts = np.full(program.parts_shape(tokens, splits), np.nan, np.float32)
    counters = np.zeros(program.counters_shape(tokens), np.int32)
    with Emulator(program.text(prelude=prelude()), sanitize=sanitize) as e:
        for seed in range(4):  # blocks arrive in another order; the counters must be as they were
            o[:] = np.nan
            e.launch(
                "attend_few", program.grid(tokens, splits), program.threads, read_only(q), k, v, o, parts, counters,
                read_only(layout.words), layout.first_at, layout.seen_at, heads, heads_kv, spec.scale, window, softcap,
                splits, None, 0, seed=seed,
            )  # fmt: skip
            error = ((o - want) ** 2).sum() / (want**2).sum()
            assert error < 1e-11, f"nmse {error:.2e}"
            assert not counters.any()


def test_decode_attention_joins_its_parts_in_any_order():
    check_few([(0, 1), (22, 1), (23, 1), (24, 1), (150, 1), (7, 3)])


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [0, 1, 2])
@pytest.mark.parametrize(
    ("head_dim", "heads", "heads_kv"), [(16, 3, 3), (64, 9, 3), (80, 4, 2), (128, 14, 2), (256, 2, 1)]
)
def test_decode_attention_takes_heads_of_all_sizes(head_dim, heads, heads_kv, dtype):
    check_few([(33, 1), (101, 1)], head_dim=head_dim, heads=heads, heads_kv=heads_kv, dtype=dtype, sanitize=True)


@pytest.mark.exhaustive
def test_decode_attention_has_windows_and_soft_caps():
    check_few([(90, 1), (5, 1), (40, 2)], window=30, sanitize=True)
    check_few([(90, 1), (5, 1)], softcap=3.0, splits=1, sanitize=True)


def test_a_grid_for_a_long_context_serves_a_short_one():
    check_few([(4, 1)], splits=7)


def check_many(lengths, *, head_dim=64, heads=2, heads_kv=1, window=0, softcap=0.0, warps=2, sanitize=False):
    program = AttendMany(head_dim, warps)
    capacity = sum(before + length for before, length in lengths) + 5
    step = one_step(lengths, capacity)
    (k, k_values), (v, v_values) = (cache(capacity, heads_kv, head_dim, 0, i) for i in (1, 2))
    k, v, tokens, layout = forget_others(k, step), forget_others(v, step), len(step.tokens), StepLayout(step, [])
    q, o = 2 * normal(tokens, heads * head_dim), np.full((tokens, heads * head_dim), np.nan, np.float32)
    spec = AttnSpec(heads, head_dim**-0.5, window, softcap)
    with Emulator(program.text(prelude=prelude()), sanitize=sanitize) as e:
        e.launch(
            "attend_many", program.grid(tokens, heads), program.threads, read_only(q), k, v, o,
            read_only(layout.words), layout.first_at, layout.seen_at, tokens, heads, heads_kv, spec.scale, window,
            softcap, shared=program.shared_nbytes,
        )  # fmt: skip
    want = exact_attention(q, k_values, v_values, step, spec)
    error = ((o - want) ** 2).sum() / (want**2).sum()
    assert error < 5e-7, f"nmse {error:.2e}"


def test_prompt_attention_takes_ragged_spans_across_its_tiles():
    check_many([(0, 35), (70, 20), (3, 1), (0, 41)])


@pytest.mark.exhaustive
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128])
def test_prompt_attention_takes_heads_of_all_sizes(head_dim):
    check_many([(10, 70), (0, 130)], head_dim=head_dim, heads=4, heads_kv=2, warps=4, sanitize=True)


@pytest.mark.exhaustive
def test_prompt_attention_has_windows_and_soft_caps():
    check_many([(100, 60), (0, 90)], window=37, sanitize=True)
    check_many([(10, 70), (2, 5)], softcap=3.0, window=20, sanitize=True)
