"""What a native library in another process is asked: the whole op table, and products at the edges of its tiles."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.backends.base import AttnSpec, Norm, Span, Step
from layerlift.backends.numpy_decode import decode_rows
from layerlift.backends.numpy_quantize import quantize_rows
from layerlift.backends.opcases import all_cases, judge, matrix, normal
from layerlift.backends.oracle import exact_attention, exact_norm
from layerlift.backends.quantize_formats import SCHEMES

# Every format with kernels; columns that 256 does not divide where blocks are smaller.
COLUMNS = {
    "F32": 96,
    "F16": 96,
    "BF16": 96,
    "Q4_0": 288,
    "Q4_1": 96,
    "Q5_0": 96,
    "Q5_1": 288,
    "Q8_0": 96,
    "IQ4_NL": 288,
}
COLUMNS |= {"Q2_K": 512, "Q3_K": 256, "Q4_K": 768, "Q5_K": 256, "Q6_K": 768, "IQ4_XS": 512}
TOKENS = (1, 2, 7, 8, 9, 33)
ROWS = (1, 37, 70)
# Mean square errors over |x|² |w|², which a row whose products cancel does not inflate.
FINE = 1e-9  # of inputs with 16 bits: one token, and exact products
BYTES = 4e-5  # of inputs with 8 bits in most blocks


def check_op_table(backend):
    """Every case of the table; all failures in one message."""
    failed = []
    for case in all_cases():
        verdict = judge(case, backend, relaxed=True)
        if not verdict.ok:
            failed.append(f"{case}: nmse {verdict.nmse:.3g}, max error {verdict.max_error:.3g}")
    assert not failed, "\n".join(failed)


def check_products(backend, tokens=TOKENS, rows=ROWS):
    """Products of every format with a norm and a bias, at the edges of tiles, bands and groups."""
    failed = []
    for fmt, columns in COLUMNS.items():
        for n in rows:
            raw, values = matrix(fmt, n, columns, seed=3)
            weight, bias = backend.load(raw, fmt, (n, columns), fmt), normal(n, seed=5)
            assert isinstance(weight.data, int), f"{fmt} has no kernel"
            for t in tokens:
                x, norm = normal(t, columns, seed=4), Norm(1 + 0.1 * normal(columns, seed=6), 1e-5)
                normed = exact_norm(x, norm.weight, norm.eps)
                want, square = normed @ values.T + bias, np.square(normed).sum() * np.square(values).sum()
                for exact in (False, True):
                    got = backend.product(x, weight, norm, bias, exact=exact)
                    error = np.square(got - want).sum() / square
                    # AVX2 rounds few tokens' inputs to bytes as it does many's (kernels/cpu/matmul/body.h).
                    fine = exact or fmt in ("F32", "F16", "BF16") or (t == 1 and backend.isa != "avx2")
                    bound = FINE if fine else BYTES
                    if not error <= bound:
                        failed.append(f"{fmt} {t}x{columns}x{n} exact={exact}: {error:.3g} > {bound:g}")
    assert not failed, "\n".join(failed)


def check_attention(backend):
    """Contexts that end within and at the edge of a tile, heads of any size, parts that are joined."""
    for before, length, heads, kv_heads, head_dim, dtype in (
        (0, 1, 1, 1, 16, "f16"),
        (31, 1, 4, 1, 64, "f16"),
        (32, 1, 5, 1, 40, "bf16"),
        (1200, 1, 4, 2, 64, "f16"),
        (700, 2, 6, 2, 10, "f32"),
        (600, 33, 2, 1, 80, "f16"),
    ):
        n = before + length
        kv = backend.kv_alloc(n + 3, kv_heads, head_dim, dtype)
        order = np.random.default_rng(n).permutation(n + 3)[:n].astype(np.int32)
        k, v = normal(n, kv_heads, head_dim, seed=1), normal(n, kv_heads, head_dim, seed=2)
        span = (Span(0, length, order),)
        everything = Step(order, np.arange(n, dtype=np.int32), order, (Span(0, n, order),), order[:0], ())
        backend.kv_append(kv, k.reshape(n, -1), v.reshape(n, -1), everything)
        step = Step(order[:length], np.arange(before, n, dtype=np.int32), order[before:], span, order[:0], ())
        q, spec = normal(length, heads * head_dim), AttnSpec(heads, head_dim**-0.5)
        stored = [_as_float32(x, dtype) for x in (kv.k, kv.v)]
        error = np.abs(backend.attend(q, kv, step, spec) - exact_attention(q, *stored, step, spec)).max()
        assert error < 3e-6, f"{before}+{length} {heads}/{kv_heads}x{head_dim} {dtype}: {error:.3g}"


def _as_float32(x, dtype):
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else x.astype(np.float32)


def check_picks(backend):
    """The highest of many, and the k highest, with ties."""
    x = np.round(normal(3, 4099) * 20) / 20
    np.testing.assert_array_equal(backend.pick(x).wait(), x.argmax(axis=1))
    lost = np.zeros((64, 256), np.float32)
    lost[np.arange(64), 128 + np.arange(64)] = 9.0
    for gap in (-32, -16, 16, 32):  # a NaN in the same lane hides nothing
        x_gap = lost.copy()
        x_gap[np.arange(64), (128 + np.arange(64) + gap) % 256] = np.nan
        np.testing.assert_array_equal(backend.pick(x_gap).wait(), 128 + np.arange(64))
    for k in (1, 40, 4099):
        np.testing.assert_array_equal(backend.top_k(x[0], k), np.argsort(-x[0], kind="stable")[:k])


def check_rounding(backend):
    """What is stored as f16 and bf16 is rounded to the nearest even value."""
    hard = [0.0, -0.0, 65504.0, 65519.9, 65520.0, -7e4, 6e-8, 2.9e-8, 3e-8, 6.1e-5, np.inf, -np.inf, 1e-40, 3e38]
    ties = np.float32(1.0) + np.arange(66, dtype=np.float32) * np.float32(2**-12)
    x = np.concatenate([np.array(hard, np.float32), ties]).reshape(1, -1)
    row = np.zeros(1, np.int32)
    step = Step(row, row, row, (Span(0, 1, row),), row, ())
    for dtype in ("f16", "bf16", "f32"):
        kv, reference = (make(1, 1, x.size, dtype) for make in (backend.kv_alloc, backend.kv_alloc))
        backend.kv_append(kv, x, -x, step)
        with np.errstate(over="ignore"):
            super(type(backend), backend).kv_append(reference, x, -x, step)
        for got, want in ((kv.k, reference.k), (kv.v, reference.v)):
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8), dtype)


def check_quantizing(backend):
    """Every format that can be written, with and without importance: no worse than the reference."""
    columns, failed = 256, []
    x = (normal(2, columns, seed=8) ** 3).astype("<f2")  # long tails
    weights = np.exp(normal(columns, seed=9))
    for fmt in SCHEMES:
        for importance in (None, weights):
            raw, done = backend.quantize(x.view(np.uint8), "F16", columns, fmt, importance)
            assert done == -1, f"{fmt}: {done}"
            reference = quantize_rows(x.astype(np.float32), fmt, importance)
            got, want = (
                float((np.square(decode_rows(v, fmt, columns) - x) * (1 if importance is None else weights)).sum())
                for v in (raw, reference)
            )
            if not got <= 1.01 * want:
                failed.append(f"{fmt}, {'plain' if importance is None else 'weighed'}: {got:.5g} > {want:.5g}")
    assert not failed, "\n".join(failed)
    x[1, 3] = np.nan
    assert backend.quantize(x.view(np.uint8), "F16", columns, "Q4_K")[1] == 1


CHECKS = [check_op_table, check_products, check_attention, check_picks, check_rounding, check_quantizing]
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
