"""Native products against float64 NumPy on gguf's own decoding: every format, odd sizes, every instruction set.

Bounds are NMSE. Float weights: f32 sums. Quantised weights: up to 4 tokens meet an input of 16 bits (about 5e-10), but
not with AVX2; more meet one of 8 bits with 16 where needed, held near 2.5e-5 by the budget of
kernels/cpu/matmul/product.cpp, or, where AVX2 multiplies words, one of 15 bits.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from layerlift.backends.base import BackendError, Linear, Norm
from layerlift.backends.cpu import CpuBackend, Packed
from layerlift.backends.numpy_decode import decode_rows
from layerlift.backends.oracle import exact_activation, exact_norm
from layerlift.backends.random_blocks import random_rows
from layerlift.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.reason() or "native library")

FLOATS = ("F32", "F16", "BF16")
QUANTS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
WORDS = ("Q8_0", "IQ4_NL", "IQ4_XS")  # multiplied as 16-bit words with AVX2, where tokens are many
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 129)
EXACT, FINE, ROUNDED = 1e-11, 1e-8, 6e-5


def open_cpu(threads: int = 2) -> CpuBackend:
    return CpuBackend.open(CpuBackend.probe().devices[0], threads=threads)


def make(backend: CpuBackend, fmt: str, rows: int, columns: int, seed: int = 0):
    """A weight and its values in float64."""
    raw = random_rows(fmt, rows, columns, 0.05, np.random.default_rng(seed))
    weight = backend.load(raw.reshape(-1), fmt, (rows, columns), "w")
    assert isinstance(weight.data, Packed), f"{fmt} has no native kernel"
    return weight, decode_rows(raw, fmt, columns).astype(np.float64)


def inputs(tokens: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, columns)).astype(np.float32)


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    assert np.isfinite(got).all(), "a result is NaN or infinite"
    return float(((got - want) ** 2).sum() / (want**2).sum())


def bound(fmt: str, tokens: int, isa: str) -> float:
    if fmt in FLOATS:
        return EXACT
    fine = tokens > 8 and fmt in WORDS if isa == "avx2" else tokens <= 4
    return FINE if fine else ROUNDED


def check_format(backend: CpuBackend, fmt: str) -> None:
    for rows, columns in ((1, 256), (37, 512), (64, 1280)) if fmt in QUANTS else ((1, 1), (37, 77), (64, 320)):
        weight, values = make(backend, fmt, rows, columns, rows)
        assert np.array_equal(backend.embed(weight, np.arange(rows, dtype=np.int32)), values.astype(np.float32))
        for tokens in TOKENS:
            x = inputs(tokens, columns, tokens)
            y = backend.matmul(x, weight)
            assert np.isfinite(y).all()
            # Against what the sizes of input and weights let one expect: a single product may be near zero by chance.
            size = (x.astype(np.float64) ** 2).sum() * (values**2).sum()
            error = float(((y - x.astype(np.float64) @ values.T) ** 2).sum() / size)
            limit = bound(fmt, tokens, backend.isa) * (6 if rows == 1 else 1)
            assert error <= limit, f"{backend.isa} {fmt} [{rows}, {columns}] T={tokens}: NMSE {error:.1e}"


@pytest.mark.parametrize("fmt", [*FLOATS, *QUANTS])
def test_products_of_every_format_are_right_at_odd_sizes(fmt):
    check_format(open_cpu(), fmt)


@pytest.mark.parametrize("isa", [name for name in native.isa_names() if name != native.isa_names()[0]])
def test_every_instruction_set_gives_right_products(isa):
    code = "import test_cpu_matmul as t\nb = t.open_cpu()\nfor f in t.FLOATS + t.QUANTS: t.check_format(b, f)"
    env = {**os.environ, "LAYERLIFT_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=os.path.dirname(__file__), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_the_number_of_threads_changes_nothing(threads):
    one, many = open_cpu(1), open_cpu(threads)
    for tokens in (1, 8, 200):
        x = inputs(tokens, 512)
        want = one.matmul(x, make(one, "Q4_K", 210, 512)[0])
        assert np.array_equal(many.matmul(x, make(many, "Q4_K", 210, 512)[0]), want)


def test_columns_that_fill_no_panel_and_steps_longer_than_one_pass_are_right():
    backend = open_cpu()
    weight, values = make(backend, "Q4_1", 48, 576 + 32)
    x = inputs(1100, 608)
    assert nmse(backend.matmul(x, weight), x.astype(np.float64) @ values.T) < ROUNDED


def test_every_value_of_the_result_is_written():
    backend = open_cpu()
    lib = native.library()
    assert lib is not None
    for fmt, rows, tokens in (("Q6_K", 37, 1), ("Q6_K", 37, 11), ("F16", 33, 2), ("F16", 33, 50)):
        weight, _ = make(backend, fmt, rows, 256)
        x, y = inputs(tokens, 256), np.full((tokens * rows + 64,), np.nan, np.float32)
        args = (x.ctypes.data, tokens, None, 0.0, 0, weight.data.handle, None, y.ctypes.data)
        assert lib.ll_matmul(backend._ctx, *args) == 0
        assert np.isfinite(y[: tokens * rows]).all(), "a value was left out"
        assert np.isnan(y[tokens * rows :]).all(), "something was written beyond the end"


@pytest.mark.parametrize("fmt", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tokens", [1, 20])
def test_a_nan_or_infinity_in_the_input_is_seen_in_the_output(fmt, bad, tokens):
    backend = open_cpu()
    weight, _ = make(backend, fmt, 32, 256)
    x = inputs(tokens, 256)
    x[-1, 100] = bad
    y = backend.matmul(x, weight)
    assert not np.isfinite(y[-1]).any()
    assert np.isfinite(y[:-1]).all()


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e20])
def test_inputs_of_any_size_are_rounded_relative_to_themselves(scale):
    backend = open_cpu()
    weight, values = make(backend, "Q4_0", 32, 256)
    x = inputs(12, 256) * np.float32(scale)
    error = np.abs(backend.matmul(x, weight) - x.astype(np.float64) @ values.T).max()
    assert error <= 0.05 * scale + 1e-30


def test_outliers_cost_their_neighbours_no_precision():
    backend = open_cpu()
    weight, values = make(backend, "Q4_0", 64, 512)
    x = inputs(64, 512)
    x[:, 7] *= 300.0  # alone, 8 bits would leave this block's other values next to nothing
    values[:, 7] = 0.0
    exact = x.astype(np.float64) @ values.T
    x_only = x.copy()
    x_only[:, [i for i in range(512) if i != 7]] = 0.0
    rest = backend.matmul(x, weight).astype(np.float64) - backend.matmul(x_only, weight)
    assert nmse(rest, exact) < 2e-3


def test_project_add_adds_to_x_and_bias_too():
    backend = open_cpu()
    weight, values = make(backend, "Q5_K", 100, 256)
    bias = np.arange(100, dtype=np.float32)
    for tokens in (1, 30):
        h, x = inputs(tokens, 256), inputs(tokens, 100, 5)
        want = x + h.astype(np.float64) @ values.T + bias
        assert nmse(backend.project_add(h, Linear(weight, bias), x.copy()), want) < 1e-6


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_quick", "relu2"])
@pytest.mark.parametrize("tokens", [1, 25])
def test_gated_is_norm_products_activation_and_gate(activation, tokens):
    backend = open_cpu()
    gate, gate_values = make(backend, "Q4_K", 70, 256, 1)
    up, up_values = make(backend, "Q6_K", 70, 256, 2)
    bias, norm = np.ones(70, np.float32), Norm(np.linspace(0.5, 2, 256, dtype=np.float32), 1e-5)
    x = inputs(tokens, 256)
    n = exact_norm(x, norm.weight, norm.eps)
    want = exact_activation(n @ gate_values.T + bias, activation) * (n @ up_values.T)
    assert nmse(backend.gated(x, norm, Linear(gate, bias), Linear(up), activation), want) < 2e-4


def test_head_is_exact_however_many_rows_are_asked_for():
    backend = open_cpu()
    weight, values = make(backend, "Q8_0", 300, 256)
    norm = Norm(np.ones(256, np.float32), 1e-6)
    x = inputs(40, 256)
    want = exact_norm(x, norm.weight, norm.eps) @ values.T
    assert nmse(backend.head(x, norm, Linear(weight)), want) < FINE


def test_weights_take_no_more_room_than_in_the_file():
    backend = open_cpu()
    for fmt in QUANTS:
        raw = random_rows(fmt, 64, 1024, 0.05, np.random.default_rng(0))
        weight = backend.load(raw.reshape(-1), fmt, (64, 1024), "w")
        assert weight.nbytes <= 1.04 * raw.nbytes, fmt


def test_inner_sizes_that_differ_are_named():
    backend = open_cpu()
    weight, _ = make(backend, "Q8_0", 8, 64)
    with pytest.raises(BackendError, match=r"weight w is Q8_0 \[8, 64\], input is \[2, 32\]; inner sizes differ"):
        backend.matmul(inputs(2, 32), weight)


def test_a_format_without_a_kernel_stays_with_numpy():
    backend = open_cpu()
    raw = random_rows("IQ3_S", 8, 256, 0.05, np.random.default_rng(0))
    weight = backend.load(raw.reshape(-1), "IQ3_S", (8, 256), "w")
    x, values = inputs(3, 256), decode_rows(raw, "IQ3_S", 256).astype(np.float64)
    assert nmse(backend.matmul(x, weight), x @ values.T) < EXACT
    assert nmse(backend.project_add(x, Linear(weight), np.zeros((3, 8), np.float32)), x @ values.T) < EXACT
