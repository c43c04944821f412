"""Which engine multiplies a prompt, our own kernels or the vendor's BLAS, and the record of what was measured.

`--recompile` times both on the model's own matrices and keeps the times in the kernel cache, by device, driver,
library and shape. Later runs take the faster one; where nothing was measured, the vendor's if it loads, else ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .base import Weight
from .blas import BlasProbe
from .kernel_settings import KernelSettings
from .program_cache import ProgramCache


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one product by each engine."""

    own: float
    vendor: float


def shape_of(w: Weight) -> str:
    """What a time is kept under: "Q4_1 1536x576"."""
    return f"{w.fmt} {w.shape[0]}x{w.shape[1]}"


class BlasRecord:
    """The times of one device with one library, in the kernel cache. A damaged record counts as none."""

    def __init__(self, cache: ProgramCache, identity: Iterable[str], found: BlasProbe):
        """`identity` names device, driver and the sources of our own products."""
        self._cache = cache
        self._key = cache.key(("blas", *identity, str(found)))
        self.times: dict[str, Timing] = self._read()

    def _read(self) -> dict[str, Timing]:
        try:
            rows = json.loads(self._cache.read(self._key) or b"{}")
            return {shape: Timing(float(own), float(vendor)) for shape, (own, vendor) in rows.items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    def add(self, times: Mapping[str, Timing]) -> None:
        """Keeps new times beside those of other shapes."""
        self.times = {**self._read(), **times}
        rows = {shape: (time.own, time.vendor) for shape, time in sorted(self.times.items())}
        self._cache.write(self._key, json.dumps(rows).encode())


def takes_vendor(w: Weight, times: Mapping[str, Timing]) -> bool:
    """Whether the vendor's BLAS, which is there, multiplies by w."""
    time = times.get(shape_of(w))
    return time is None or time.vendor < time.own


def refused(found: BlasProbe, settings: KernelSettings, *, compiles: bool) -> str:
    """Why a library is not even opened; "" when it may be."""
    if found.reason:
        return found.reason
    if settings.tinyblas:
        return "--tinyblas"
    if settings.nocompile and compiles:
        return f"{found.name} builds its kernels in each process, which --nocompile rules out"
    return ""


def explain(found: BlasProbe, times: Mapping[str, Timing]) -> str:
    """One line for `layerlift devices`: what multiplies prompts on a device, and why."""
    if found.reason:
        return f"prompt products: our own kernels ({found.name}: {found.reason})"
    if not times:
        return f"prompt products: {found}, which loads (nothing measured yet; --recompile does)"
    return "prompt products: " + summary(found, times)


def summary(found: BlasProbe, times: Mapping[str, Timing]) -> str:
    """Who won, and by how much, over all shapes."""
    own, vendor = sum(t.own for t in times.values()), sum(t.vendor for t in times.values())
    won = sum(t.vendor < t.own for t in times.values())
    sums = f"{own:.1f} ms by our own kernels, {vendor:.1f} ms by {found}, one of each shape"
    if won == len(times):
        return f"{found}, {own / vendor:.2f} times as fast as our own kernels ({sums})"
    if not won:
        return f"our own kernels, {vendor / own:.2f} times as fast as {found} ({sums})"
    best = sum(min(t.own, t.vendor) for t in times.values())
    return f"{found} for {won} of {len(times)} shapes, our own kernels for the rest: {best:.1f} ms ({sums})"
