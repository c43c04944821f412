"""How a backend comes by its kernels: the open option `kernels` of every device. Knows no device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelSettings:
    """`recompile` with `nocompile` is a contradiction, which whoever reads the flags refuses."""

    recompile: bool = False  # kernels are built again, and what can be done in two ways is measured
    tinyblas: bool = False  # products of our own only
    nocompile: bool = False  # kernels come from the cache, or the run ends
