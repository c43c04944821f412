"""Quantises rows of weights in plain NumPy: the reference of kernels/cpu/quantize, and what works without it.

Everything rests on one question, `_try`: with so many scales and lows at once, what does each cost, and what would
least squares make of the levels it chose? A part of a block asks it with a fan of scales around the one that just
covers its weights, then closer around the best of these. Where scales are themselves quantised, the block's own scale
is the one that covers those, and each part tries the integers around what it wants; least squares over the whole block
then moves the block's scale, and the parts choose again. Errors are weighed with the importance of a weight's column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import BY_NAME
from .quantize_formats import SCHEMES, Blocks, Scheme, pack

Floats = NDArray[Any]  # of float32, which NumPy's own annotations lose

LANES = 16  # tried at once
ROUNDS = 2  # times that the scale of a block of scales is set
PIVOTS = (0.5, 0.0, 1.0)  # what stays where it is when a range shrinks: its middle, its low end, its high end
TINY = np.float32(1e-38)
AT_ONCE = 1 << 16  # weights, so that temporary arrays stay at a few MB


def quantize_rows(x: Floats, fmt: str, importance: Floats | None = None) -> NDArray[np.uint8]:
    """x [rows, columns] float32, finite, to [rows, row_nbytes] uint8; `importance` [columns] weighs squared errors."""
    form = BY_NAME[fmt]
    blocks = x.reshape(-1, form.block)
    if importance is None:
        weights = np.ones((1, form.block), np.float32)
    else:
        weights = importance.reshape(-1, form.block)
    step = max(1, AT_ONCE // x.shape[1]) * (x.shape[1] // form.block)  # whole rows
    out = np.empty((len(blocks), form.nbytes), np.uint8)
    for first in range(0, len(blocks), step):
        part = blocks[first : first + step]
        w = np.tile(weights, (len(part) // len(weights), 1))
        out[first : first + step] = pack(fmt, _quantize(part, w, SCHEMES[fmt]))
    return out.reshape(len(x), -1)


def _quantize(x: Floats, w: Floats, scheme: Scheme) -> Blocks:
    count = len(x)
    x, w = x.reshape(-1, scheme.sub), w.reshape(-1, scheme.sub)  # [parts, sub]
    fit = _fit_affine if scheme.affine else _fit_signed
    scale, low = fit(x, w, scheme)  # [parts]
    if scheme.scales is None:
        d, base = _settle(x, w, scale, low, scheme)
        q = _levels(x, d.astype(np.float32)[:, None], base.astype(np.float32)[:, None], scheme)[:, 0]
        none = np.zeros((count, 1), np.int32)
        return Blocks(q, d, base, none, none)
    d, base, scales, lows = _settle_scales(x, w, scale.reshape(count, -1), low.reshape(count, -1), scheme)
    scale = d.astype(np.float32)[:, None] * scales.astype(np.float32)
    low = -base.astype(np.float32)[:, None] * lows.astype(np.float32)
    q = _levels(x, scale.reshape(-1, 1), low.reshape(-1, 1), scheme)[:, 0]
    return Blocks(q.reshape(count, -1), d, base, scales, lows)


# -----------------------------------------------------------------------------------------------------------
# The question


@dataclass(frozen=True)
class Tried:
    """Sums over a part's weights for each pair of scale and low tried [parts, lanes], each term times its weight."""

    error: Floats  # of (x - scale * level - low)²
    l: Floats  # noqa: E741  (of the level, its square, and its product with x)
    ll: Floats
    xl: Floats

    def take(self, lane: NDArray[np.intp]) -> Tried:
        """Of one lane each [parts]."""
        at = lane[:, None]
        return Tried(*(np.take_along_axis(v, at, 1)[:, 0] for v in (self.error, self.l, self.ll, self.xl)))


def _try(x: Floats, w: Floats, scale: Floats, low: Floats, scheme: Scheme) -> Tried:
    """x, w [parts, sub]; scale, low [parts, lanes]."""
    level = _nearest(x, scale, low, scheme)  # [parts, lanes, sub]
    x, w = x[:, None], w[:, None]
    weighed = w * level
    off = x - (scale[..., None] * level + low[..., None])
    return Tried((w * off * off).sum(-1), weighed.sum(-1), (weighed * level).sum(-1), (weighed * x).sum(-1))


def _nearest(x: Floats, scale: Floats, low: Floats, scheme: Scheme) -> Floats:
    inverse = scale / np.maximum(scale * scale, TINY)  # 0 for 0
    v = (x[:, None] - low[..., None]) * inverse[..., None]
    if scheme.table:
        table = np.array(scheme.table, np.float32)
        return table[np.searchsorted((table[1:] + table[:-1]) / 2, v)]
    return np.rint(np.clip(v, *map(np.float32, scheme.levels)))


def _levels(x: Floats, scale: Floats, low: Floats, scheme: Scheme) -> NDArray[np.uint8]:
    """Counted from the lowest [parts, lanes, sub]."""
    level = _nearest(x, scale, low, scheme)
    if scheme.table:
        return np.searchsorted(np.array(scheme.table, np.float32), level).astype(np.uint8)
    return (level - scheme.levels[0]).astype(np.uint8)


# -----------------------------------------------------------------------------------------------------------
# The scale that a part of a block wants


def _fan(reach: float) -> Floats:
    """Factors on the scale that just covers the weights."""
    return (1 + reach * (np.arange(LANES) - 12) / 12).astype(np.float32)


def _close(reach: float) -> Floats:
    """Factors closer around the best of a fan."""
    return (1 + reach * (np.arange(LANES) - 8) / 96).astype(np.float32)


def _fit_signed(x: Floats, w: Floats, scheme: Scheme) -> tuple[Floats, Floats]:
    """Scales [parts], and lows, which are 0."""
    top = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)  # [parts, 1]
    zero = np.zeros((len(x), LANES), np.float32)
    scale, gain = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)

    def keep(tried: Floats) -> None:
        """What is gained over zeros by the levels of each lane, with the scale that is best for them."""
        t = _try(x, w, tried, zero, scheme)
        better = np.where(t.ll > 0, t.xl * t.xl / np.maximum(t.ll, TINY), np.float32(0))
        lane = better.argmax(1)
        best = t.take(lane)
        gained = np.take_along_axis(better, lane[:, None], 1)[:, 0]
        new = gained > gain
        scale[new], gain[new] = (best.xl / np.maximum(best.ll, TINY))[new], gained[new]

    keep(top / np.float32(scheme.levels[0]) * _fan(scheme.reach))
    if scheme.levels[1] <= 16 or scheme.table:  # where there are many levels the fan is close enough
        keep(top / np.float32(scheme.levels[1]) * _fan(scheme.reach))
        keep(scale[:, None] * _close(scheme.reach))
    return scale, np.zeros(len(x), np.float32)


def _fit_affine(x: Floats, w: Floats, scheme: Scheme) -> tuple[Floats, Floats]:
    """Scales and lows [parts]."""
    below = scheme.scales is not None  # lows are 0 or below
    steps = np.float32(scheme.levels[1])
    least, most = x.min(1), x.max(1)
    if below:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
    sums = w.sum(1), (w * x).sum(1), (w * x * x).sum(1)
    scale, low = (most - least) / steps, least
    error = np.full(len(x), np.inf, np.float32)
    cover = scale, low
    for turn in range(2 * len(PIVOTS)):
        is_first = turn < len(PIVOTS)
        (s, m), factors = (cover, _fan(scheme.reach)) if is_first else ((scale, low), _close(4 * scheme.reach))
        pivot = np.float32(PIVOTS[turn % len(PIVOTS)])
        tried = s[:, None] * factors
        lows = (m + pivot * s * steps)[:, None] - pivot * steps * tried
        if below:
            lows = np.minimum(lows, 0)
        t = _try(x, w, tried, lows, scheme)
        s, m, e = _least_squares(t, *sums, below)
        lane = e.argmin(1)[:, None]
        s, m, e = (np.take_along_axis(v, lane, 1)[:, 0] for v in (s, m, e))
        new = e < error
        scale, low, error = np.where(new, s, scale), np.where(new, m, low), np.where(new, e, error)
    return scale, low


def _least_squares(t: Tried, w: Floats, x: Floats, xx: Floats, below: bool) -> tuple[Floats, Floats, Floats]:
    """Scale, low and error that are best for the levels of each lane; w, x, xx are sums over each part [parts]."""
    w, x, xx = w[:, None], x[:, None], xx[:, None]
    determinant = w * t.ll - t.l * t.l
    sound = determinant > np.float32(1e-6) * w * t.ll
    divisor = np.where(sound, determinant, np.float32(1))
    scale = np.where(sound, (w * t.xl - x * t.l) / divisor, np.float32(0))
    low = np.where(sound, (t.ll * x - t.l * t.xl) / divisor, x / np.maximum(w, TINY))
    if below:
        alone = t.xl / np.maximum(t.ll, TINY)
        scale, low = np.where(low > 0, alone, scale), np.minimum(low, 0)
    scale = np.maximum(scale, 0)
    error = xx + scale * (scale * t.ll - 2 * t.xl + 2 * low * t.l) + low * (low * w - 2 * x)
    return scale, low, error


# -----------------------------------------------------------------------------------------------------------
# The scales that a block can hold


def _half(v: Floats) -> NDArray[np.float16]:
    limit = np.float32(65504)
    return np.clip(v, -limit, limit).astype(np.float16)


def _settle(
    x: Floats, w: Floats, scale: Floats, low: Floats, scheme: Scheme
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Scale and low as half-precision numbers [parts]: those around what is wanted, and those that just cover."""
    tried = scale[:, None] * _close(scheme.reach / 4)
    lows = np.repeat(low[:, None], LANES, 1)
    if scheme.affine:
        steps = np.float32(scheme.levels[1])
        lows = lows + (scale[:, None] - tried) * steps / 2
        lows[:, 0], tried[:, 0] = x.min(1), (x.max(1) - x.min(1)) / steps
    else:
        tried[:, 0] = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0] / np.float32(scheme.levels[0])
    d, base = _half(tried), _half(lows)
    lane = _try(x, w, d.astype(np.float32), base.astype(np.float32), scheme).error.argmin(1)[:, None]
    return np.take_along_axis(d, lane, 1)[:, 0], np.take_along_axis(base, lane, 1)[:, 0]


def _settle_scales(
    x: Floats, w: Floats, scale: Floats, low: Floats, scheme: Scheme
) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.int32], NDArray[np.int32]]:
    """The block's scale and unit of lows [blocks], and the integers that its parts multiply them with [blocks, subs].

    `scale` and `low` [blocks, subs] are what the parts want.
    """
    assert scheme.scales is not None
    bottom, top = (np.float32(end) for end in scheme.scales)
    peak = np.take_along_axis(scale, np.abs(scale).argmax(1)[:, None], 1)[:, 0]
    cover = peak / (top if scheme.affine else bottom)
    unit = -low.min(1) / top
    best: list[NDArray] = []
    for start in scheme.starts:
        d, base = _half(cover * np.float32(start)), _half(unit * np.float32(start))
        for _ in range(ROUNDS):
            scales, lows, t = _choose(x, w, scale, low, d, base, scheme)
            error = t.error.reshape(scale.shape).sum(1)
            found = [error, d, base, scales, lows]
            if not best:
                best = found
            new = error < best[0]
            best = [np.where(new if v.ndim == 1 else new[:, None], v, old) for v, old in zip(found, best, strict=True)]
            d, base = _move(
                t, (w * x).sum(1).reshape(scale.shape), w.sum(1).reshape(scale.shape), scales, lows, d, base
            )
    return best[1], best[2], best[3], best[4]


def _choose(x, w, scale, low, d, base, scheme) -> tuple[NDArray[np.int32], NDArray[np.int32], Tried]:
    """Of the integers around what each part wants, those that cost least, and what was found with them."""
    bottom, top = scheme.scales
    lanes = np.arange(LANES)
    d, base = d.astype(np.float32)[:, None], base.astype(np.float32)[:, None]
    near = np.rint(_ratio(scale, d)).reshape(-1, 1)
    if scheme.affine:
        integers = np.clip(near + lanes % 4 - 1, bottom, top)
        lows = np.clip(np.rint(_ratio(-low, base)).reshape(-1, 1) + lanes // 4 - 1, bottom, top)
    else:
        integers = np.clip(near + lanes - 8, bottom, top)
        lows = np.zeros_like(integers)
    subs = scale.shape[1]
    integers, lows = integers.astype(np.float32), lows.astype(np.float32)
    t = _try(x, w, np.repeat(d, subs, 0) * integers, -np.repeat(base, subs, 0) * lows, scheme)
    lane = t.error.argmin(1)
    chosen = [np.take_along_axis(v, lane[:, None], 1).reshape(scale.shape).astype(np.int32) for v in (integers, lows)]
    return chosen[0], chosen[1], t.take(lane)


def _ratio(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _move(t: Tried, x, w, scales, lows, d, base) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """The block's scale and unit of lows that are best for the levels and integers chosen."""
    shape = scales.shape
    s, m = scales.astype(np.float32), -lows.astype(np.float32)
    ss = (s * s * t.ll.reshape(shape)).sum(1)
    sm = (s * m * t.l.reshape(shape)).sum(1)
    mm = (m * m * w).sum(1)
    xs, xm = (s * t.xl.reshape(shape)).sum(1), (m * x).sum(1)
    determinant = ss * mm - sm * sm
    both = determinant > np.float32(1e-6) * ss * mm
    divisor = np.where(both, determinant, np.float32(1))
    alone = np.where(ss > 0, xs / np.maximum(ss, TINY), d.astype(np.float32))
    moved = np.where(both, (mm * xs - sm * xm) / divisor, alone)
    unit = np.where(both, (ss * xm - sm * xs) / divisor, base.astype(np.float32))
    return _half(moved), _half(np.maximum(unit, 0))
