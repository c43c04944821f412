"""The products of few tokens in kernels/cuda, run on the CPU by the emulator, are those of float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import Emulator, prelude, read_only
from layerlift.backends.base import RopeSpec
from layerlift.backends.cuda_kernels import MATVEC_FORMATS, Matvec, matvec_ready
from layerlift.backends.gpu import ACTIVATIONS
from layerlift.backends.gpu_repack import repack
from layerlift.backends.gpu_step import StepLayout
from layerlift.backends.opcases import matrix, normal, one_step, rope_spec
from layerlift.backends.oracle import exact_activation, exact_norm, exact_rope

EPS = 1e-5


def weight(fmt, rows, columns, seed=0):
    """What the device has of a random matrix, and its values [rows, columns]."""
    raw, values = matrix(fmt, rows, columns, seed)
    return read_only(repack(raw, fmt, (rows, columns))), values.reshape(rows, columns)


def emulator(program, *, sanitize=False):
    return Emulator(program.text(prelude=prelude()), sanitize=sanitize)


def poisoned(*shape, dtype=np.float32):
    return np.full(shape, np.nan, np.float32) if dtype is np.float32 else np.full(shape, -7, dtype)


def close(got, want, nmse=1e-11):
    error = ((got - want) ** 2).sum() / (want**2).sum()
    assert error <= nmse, f"nmse {error:.2e}, largest error {np.abs(got - want).max():.2e}"


def check_project(fmt, columns, tokens, rows=37, *, sanitize=False):
    program = Matvec("project", columns, tokens, (fmt,), rows)
    x, norm, bias = normal(tokens, columns), 1 + normal(columns, seed=2) / 4, normal(rows, seed=3)
    (planes, w), residual = weight(fmt, rows, columns), normal(tokens, rows, seed=4)
    x[0, :3] = 0.0, 1e-12, -700.0
    y = poisoned(tokens, rows)
    grid = (program.blocks(rows), 1)
    inputs = [read_only(a) for a in (x, norm, bias, residual)]
    with emulator(program, sanitize=sanitize) as e:
        x_, norm_, bias_, residual_ = inputs
        e.launch("project", grid, program.threads, x_, norm_, EPS, planes, bias_, residual_, y, rows)
        want = exact_norm(x, norm, EPS) @ w.T + bias + residual
        close(y, want)
        y = poisoned(tokens, rows)
        e.launch("project", grid, program.threads, x_, None, 0.0, planes, None, None, y, rows, seed=9)
        close(y, x.astype(np.float64) @ w.T)


@pytest.mark.parametrize(
    ("fmt", "columns", "tokens"), [("Q6_K", 512, 1), pytest.param("F16", 288, 3, marks=pytest.mark.exhaustive)]
)
def test_project_is_norm_product_bias_and_residual(fmt, columns, tokens):
    check_project(fmt, columns, tokens)


def test_project_stays_within_its_arrays():
    check_project("Q8_0", 96, 2, rows=5, sanitize=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("tokens", [1, 2, 5, 8])
@pytest.mark.parametrize("fmt", MATVEC_FORMATS)
def test_project_takes_every_format(fmt, tokens):
    check_project(fmt, 512 if fmt.endswith("_K") else 416, tokens, rows=45, sanitize=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("fmt", "columns", "tokens"), [("BF16", 8192, 3), ("Q4_K", 8192, 1), ("Q5_1", 4128, 8)])
def test_long_rows_pass_through_shared_memory_in_tiles(fmt, columns, tokens):
    program = Matvec("project", columns, tokens, (fmt,), 9)
    assert tokens == 1 or program.tile < columns
    check_project(fmt, columns, tokens, rows=9, sanitize=True)


def check_gated(fmt, columns, tokens, rows, activation, *, sanitize=False):
    program = Matvec("gated", columns, tokens, (fmt,), rows)
    x, norm = normal(tokens, columns), 1 + normal(columns, seed=2) / 4
    (gate, w_gate), (up, w_up) = weight(fmt, rows, columns, 1), weight(fmt, rows, columns, 2)
    bias, y = normal(rows, seed=3), poisoned(tokens, rows)
    with emulator(program, sanitize=sanitize) as e:
        e.launch(
            "gated", (program.blocks(rows), 1), program.threads, read_only(x), read_only(norm), EPS, gate, up,
            read_only(bias), None, y, ACTIVATIONS[activation], rows,
        )  # fmt: skip
    n = exact_norm(x, norm, EPS)
    close(y, exact_activation(n @ w_gate.T + bias, activation) * (n @ w_up.T))


@pytest.mark.exhaustive
def test_gated_is_two_products_and_an_activation():
    check_gated("BF16", 256, 1, 19, "silu")


@pytest.mark.exhaustive
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_has_every_activation(activation):
    check_gated("Q4_0", 320, 4, 51, activation, sanitize=True)


def check_qkv(formats, columns, tokens, style, *, head_dim=16, n_dims=12, dtype="f16", sanitize=False):
    heads, heads_kv, capacity = 5, 2, 23
    rows = (heads * head_dim, heads_kv * head_dim, heads_kv * head_dim)
    program = Matvec("qkv", columns, tokens, formats, max(rows))
    x, norm, eps = normal(tokens, columns), 1 + normal(columns, seed=2) / 4, EPS
    ws = [weight(fmt, n, columns, i) for i, (fmt, n) in enumerate(zip(formats, rows, strict=True))]
    biases = [normal(n, seed=5 + i) for i, n in enumerate(rows)]
    step = one_step([(3, 1)] * tokens if tokens < 4 else [(2, tokens)], capacity)
    rope: RopeSpec = rope_spec(n_dims, style, 1.5)
    layout = StepLayout(step, [rope])
    storage, code = {"f16": (np.float16, 0), "f32": (np.float32, 2)}[dtype]
    k, v = (np.full((capacity, rows[1]), np.nan, storage) for _ in "kv")
    q = poisoned(tokens, rows[0])
    with emulator(program, sanitize=sanitize) as e:
        e.launch(
            "qkv", (program.blocks(*rows), 1), program.threads, read_only(x), read_only(norm), eps,
            *(planes for planes, _ in ws), *(read_only(b) for b in biases), q, k, v, code, read_only(layout.words),
            layout.rows_at, *layout.ropes[id(rope)], n_dims, style == "neox", head_dim, rows[0], rows[1],
        )  # fmt: skip
    n = exact_norm(x, norm, eps)
    want = [n @ w.T + b for (_, w), b in zip(ws, biases, strict=True)]
    close(q, exact_rope(want[0], head_dim, rope, step.positions))
    stored = 1e-11 if dtype == "f32" else 1e-6
    close(k[step.rows].astype(np.float64), exact_rope(want[1], head_dim, rope, step.positions), stored)
    close(v[step.rows].astype(np.float64), want[2], stored)
    others = np.setdiff1d(np.arange(capacity), step.rows)
    assert np.isnan(k[others]).all(), "keys of other rows were written"
    assert np.isnan(v[others]).all(), "values of other rows were written"


def test_qkv_is_norm_products_rope_and_append():
    check_qkv(("Q4_K", "Q4_K", "Q6_K"), 256, 2, "norm")


@pytest.mark.exhaustive
@pytest.mark.parametrize("style", ["norm", "neox"])
@pytest.mark.parametrize("formats", [("Q8_0", "F16", "Q4_1"), ("BF16",) * 3, ("IQ4_NL", "Q5_0", "F32")])
def test_qkv_takes_three_formats_at_once(formats, style):
    check_qkv(formats, 544, 5, style, dtype="f32", sanitize=True)
    check_qkv(formats, 128, 1, style, n_dims=16, sanitize=True)


@pytest.mark.parametrize("tokens", range(1, 9))
@pytest.mark.parametrize("columns", [32, 96, 576, 1536, 2048, 3072, 8192, 14336])
@pytest.mark.parametrize("fmt", MATVEC_FORMATS)
def test_every_shape_fits_a_block(fmt, columns, tokens):
    p = Matvec("project", columns, tokens, (fmt,), 2048)
    chunk, split = MATVEC_FORMATS[fmt], p.split(fmt)
    nbytes = 4 * tokens * (p.tile + 288 + p.tile // 16 + p.warps * 5)
    assert nbytes <= 48 << 10
    assert p.tile >= columns or p.tile % (32 * split * (1 if chunk == 32 else 2) * chunk) == 0
    assert p.tile > 0
    assert p.warps % split == 0


def test_what_has_no_kernel_is_known_beforehand():
    assert matvec_ready(2048, "Q6_K", "F16")
    assert not matvec_ready(2048, "Q2_K")
    assert not matvec_ready(2056, "F16")
