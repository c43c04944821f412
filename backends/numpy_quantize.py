"""Quantises rows of weights in plain NumPy: the reference of kernels/cpu/quantize, and what works without it.

Everything rests on two facts. For a scale and a low, the best levels are the nearest ones; for levels, the best scale
and low are those of least squares, and away from these the error grows as a quadratic that three sums describe. So a
part of a block tries many scales and lows at once, from lines of starts around those that just cover its weights, and
each start becomes a wish: what its levels want, and what every other scale and low would cost them. Where a block is
one part, the half-precision numbers next to the best wish are taken. Where parts have integer scales of one scale of
the block's own, sixteen of those are tried, each part taking the integers closest to the wish that is cheapest with
them; at last every part tries the integers around its choice. Errors are weighed with the importance of a weight's
column; without importance some formats weigh them with the size of the weight, since least squares alone shorten
what they stand for, by the share that the error has of its squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import BY_NAME
from .quantize_formats import SCHEMES, Blocks, Effort, Scheme, pack

Floats = NDArray[Any]  # of float32, which NumPy's own annotations lose
Halves = NDArray[np.float16]

LANES = 16
TINY = np.float32(1e-38)
AT_ONCE = 1 << 15  # weights, so that temporary arrays stay at a few MB


def quantize_rows(x: Floats, fmt: str, importance: Floats | None = None) -> NDArray[np.uint8]:
    """x [rows, columns] float32, finite, to [rows, row_nbytes] uint8; `importance` [columns] weighs squared errors."""
    form, scheme = BY_NAME[fmt], SCHEMES[fmt]
    blocks = x.reshape(-1, form.block)
    effort = scheme.plain if importance is None else scheme.weighed
    step = max(1, AT_ONCE // x.shape[1]) * (x.shape[1] // form.block)  # whole rows
    out = np.empty((len(blocks), form.nbytes), np.uint8)
    for first in range(0, len(blocks), step):
        part = blocks[first : first + step]
        out[first : first + step] = pack(fmt, _quantize(part, _weights(part, scheme, importance), scheme, effort))
    return out.reshape(len(x), -1)


def _weights(blocks: Floats, scheme: Scheme, importance: Floats | None) -> Floats:
    """What errors are weighed with [blocks, weights]; `blocks` are whole rows."""
    if importance is not None:
        return np.resize(importance, blocks.shape)
    return np.abs(blocks) if scheme.by_size else np.ones_like(blocks)


def _quantize(x: Floats, w: Floats, scheme: Scheme, effort: Effort) -> Blocks:
    count = len(x)
    parts = _Parts(x.reshape(-1, scheme.sub), w.reshape(-1, scheme.sub), scheme)
    if scheme.scales is None:
        d, base = _settle(parts, effort)
        q = parts.levels(d.astype(np.float32), base.astype(np.float32))
        none = np.zeros((count, 1), np.int32)
        return Blocks(q, d, base, none, none)
    d, base, scales, lows = _settle_shared(parts, effort, count)
    subs = scales.size // count
    scale = np.repeat(d.astype(np.float32), subs) * scales
    low = -np.repeat(base.astype(np.float32), subs) * lows
    integers = [v.reshape(count, subs).astype(np.int32) for v in (scales, lows)]
    return Blocks(parts.levels(scale, low).reshape(count, -1), d, base, *integers)


# -----------------------------------------------------------------------------------------------------------
# What scales and lows cost


@dataclass(frozen=True)
class Wishes:
    """What levels want [parts, starts], and the sums that say what other scales and lows cost them."""

    scale: Floats
    low: Floats
    error: Floats
    level_level: Floats
    level: Floats

    def cost(self, scale: Floats, low: Floats, weight: Floats) -> Floats:
        """The error of these levels with other scales and lows; `weight` [parts, 1]."""
        step, rise = scale - self.scale, low - self.low
        return self.error + step * (step * self.level_level + 2 * rise * self.level) + rise * rise * weight

    def expanded(self) -> Wishes:
        """With an axis more, for pairs of a block's scale and unit of lows."""
        return Wishes(*(v[..., None] for v in (self.scale, self.low, self.error, self.level_level, self.level)))


@dataclass(frozen=True)
class _Parts:
    """Parts of blocks: x and their weights w [parts, sub]."""

    x: Floats
    w: Floats
    scheme: Scheme

    @property
    def weight(self) -> Floats:
        """[parts, 1]"""
        return self.w.sum(1, keepdims=True)

    def starts(self, effort: Effort) -> tuple[Floats, Floats]:
        """The scales and lows that the search begins with [parts, starts]."""
        scale, low = _starts(self.scheme, effort)
        least, most = self.x.min(1, keepdims=True), self.x.max(1, keepdims=True)
        if not self.scheme.affine:
            return np.where(most > -least, most, least) * scale, np.zeros((len(least), len(low)), np.float32)
        if self.scheme.scales is not None:  # lows are 0 or below
            least, most = np.minimum(least, 0), np.maximum(most, 0)
        step = (most - least) / np.float32(self.scheme.levels[1])
        lows = least + step * low
        return step * scale, np.minimum(lows, 0) if self.scheme.scales is not None else lows

    def nearest(self, scale: Floats, low: Floats) -> Floats:
        """Levels [parts, lanes, sub] for scales and lows [parts, lanes]."""
        inverse = scale / np.maximum(scale * scale, TINY)  # 0 for 0
        v = (self.x[:, None] - low[..., None]) * inverse[..., None]
        if self.scheme.table:
            table = np.array(self.scheme.table, np.float32)
            return table[np.searchsorted((table[1:] + table[:-1]) / 2, v)]
        return np.rint(np.clip(v, *map(np.float32, self.scheme.levels)))

    def levels(self, scale: Floats, low: Floats) -> NDArray[np.uint8]:
        """Counted from the lowest [parts, sub], for one scale and low of each part [parts]."""
        level = self.nearest(scale[:, None], low[:, None])[:, 0]
        if self.scheme.table:
            return np.searchsorted(np.array(self.scheme.table, np.float32), level).astype(np.uint8)
        return (level - self.scheme.levels[0]).astype(np.uint8)

    def errors(self, scale: Floats, low: Floats) -> Floats:
        off = self.x[:, None] - low[..., None] - scale[..., None] * self.nearest(scale, low)
        return (self.w[:, None] * off * off).sum(-1)

    def wish(self, scale: Floats, low: Floats) -> tuple[Floats, Wishes]:
        """The errors with scales and lows [parts, lanes], and what their levels want."""
        level, w, weight = self.nearest(scale, low), self.w[:, None], self.weight
        off = self.x[:, None] - low[..., None] - scale[..., None] * level
        error, off_level, ll = (w * off * off).sum(-1), (w * off * level).sum(-1), (w * level * level).sum(-1)
        if self.scheme.affine:
            off, level = (w * off).sum(-1), (w * level).sum(-1)
            determinant = weight * ll - level * level
            sound = determinant > np.float32(1e-6) * weight * ll  # else: all levels alike
            step = np.where(sound, weight * off_level - level * off, 0) / np.maximum(determinant, TINY)
            rise = (off - level * step) / np.maximum(weight, TINY)
            if self.scheme.scales is not None:
                rise = np.minimum(rise, -low)
            step = np.maximum((off_level - level * rise) / np.maximum(ll, TINY), -scale)
        else:
            off = level = rise = np.zeros_like(error)
            step = off_level / np.maximum(ll, TINY)
        gain = 2 * (step * off_level + rise * off) - step * (step * ll + 2 * rise * level) - rise * rise * weight
        return error, Wishes(scale + step, low + rise, np.maximum(error - gain, 0), ll, level)


def _starts(scheme: Scheme, effort: Effort) -> tuple[Floats, Floats]:
    """Scales and lows in units of what a part spans [starts]; the first just cover its weights."""
    scales, lows = [1.0 if scheme.affine else 1 / scheme.levels[0]], [0.0]
    for pin, begin, end, starts in scheme.lines:
        for share in np.linspace(begin, end, starts * effort.density):
            scales.append(share if scheme.affine else share / pin)
            lows.append(pin * (1 - share) * scheme.levels[1] if scheme.affine else 0.0)
    return np.array(scales, np.float32), np.array(lows, np.float32)


# -----------------------------------------------------------------------------------------------------------
# The scales that a block can hold


def _half(v: Floats) -> Halves:
    limit = np.float32(65504)
    return np.clip(v, -limit, limit).astype(np.float16)


def _take(v: NDArray[Any], lane: NDArray[np.intp]) -> NDArray[Any]:
    """One lane of each part [parts]."""
    return np.take_along_axis(v, lane[:, None], 1)[:, 0]


def _settle(parts: _Parts, effort: Effort) -> tuple[Halves, Halves]:
    """Scale and low as half-precision numbers [parts]."""
    weight = parts.weight
    d, base = (_half(v) for v in parts.starts(effort))
    if not parts.scheme.lines:
        return d[:, 0], base[:, 0]
    tried = []
    for _ in range(effort.polish + 1):
        error, wish = parts.wish(d.astype(np.float32), base.astype(np.float32))
        tried.append((error, d, base))
        d = _half(wish.scale)
        step = d.astype(np.float32) - wish.scale
        base = _half(wish.low - wish.level / np.maximum(weight, TINY) * step)
        tried.append((wish.cost(d.astype(np.float32), base.astype(np.float32), weight), d, base))
    errors, ds, bases = (np.concatenate(v, axis=1) for v in zip(*tried, strict=True))
    lane = errors.argmin(1)
    return _take(ds, lane), _take(bases, lane)


def _settle_shared(parts: _Parts, effort: Effort, count: int) -> tuple[Halves, Halves, Floats, Floats]:
    """The scale and the unit of lows of `count` blocks [blocks], and the integers of their parts [parts]."""
    scheme, weight = parts.scheme, parts.weight[..., None]
    wish = _polished(parts, effort)
    wanted = [_take(v, wish.error.argmin(1)).reshape(count, -1) for v in (wish.scale, wish.low)]
    ds, units = _units(wanted[0], wanted[1], scheme)  # [blocks, pairs]
    subs = len(parts.x) // count
    d, unit = (np.repeat(v.astype(np.float32), subs, 0)[:, None] for v in (ds, units))  # [parts, 1, pairs]
    wish = wish.expanded()
    scales, lows = _closest(wish, d, unit, weight, scheme)
    costs = wish.cost(scales * d, -lows * unit, weight)  # [parts, starts, pairs]
    pair = costs.min(1).reshape(count, subs, LANES).sum(1).argmin(1)
    at = np.arange(len(parts.x)), slice(None), np.repeat(pair, subs)
    start = costs[at].argmin(1)
    d, unit = _take(ds, pair), _take(units, pair)
    refined = _refine(
        parts, np.repeat(d, subs), np.repeat(unit, subs), _take(scales[at], start), _take(lows[at], start)
    )
    return d, unit, refined[0], refined[1]


def _polished(parts: _Parts, effort: Effort) -> Wishes:
    _, wish = parts.wish(*parts.starts(effort))
    for _ in range(effort.polish):
        _, wish = parts.wish(wish.scale, wish.low)
    return wish


def _units(scale: Floats, low: Floats, scheme: Scheme) -> tuple[Halves, Halves]:
    """Sixteen pairs of a block's scale and unit of lows [blocks, pairs], around those that cover what parts want."""
    assert scheme.scales is not None
    bottom, top = (np.float32(end) for end in scheme.scales)
    d = _take(scale, np.abs(scale).argmax(1)) / (top if scheme.affine else bottom)
    unit = np.maximum(-low.min(1), 0) / top
    across = np.linspace(*scheme.units, 4 if scheme.affine else LANES).astype(np.float32)
    down = np.linspace(*scheme.units, 4).astype(np.float32)
    factors = np.tile(across, LANES // len(across)), np.repeat(down, LANES // len(down))
    return _half(d[:, None] * factors[0]), _half(unit[:, None] * factors[1])


def _closest(wish: Wishes, d: Floats, unit: Floats, weight: Floats, scheme: Scheme) -> tuple[Floats, Floats]:
    """The integers that come closest to wishes [parts, starts, pairs]: the scale's, and the low's best with it."""
    assert scheme.scales is not None
    scale = np.clip(np.rint(_ratio(wish.scale, d)), *map(np.float32, scheme.scales))
    if not scheme.affine:
        return scale, np.zeros_like(scale)
    depth = wish.level / np.maximum(weight, TINY) * (scale * d - wish.scale) - wish.low
    return scale, np.clip(np.rint(_ratio(depth, unit)), 0, np.float32(scheme.scales[1]))


def _refine(parts: _Parts, d: Halves, unit: Halves, scale: Floats, low: Floats) -> tuple[Floats, Floats]:
    """Of the integers around those of each part [parts], the ones whose nearest levels cost least."""
    scheme, lanes = parts.scheme, np.arange(LANES, dtype=np.float32)
    assert scheme.scales is not None
    bottom, top = (np.float32(end) for end in scheme.scales)
    if scheme.affine:
        scales = np.clip(scale[:, None] + lanes % 4 - 1, bottom, top)
        lows = np.clip(low[:, None] + lanes // 4 - 1, 0, top)
    else:
        scales = np.clip(scale[:, None] + lanes - 8, bottom, top)
        lows = np.zeros_like(scales)
    errors = parts.errors(scales * d[:, None].astype(np.float32), -lows * unit[:, None].astype(np.float32))
    lane = errors.argmin(1)
    return _take(scales, lane), _take(lows, lane)


def _ratio(a: Floats, b: Floats) -> Floats:
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.zeros(a.shape, np.float32), where=b != 0)
