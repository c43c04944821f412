"""Products of many tokens on tensor cores, run on the CPU by the emulator, are those of float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import Emulator, prelude, read_only
from layerlift.backends.cuda_kernels import MMA_FORMATS, MatmulMma, MatmulWgmma
from layerlift.backends.gpu_repack import repack
from layerlift.backends.opcases import matrix, normal
from layerlift.backends.oracle import exact_norm

EPS = 1e-5


def halves(program, x, norm, *, sanitize=False):
    """rows_half of x: the halves as the device has them, and the factors."""
    tokens, columns = x.shape
    half, factors = np.full((tokens, columns), 0xFFFF, np.uint16), np.full(tokens, np.nan, np.float32)
    norm = None if norm is None else read_only(norm)
    with Emulator(program.rows_half_text(prelude=prelude()), sanitize=sanitize) as e:
        e.launch("rows_half", (tokens, 1), program.threads, read_only(x), norm, EPS, half, factors, columns)
    return half, factors


def decoded(half, factors, fmt):
    bits = half.astype(np.uint32) << 16
    values = bits.view(np.float32) if fmt == "BF16" else half.view(np.float16)
    return values.astype(np.float64) * factors[:, None]


def nmse(got, want):
    return ((got - want) ** 2).sum() / (want**2).sum()


@pytest.mark.parametrize("fmt", ["F16", "BF16"])
def test_activations_keep_their_range_as_halves(fmt):
    x, norm = normal(4, 160), 1 + normal(160, seed=2) / 4
    x[1] *= 1e30
    x[2] *= 1e-25
    x[3] = 0.0
    program = MatmulMma(fmt, 4)
    bound = 1e-5 if fmt == "BF16" else 1e-7
    for weight in (None, norm):
        half, factors = halves(program, x, weight)
        want = x.astype(np.float64) if weight is None else np.zeros((4, 160))
        if weight is not None:
            want[[0, 2, 3]] = exact_norm(x[[0, 2, 3]], norm, EPS)
        for t in (0, 2) if weight is not None else (0, 1, 2):
            assert nmse(decoded(half, factors, fmt)[t], want[t]) < bound
        assert not decoded(half, factors, fmt)[3].any()


def check(fmt, tokens, columns, rows, splits=1, *, kind=MatmulMma, norm=True, sanitize=False, seeds=(1, 2)):
    program = kind(fmt, tokens)
    x, weight = normal(tokens, columns), 1 + normal(columns, seed=2) / 4
    raw, w = matrix(fmt, rows, columns)
    planes = read_only(repack(raw, fmt, (rows, columns)))
    bias, residual = normal(rows, seed=3), normal(tokens, rows, seed=4)
    half, factors = halves(program, x, weight if norm else None, sanitize=sanitize)
    want = (exact_norm(x, weight, EPS) if norm else x.astype(np.float64)) @ w.reshape(rows, columns).T
    parts = np.full(program.parts_shape(tokens, rows, splits), np.nan, np.float32) if splits > 1 else None
    counters = np.zeros(program.counters_shape(tokens, rows), np.int32)
    with Emulator(program.text(prelude=prelude()), sanitize=sanitize) as e:
        for seed, extra in zip(seeds, (True, False), strict=True):
            y = np.full((tokens, rows), np.nan, np.float32)
            added = (read_only(bias), read_only(residual)) if extra else (None, None)
            e.launch(
                "matmul_mma", (program.blocks(tokens, rows), splits), program.threads, read_only(half.view(np.uint8)),
                read_only(factors), planes, *added, y, parts, counters, tokens, columns, rows, splits,
                shared=program.shared_nbytes, seed=seed,
            )  # fmt: skip
            error = nmse(y, want + bias + residual if extra else want)
            assert error < (1e-5 if fmt == "BF16" else 2e-7), f"nmse {error:.2e}"
            assert not counters.any()


def test_tiles_with_ragged_ends_and_splits_give_the_product():
    check("Q6_K", 19, 512, 131, splits=3)


def test_so_they_do_by_wgmma_from_its_descriptors_bits():
    check("Q6_K", 131, 512, 131, splits=3, kind=MatmulWgmma)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(u64)(8 * ROW_BYTES >> 4) << 32", "(u64)(4 * ROW_BYTES >> 4) << 32"),
        ("+ 2 * k;", "+ k;"),
        ("WARP / 4 * 64", "0"),
        ("(part ^ (row & 7))", "part"),
    ],
    ids=["stride", "start", "group", "swizzle"],
)
def test_a_wrong_descriptor_or_layout_is_a_wrong_product(monkeypatch, right, wrong):
    text = MatmulWgmma.text
    assert right in text(MatmulWgmma("F16", 70))
    monkeypatch.setattr(MatmulWgmma, "text", lambda self, **options: text(self, **options).replace(right, wrong))
    with pytest.raises(AssertionError, match="nmse"):
        check("F16", 70, 64, 130, kind=MatmulWgmma)


@pytest.mark.parametrize("fence", ["tile_is_there();", "wgmma_begin();", "wgmma_commit();"])
def test_a_fence_that_is_missing_ends_the_program(monkeypatch, fence):
    text = MatmulWgmma.text
    monkeypatch.setattr(MatmulWgmma, "text", lambda self, **options: text(self, **options).replace(f"  {fence}\n", ""))
    with pytest.raises(AssertionError, match="wgmma: "):
        check("F16", 70, 64, 130, kind=MatmulWgmma)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", MMA_FORMATS)
def test_every_format_gives_the_product_by_wgmma(fmt):
    columns = 256 if fmt.endswith("_K") else 160
    check(fmt, 129, columns, 140, splits=2, kind=MatmulWgmma, sanitize=fmt in ("Q6_K", "BF16"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("tokens", [9, 17, 64, 129])
@pytest.mark.parametrize("fmt", MMA_FORMATS)
def test_every_format_and_tile_gives_the_product(fmt, tokens):
    columns = 256 if fmt.endswith("_K") else 160
    check(fmt, tokens, columns, 140, splits=2, sanitize=tokens == 17)


@pytest.mark.parametrize(
    ("tokens", "columns", "rows"), [(9, 2048, 2048), (64, 8192, 2048), (512, 2048, 16384), (33, 96, 3)]
)
def test_splits_fill_the_device_and_none_is_empty(tokens, columns, rows):
    program, stages = MatmulMma("Q4_0", tokens), -(-columns // 64)
    splits = program.splits(tokens, columns, rows, 132)
    each = -(-stages // splits)
    assert (splits - 1) * each < stages
    assert splits == 1 or each >= 4
    assert program.blocks(tokens, rows) * splits <= max(264, program.blocks(tokens, rows))
