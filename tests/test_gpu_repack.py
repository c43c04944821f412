"""Repacked planes hold every bit of a matrix and little more."""

from __future__ import annotations

import numpy as np
import pytest
from layerlift.backends.gpu_repack import TILE_UNITS, repack, supported
from layerlift.backends.numpy_decode import decode_rows
from layerlift.backends.random_blocks import random_rows


@pytest.mark.parametrize("fmt", supported())
def test_planes_are_at_most_4_percent_larger(fmt):
    raw = random_rows(fmt, 6, 1024, 1.0, np.random.default_rng(1))
    assert raw.nbytes <= repack(raw.reshape(-1), fmt, (6, 1024)).nbytes <= 1.04 * raw.nbytes


@pytest.mark.parametrize("fmt", ["Q4_0", "Q6_K", "Q4_K"])
def test_long_matrices_are_cut_into_tiles_without_a_trace(fmt, monkeypatch):
    raw = random_rows(fmt, 64, 512, 1.0, np.random.default_rng(2)).reshape(-1)
    whole = repack(raw, fmt, (64, 512))
    monkeypatch.setattr("layerlift.backends.gpu_repack.TILE_UNITS", 56)
    assert TILE_UNITS != 56
    np.testing.assert_array_equal(repack(raw, fmt, (64, 512)), whole)


def test_q6_k_planes_decode_to_the_same_values():
    raw = random_rows("Q6_K", 4, 512, 1.0, np.random.default_rng(3))
    planes, units = repack(raw.reshape(-1), "Q6_K", (4, 512)), 64
    quads = planes[: 16 * units].reshape(units, 16)
    codes = np.concatenate([quads & 15, quads >> 4], axis=1).astype(np.int32)
    masks = planes[16 * units : 24 * units].view("<u4").reshape(units, 2, 1)
    weight = np.arange(32, dtype=np.uint32)
    bits = masks >> (weight % 4 * 8 + weight // 4) & 1
    codes = codes + 16 * bits[:, 0].astype(np.int32) + 32 * bits[:, 1].astype(np.int32) - 32
    scales = planes[24 * units : 26 * units].view(np.int8).reshape(units, 2, 1).astype(np.float32)
    mains = planes[26 * units :].view("<f2").astype(np.float32)
    values = codes.reshape(units, 2, 16) * scales * np.repeat(mains, 8)[:, None, None]
    np.testing.assert_allclose(values.reshape(4, 512), decode_rows(raw, "Q6_K", 512), rtol=1e-6)


def test_rows_that_no_unit_divides_are_filled_with_zeros():
    raw = np.arange(80, dtype=np.float32)
    planes = repack(raw.view(np.uint8), "F32", (2, 40)).view(np.float32).reshape(2, 64)
    np.testing.assert_array_equal(planes[:, :40], raw.reshape(2, 40))
    assert not planes[:, 40:].any()
