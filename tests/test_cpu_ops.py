"""The native ops against float64, for every instruction set this machine can run."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.backends.base import AttnSpec, DeviceInfo, Norm, RopeSpec, Span, Step
from layerlift.backends.cpu_ops import NativeOps
from layerlift.backends.numpy_ import NumpyBackend
from layerlift.backends.oracle import exact_activation, exact_attention, exact_norm, exact_rope
from layerlift.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.reason() or "built")
NUMPY = NumpyBackend(DeviceInfo("numpy", 0, "", "cpu", False))
ROUNDING = {"f16": 2**-11, "bf16": 2**-8, "f32": 0.0}


class Ops(NativeOps):
    """The mixin with nothing but a context."""

    def __init__(self, isa: str, threads: int):
        super().__init__(DeviceInfo("cpu", 0, isa, "cpu", False))
        self._lib = native.library()
        self._ctx = self._lib.ll_open(threads, isa.encode())
        self.bind_ops()

    def close(self):
        self._lib.ll_close(self._ctx)


@pytest.fixture(params=[(isa, n) for isa in native.isa_names() for n in (1, 3)], ids=lambda p: f"{p[0]}-{p[1]}")
def ops(request):
    backend = Ops(*request.param)
    yield backend
    backend.close()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def a_step(spans, capacity, seed=0):
    """spans: (tokens already there, tokens of this step, rows in order or scattered)."""
    free = list(range(capacity))
    scattered = np.random.default_rng(seed).permutation(capacity).tolist()
    start, made, rows, positions = 0, [], [], []
    for before, length, order in spans:
        pool = free if order == "in order" else scattered
        mine = [pool.pop(0) for _ in range(before + length)]
        taken = set(mine)
        free = [r for r in free if r not in taken]
        scattered = [r for r in scattered if r not in taken]
        made.append(Span(start, length, np.array(mine, np.int32)))
        rows += mine[before:]
        positions += range(before, before + length)
        start += length
    return Step(
        np.zeros(start, np.int32),
        np.array(positions, np.int32),
        np.array(rows, np.int32),
        tuple(made),
        np.arange(start, dtype=np.int32),
        (),
    )


def filled(ops, step, capacity, n_kv_heads, head_dim, dtype, seed=1):
    """A cache with random rows where the spans look and NaN everywhere else; and its keys and values."""
    kv = ops.kv_alloc(capacity, n_kv_heads, head_dim, dtype)
    kv.k[:], kv.v[:] = (0x7FFF, 0x7FFF) if dtype == "bf16" else (np.nan, np.nan)
    seen = np.unique(np.concatenate([s.rows for s in step.spans]))
    k, v = normal(2, len(seen), n_kv_heads, head_dim, seed=seed)
    if dtype == "bf16":
        kv.write(seen, (k.view(np.uint32) >> 16).astype(np.uint16), (v.view(np.uint32) >> 16).astype(np.uint16))
    else:
        kv.write(seen, k, v)
    stored = [a.astype(np.uint32) << 16 if dtype == "bf16" else a for a in kv.read(np.arange(capacity))]
    exact = [a.view(np.float32) if dtype == "bf16" else a.astype(np.float32) for a in stored]
    return kv, *exact


ATTENTION = {
    "one token": ([(300, 1, "in order")], 8, 2, 64, {}),
    "one token, long context cut among threads": ([(3000, 1, "in order")], 8, 2, 64, {}),
    "first token of all": ([(0, 1, "in order")], 4, 4, 32, {}),
    "odd head size": ([(37, 1, "scattered"), (5, 3, "in order")], 6, 2, 40, {}),
    "head size below a vector": ([(33, 1, "in order"), (2, 20, "scattered")], 4, 2, 10, {}),
    "three heads a group": ([(70, 1, "scattered"), (64, 1, "in order")], 9, 3, 64, {}),
    "five heads a group": ([(70, 1, "scattered"), (0, 21, "in order")], 5, 1, 80, {}),
    "one kv head for 71": ([(65, 2, "in order")], 71, 1, 64, {}),
    "prompt": ([(0, 150, "in order")], 4, 2, 64, {}),
    "prompt after a scattered prefix": ([(130, 67, "scattered")], 4, 4, 128, {}),
    "few queries, blocks cut among threads": ([(1500, 9, "in order")], 2, 1, 64, {}),
    "window": ([(200, 1, "in order"), (100, 90, "scattered")], 4, 2, 64, {"window": 33}),
    "window of one": ([(40, 1, "in order"), (0, 30, "in order")], 4, 2, 64, {"window": 1}),
    "soft cap": ([(200, 1, "in order"), (10, 40, "in order")], 4, 2, 64, {"softcap": 2.0}),
    "ragged batch": (
        [(9, 1, "scattered"), (0, 33, "scattered"), (255, 1, "in order"), (31, 2, "in order")],
        6,
        2,
        64,
        {},
    ),
    "scores far apart": ([(90, 1, "in order"), (10, 40, "in order")], 4, 2, 64, {"scale": 8.0}),
}


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_equals_float64(ops, case, dtype):
    spans, n_heads, n_kv_heads, head_dim, options = ATTENTION[case]
    capacity = sum(before + length for before, length, _ in spans) + 8
    step = a_step(spans, capacity)
    spec = AttnSpec(
        n_heads, options.get("scale", head_dim**-0.5), options.get("window", 0), options.get("softcap", 0.0)
    )
    kv, k, v = filled(ops, step, capacity, n_kv_heads, head_dim, dtype)
    q = normal(len(step.tokens), n_heads * head_dim, seed=2)
    got, want = ops.attend(q, kv, step, spec), exact_attention(q, k, v, step, spec)
    # Scores of size s carry an error of a few s * 2^-24 into the exponent.
    assert np.abs(got - want).max() < 3e-6 * max(1.0, spec.scale * head_dim**0.5), "max error"


def test_attention_is_the_same_however_many_threads_share_it():
    step = a_step([(2500, 1, "in order"), (100, 40, "scattered")], 2700)
    spec, results = AttnSpec(4, 0.125), []
    for threads in (1, 2, 5):
        ops = Ops(native.isa_names()[0], threads)
        kv, *_ = filled(ops, step, 2700, 2, 64, "f16")
        results.append(ops.attend(normal(41, 256, seed=2), kv, step, spec))
        ops.close()
    np.testing.assert_allclose(results[1], results[0], atol=2e-6)
    np.testing.assert_allclose(results[2], results[0], atol=2e-6)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("style", ["norm", "neox"])
@pytest.mark.parametrize(("n_tokens", "head_dim", "n_dims"), [(1, 64, 64), (5, 64, 32), (7, 10, 6), (90, 128, 128)])
def test_rope_append_rotates_and_stores(ops, dtype, style, n_tokens, head_dim, n_dims):
    step = a_step([(11, n_tokens, "scattered")], n_tokens + 40)
    rope = RopeSpec(n_dims, style, 10000.0 ** (-np.arange(n_dims // 2) / (n_dims // 2)), 1.25)
    kv = ops.kv_alloc(n_tokens + 40, 2, head_dim, dtype)
    q, k, v = (normal(n_tokens, heads * head_dim, seed=heads) for heads in (6, 2, 2))
    want_q, want_k = (exact_rope(x, head_dim, rope, step.positions) for x in (q, k))
    got = ops.rope_append(q, k, v, kv, rope, step)
    np.testing.assert_allclose(got, want_q, atol=1e-6)
    stored = [x.reshape(n_tokens, -1) for x in kv.read(step.rows)]
    if dtype == "bf16":
        stored = [(x.astype(np.uint32) << 16).view(np.float32) for x in stored]
    np.testing.assert_allclose(stored[0], want_k, rtol=ROUNDING[dtype], atol=1e-6)
    np.testing.assert_allclose(stored[1], v, rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize("style", ["norm", "neox"])
def test_rope_leaves_its_input_and_what_lies_behind_n_dims(ops, style):
    step = a_step([(3, 4, "in order")], 8)
    rope, x = RopeSpec(6, style, np.array([1.0, 0.3, 0.1])), normal(4, 20)
    before = x.copy()
    np.testing.assert_allclose(ops.rope(x, 10, rope, step), exact_rope(x, 10, rope, step.positions), atol=1e-6)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_stored_values_round_to_the_nearest_even(ops, dtype):
    hard = [0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, -70000.0, 6e-8, 2.9e-8, 3e-8, 6.1e-5, np.inf, -np.inf, np.nan]
    ties = np.float32(1.0) + np.arange(64, dtype=np.float32) * np.float32(2**-12)
    x = np.concatenate([np.array(hard, np.float32), ties, normal(49) * 1e-6, normal(50) * 1e4]).reshape(3, -1)
    step = a_step([(0, 3, "scattered")], 3)
    kv, reference = ops.kv_alloc(3, 1, x.shape[1], dtype), NUMPY.kv_alloc(3, 1, x.shape[1], dtype)
    ops.kv_append(kv, x, -x, step)
    finite = np.where(np.isnan(x), 0, x)
    with np.errstate(over="ignore"):
        NUMPY.kv_append(reference, finite, -finite, step)
    kept = ~np.isnan(x[np.argsort(step.rows)])
    for got, want in zip(kv.read(np.arange(3)), reference.read(np.arange(3)), strict=True):
        bits = np.uint32 if dtype == "f32" else np.uint16
        np.testing.assert_array_equal(got[:, 0].view(bits)[kept], want[:, 0].view(bits)[kept])
        lost = got[:, 0].view(bits)[~kept]
        assert np.isnan(
            (lost.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else lost.view(got.dtype)
        ).all()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("style", ["norm", "neox"])
def test_shift_turns_the_keys_of_the_rows_named(ops, dtype, style):
    rope = RopeSpec(8, style, 10000.0 ** (-np.arange(4) / 4), 1.5)
    native_kv, reference = ops.kv_alloc(50, 2, 12, dtype), NUMPY.kv_alloc(50, 2, 12, dtype)
    step = a_step([(0, 50, "scattered")], 50)
    for backend, kv in ((ops, native_kv), (NUMPY, reference)):
        backend.kv_append(kv, normal(50, 24), normal(50, 24, seed=1), step)
        backend.kv_shift(kv, np.arange(3, 40, dtype=np.int32), np.full(37, -3, np.int32), rope)
    for got, want in zip(native_kv.read(np.arange(50)), reference.read(np.arange(50)), strict=True):
        if dtype == "bf16":
            got, want = ((x.astype(np.uint32) << 16).view(np.float32) for x in (got, want))
        # The last place may round the other way.
        np.testing.assert_allclose(got, want, rtol=2 * ROUNDING[dtype], atol=1e-5)


def test_copy_moves_rows_bit_by_bit(ops):
    kv = ops.kv_alloc(900, 2, 64, "f16")
    step = a_step([(0, 900, "in order")], 900)
    ops.kv_append(kv, normal(900, 128), normal(900, 128, seed=1), step)
    source, target = np.arange(0, 400, dtype=np.int32), np.arange(450, 850, dtype=np.int32)
    ops.kv_copy(kv, source, target)
    for cells in kv.read(np.arange(900)):
        np.testing.assert_array_equal(cells[450:850], cells[:400])


@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(1, 2048, 0), (3, 577, 0), (5, 96, 12), (200, 512, 64), (2, 5, 0)]
)
def test_rms_norm_equals_float64(ops, rows, columns, width):
    x, weight = normal(rows, columns) * 3, normal(width or columns, seed=1)
    got = ops.rms_norm(x, Norm(weight, 1e-5), width)
    np.testing.assert_allclose(got, exact_norm(x, weight, 1e-5, width), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_quick", "relu2"])
@pytest.mark.parametrize("shape", [(1, 1536), (3, 37), (80, 1000)])
def test_gate_equals_float64(ops, activation, shape):
    a, b = normal(*shape) * 4, normal(*shape, seed=1)
    want = exact_activation(a.astype(np.float64), activation) * b
    np.testing.assert_allclose(ops.gate(a, b, activation), want, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("value", [-1e4, -200.0, -90.0, 90.0, 200.0, 1e4])
def test_silu_and_gelu_have_no_overflow(ops, value):
    x, one = np.full((1, 20), value, np.float32), np.ones((1, 20), np.float32)
    for activation in ("silu", "gelu", "gelu_quick"):
        np.testing.assert_allclose(ops.gate(x, one, activation), np.maximum(x, 0), rtol=1e-6, atol=1e-30)


def test_exp_is_within_two_units_in_the_last_place(ops):
    """Seen through attention: two rows whose scores differ by x weigh exp(x) and 1."""
    x = np.linspace(-80.0, 0.0, 4001)
    step = a_step([(1, 1, "in order")], 2)
    kv = ops.kv_alloc(2, 1, 16, "f32")
    kv.k[:] = kv.v[:] = 0.0
    kv.k[0, 0, 0] = kv.v[0, 0, 0] = kv.v[1, 0, 1] = 1.0
    worst = 0.0
    for value in x.astype(np.float32)[::40]:
        q = np.zeros((1, 16), np.float32)
        q[0, 0] = value
        weights = ops.attend(q, kv, step, AttnSpec(1, 1.0))[0]
        worst = max(worst, abs(float(weights[0]) / float(weights[1]) / np.exp(float(value)) - 1))
    assert worst < 4 * 2**-24 + 2**-23, worst


def test_add_takes_equal_shapes_or_one_row(ops):
    x, y, row = normal(70, 600), normal(70, 600, seed=1), normal(600, seed=2)
    np.testing.assert_array_equal(ops.add(x, y), x + y)
    np.testing.assert_array_equal(ops.add(x, row), x + row)
    np.testing.assert_array_equal(ops.add(x[:1], row), x[:1] + row)


@pytest.mark.parametrize("columns", [1, 63, 64, 1000, 128256])
def test_pick_takes_the_highest_and_of_equals_the_first(ops, columns):
    x = normal(3, columns)
    x[1, columns // 2 :: 7] = 9.0
    x[2] = -np.inf
    np.testing.assert_array_equal(ops.pick(x).wait(), x.argmax(axis=1))


@pytest.mark.parametrize(("columns", "k"), [(1000, 40), (128256, 40), (128256, 1), (50, 50), (10, 40), (700, 699)])
def test_top_k_equals_a_stable_sort(ops, columns, k):
    x = np.round(normal(columns) * 20) / 20  # with many ties
    np.testing.assert_array_equal(ops.top_k(x, k), np.argsort(-x, kind="stable")[:k])


def test_select_copies_nothing_when_all_rows_are_asked_for(ops):
    x = normal(3, 8)
    assert ops.select(x, np.arange(3, dtype=np.int32)) is x
    np.testing.assert_array_equal(ops.select(x, np.array([2, 0, 1], np.int32)), x[[2, 0, 1]])
    assert ops.select(x, np.array([], np.int32)).shape == (0, 8)


def test_a_cache_commits_memory_as_it_is_written(ops):
    psutil = pytest.importorskip("psutil")
    before = psutil.Process().memory_info().rss
    kv = ops.kv_alloc(1 << 20, 8, 64, "f16")  # 2 GiB
    kv.k[0] = kv.v[0] = 1.0
    assert psutil.Process().memory_info().rss - before < 8 << 20


@pytest.mark.parametrize("gap", [-32, -16, 16, 32])
def test_a_nan_hides_no_neighbour_from_pick(ops, gap):
    x, highest = np.zeros((64, 256), np.float32), 128 + np.arange(64)
    x[np.arange(64), highest] = 9.0
    x[np.arange(64), (highest + gap) % 256] = np.nan
    np.testing.assert_array_equal(ops.pick(x).wait(), highest)
