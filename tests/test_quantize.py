"""Quantising rows: no worse than llama.cpp on the same numbers, native no worse than NumPy, every layout sound."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.backends.formats import BY_NAME
from layerlift.backends.numpy_decode import decode_rows
from layerlift.backends.numpy_quantize import quantize_rows
from layerlift.backends.quantize import TARGETS, Quantizer, WrongNumber
from layerlift.backends.quantize_formats import SCHEMES
from layerlift.kernels.cpu import native

COLUMNS = 1024
# Weighted root mean square errors of ggml_quantize_chunk on `sample()`, in units of the sample's deviation: without
# and with importance. python -m layerlift.bench.quantize prints them.
GGML = {
    "Q4_0": (0.118083, 0.110738),
    "Q5_0": (0.058552, 0.055458),
    "Q8_0": (0.007369, 0.007373),
    "IQ4_NL": (0.094283, 0.088801),
    "Q4_1": (0.093736, 0.079495),
    "Q5_1": (0.045453, 0.038590),
    "Q2_K": (0.346458, 0.274844),
    "Q3_K": (0.186071, 0.170966),
    "Q4_K": (0.087038, 0.081430),
    "Q5_K": (0.044125, 0.041907),
    "Q6_K": (0.022991, 0.021617),
}


def sample() -> tuple[np.ndarray, np.ndarray]:
    """Weights with long tails [64, 1024], and the importance of their columns."""
    rng = np.random.default_rng(7)
    x = (rng.standard_t(4, (64, COLUMNS)) * 0.02).astype(np.float32)
    return x, rng.gamma(1.0, 1.0, COLUMNS).astype(np.float32)


def error(raw: np.ndarray, fmt: str, x: np.ndarray, importance: np.ndarray | None) -> float:
    off = (decode_rows(raw, fmt, x.shape[1]).astype(np.float64) - x) ** 2
    if importance is not None:
        off = off * (importance / importance.mean())
    return float(np.sqrt(off.mean()) / x.std())


@pytest.fixture(params=[*native.isa_names(), "numpy"])
def quantizer(request, monkeypatch):
    monkeypatch.setenv("LAYERLIFT_ISA", request.param)
    with Quantizer(2) as made:
        assert made.is_native == (request.param != "numpy")
        yield made


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("fmt", SCHEMES)
def test_the_error_is_at_most_that_of_ggml(fmt, weighed, quantizer):
    x, importance = sample()
    weights = importance if weighed else None
    made = error(quantizer.rows(x.view(np.uint8), "F32", COLUMNS, fmt, weights), fmt, x, weights)
    assert made <= GGML[fmt][weighed], f"{fmt}: {made:.6f}, ggml {GGML[fmt][weighed]:.6f}"


@pytest.mark.parametrize("fmt", [fmt for fmt, scheme in SCHEMES.items() if scheme.scales is None and not scheme.table])
def test_no_block_is_worse_than_levels_that_just_cover_it(fmt, quantizer):
    """llama.cpp's way without importance."""
    x = sample()[0]
    raw = quantizer.rows(x.view(np.uint8), "F32", COLUMNS, fmt)
    made, blocks = (v.reshape(-1, 32).astype(np.float64) for v in (decode_rows(raw, fmt, COLUMNS), x))
    least, most = SCHEMES[fmt].levels
    if SCHEMES[fmt].affine:
        low = blocks.min(1, keepdims=True)
        scale = (blocks.max(1, keepdims=True) - low) / most
    else:
        top = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
        low, scale = np.zeros_like(top), top / least
    scale, low = (v.astype(np.float32).astype(np.float16).astype(np.float64) for v in (scale, low))
    cover = scale * np.clip(np.rint((blocks - low) / scale), least, most) + low
    ours, theirs = (np.square(v - blocks).sum(1) for v in (made, cover))
    assert (ours <= theirs * (1 + 1e-5)).all(), f"{fmt}: {(ours / theirs).max():.6f} of {len(ours)} blocks"


@pytest.mark.skipif(native.library() is None, reason=native.reason() or "native library")
@pytest.mark.parametrize("fmt", SCHEMES)
def test_native_costs_no_more_than_numpy(fmt, quantizer):
    x, importance = sample()
    x = x[:9]
    raw = quantizer.rows(x.view(np.uint8), "F32", COLUMNS, fmt, importance)
    assert error(raw, fmt, x, importance) <= 1.002 * error(quantize_rows(x, fmt, importance), fmt, x, importance)


@pytest.mark.parametrize("fmt", SCHEMES)
def test_what_a_format_holds_exactly_comes_back_nearly(fmt, quantizer):
    """Twice quantised is once quantised, up to the choice among equals."""
    x, _ = sample()
    once = decode_rows(quantizer.rows(x[:3].view(np.uint8), "F32", COLUMNS, fmt), fmt, COLUMNS)
    twice = decode_rows(quantizer.rows(once.view(np.uint8), "F32", COLUMNS, fmt), fmt, COLUMNS)
    first, second = np.square(once - x[:3]).mean(), np.square(twice - once).mean()
    assert second < 0.1 * first, f"{fmt}: {second:.3e} after {first:.3e}"


@pytest.mark.parametrize("fmt", TARGETS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-6, -0.3, 60000.0])
def test_rows_of_one_value_come_back(fmt, value, quantizer):
    columns = max(256, BY_NAME[fmt].block)
    x = np.full((1, columns), value, np.float32)
    back = decode_rows(quantizer.rows(x.view(np.uint8), "F32", columns, fmt), fmt, columns)
    np.testing.assert_allclose(back, x, rtol=0.02, atol=4e-6)


@pytest.mark.parametrize("fmt", SCHEMES)
def test_one_large_weight_among_zeros_is_kept(fmt, quantizer):
    x = np.zeros((1, 256), np.float32)
    x[0, 77] = -2.5
    back = decode_rows(quantizer.rows(x.view(np.uint8), "F32", 256, fmt), fmt, 256)
    assert back[0, 77] == pytest.approx(-2.5, rel=0.02)
    assert np.abs(np.delete(back, 77)).max() < 0.02


@pytest.mark.parametrize("fmt", TARGETS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_row(fmt, wrong, quantizer):
    x = np.zeros((5, 256), np.float32)
    x[3, 200] = wrong
    with pytest.raises(WrongNumber) as caught:
        quantizer.rows(x.view(np.uint8), "F32", 256, fmt)
    assert caught.value.row == 3


def test_a_number_above_half_precision_is_refused_where_scales_are_halves(quantizer):
    x = np.full((2, 256), 70000.0, np.float32)
    for fmt in ("F16", "Q8_0", "Q4_K"):
        with pytest.raises(WrongNumber):
            quantizer.rows(x.view(np.uint8), "F32", 256, fmt)
    assert (decode_rows(quantizer.rows(x.view(np.uint8), "F32", 256, "BF16"), "BF16", 256) == 70144).all()


@pytest.mark.parametrize("columns", [32, 96, 576])
@pytest.mark.parametrize("fmt", [f for f in TARGETS if BY_NAME[f].block <= 32])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16", "Q8_0"])
def test_every_source_and_odd_rows(source, fmt, columns, quantizer):
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((7, columns)).astype(np.float32)
    raw = quantizer.rows(x.view(np.uint8), "F32", columns, source)
    exact = decode_rows(raw, source, columns)
    back = decode_rows(quantizer.rows(raw, source, columns, fmt), fmt, columns)
    bound = {"F32": 0, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.011}.get(fmt, 0.15)
    off = float(np.sqrt(np.square(back - exact).mean()))
    assert off <= bound, f"{source} to {fmt}: {off}"


def test_float_targets_round_to_nearest_even(quantizer):
    x = np.array([[1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11]], np.float32)
    bf16 = decode_rows(quantizer.rows(x.view(np.uint8), "F32", 4, "BF16"), "BF16", 4)[0]
    f16 = decode_rows(quantizer.rows(x.view(np.uint8), "F32", 4, "F16"), "F16", 4)[0]
    assert bf16[:2].tolist() == [1.0, 1 + 2**-6]
    assert f16[2:].tolist() == [1.0, 1 + 2**-9]


def test_importance_moves_the_error_to_columns_that_matter_less(quantizer):
    x = sample()[0][:8]
    importance = np.where(np.arange(COLUMNS) % 8 == 0, 100.0, 1.0).astype(np.float32)
    for fmt in ("Q2_K", "Q4_0", "IQ4_NL", "Q6_K"):
        plain, weighed = (
            np.square(decode_rows(quantizer.rows(x.view(np.uint8), "F32", COLUMNS, fmt, w), fmt, COLUMNS) - x)
            for w in (None, importance)
        )
        assert weighed[:, ::8].mean() < plain[:, ::8].mean(), fmt


def test_iq4_nl_without_importance_keeps_the_length_of_its_weights(quantizer):
    """Least squares alone would shorten weights by the share that the error has of their squares."""
    x = sample()[0]
    made = decode_rows(quantizer.rows(x.view(np.uint8), "F32", COLUMNS, "IQ4_NL"), "IQ4_NL", COLUMNS).astype(np.float64)
    whole = np.square(x, dtype=np.float64).sum()
    lost, error = 1 - (made * x).sum() / whole, np.square(made - x).sum() / whole
    assert lost < 0.5 * error, f"{lost:.5f} of the length, {error:.5f} of the squares"
