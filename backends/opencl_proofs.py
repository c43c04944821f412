"""Which optional parts of OpenCL a device may use: those whose small kernel builds on it and gives the right numbers.

What a driver says it offers decides only what is tried. The outcome is kept with the compiled programs, so that a
device is tried once. Knows no driver: it is handed a backend that compiles and launches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ..kernels import sources
from .errors import BackendError, first_line
from .gpu_device import GpuDevice
from .gpu_programs import Kernel
from .program_cache import ProgramCache

GROUP = 64  # threads of a proof


@dataclass(frozen=True)
class Way:
    """One way to have a part: `value` of the part's macro, worth a try where the device offers `needs`."""

    part: str  # a field of Tuning; in capitals a macro of kernels/opencl/prelude.h; prove_… is its kernel
    value: int
    needs: str  # an extension, or a vendor whose compiler may know a function


WAYS = (
    Way("halves", 1, "cl_khr_fp16"),
    Way("subgroups", 1, "cl_khr_subgroups"),
    Way("subgroups", 2, "cl_intel_subgroups"),
    Way("dot", 1, "cl_khr_integer_dot_product"),
    Way("dot", 2, "amd"),
    Way("dot", 3, "amd"),
)
NAMES = {"halves": "fp16", "subgroups": "subgroups", "dot": "integer dot products"}


@dataclass(frozen=True)
class Proofs:
    """`parts`: the value of each part, 0 where it has none. `reasons`: why a part that was tried is not used."""

    parts: Mapping[str, int]
    reasons: Mapping[str, str]

    def describe(self) -> str:
        """One line: `fp16 proved; subgroups not offered; …`."""
        return "; ".join(f"{name} {self._state(part)}" for part, name in NAMES.items())

    def _state(self, part: str) -> str:
        if self.parts[part]:
            return "proved"
        return f"not used ({self.reasons[part]})" if part in self.reasons else "not offered"


def known(cache: ProgramCache, identity: tuple[str, ...]) -> Proofs | None:
    """What an earlier run found on this device with these kernels."""
    kept = cache.read(_key(cache, identity))
    try:
        return Proofs(**json.loads(kept)) if kept else None
    except (ValueError, TypeError):
        return None


def prove(device: GpuDevice, offered: Collection[str]) -> Proofs:
    """Tries every way that the device offers, in order, until each part has one; keeps the outcome."""
    parts, reasons = dict.fromkeys(NAMES, 0), {}
    for way in WAYS:
        if parts[way.part] or way.needs not in offered:
            continue
        try:
            right = CHECKS[way.part](device, _kernel(device, way))
            reason = "" if right else "wrong numbers"
        except BackendError as error:
            reason = first_line(error)
        if reason:
            reasons[way.part] = reason
        else:
            parts[way.part] = way.value
            reasons.pop(way.part, None)
    proofs = Proofs(parts, reasons)
    if not device.kernels.nocompile:  # which builds nothing, and proves nothing
        device.cache.write(_key(device.cache, device.identity), json.dumps(vars(proofs)).encode())
    return proofs


def text_of(way: Way) -> str:
    """The program that proves a way."""
    macros = {"GROUP_SIZE": GROUP, "COMPACT": 0, "RAGGED": 0, way.part.upper(): way.value}
    return sources.program("opencl", ("team",), macros) + sources.read("opencl/proofs.h")


def _key(cache: ProgramCache, identity: tuple[str, ...]) -> str:
    return cache.key((*identity, "proofs", *map(text_of, WAYS)))


def _kernel(device: GpuDevice, way: Way) -> Kernel:
    text, name = text_of(way), f"prove_{way.part}"
    signature = {name: sources.signatures(text)[name]}
    return Kernel(name, device._compile(text, signature)[name], GROUP)


def _halves_right(device: GpuDevice, kernel: Kernel) -> bool:
    x = np.concatenate([[0, 1, -1, 1 / 3, 65504, 4e6, -70000, 1e-3], np.linspace(-9, 9, GROUP - 8)]).astype(np.float32)
    source, y = device.upload(x), device.empty((GROUP,))
    device.run_kernel(kernel, 1, 1, source.handle, y.handle)
    want = 2 * 64 * (x[::-1] / 64).astype(np.float16).astype(np.float32)
    return np.array_equal(device.download(y), want)


def _subgroups_right(device: GpuDevice, kernel: Kernel) -> bool:
    x = np.random.default_rng(0).integers(-99, 99, GROUP).astype(np.float32)  # whose sums are exact in any order
    source = device.upload(x)
    for lanes in (1 << i for i in range(GROUP.bit_length())):
        y = device.empty((3, GROUP))
        device.run_kernel(kernel, 1, 1, source.handle, y.handle, lanes)
        want = np.repeat(x.reshape(-1, lanes).sum(axis=1), lanes)
        if not np.array_equal(device.download(y), want * np.array([[1], [2], [3]], np.float32)):
            return False
    return True


def _dot_right(device: GpuDevice, kernel: Kernel) -> bool:
    a, b = np.random.default_rng(0).integers(-128, 128, (2, GROUP, 4)).astype(np.int8)
    a[0], b[0], b[1] = -128, -128, 127
    sums = np.arange(GROUP, dtype=np.int32) * 30_000_000 - 900_000_000  # beyond 16 bits
    y, left, right = (device.upload(x) for x in (sums, a.view(np.int32)[:, 0], b.view(np.int32)[:, 0]))
    device.run_kernel(kernel, 1, 1, left.handle, right.handle, y.handle)
    return np.array_equal(device.download(y), sums + (a.astype(np.int32) * b).sum(axis=1, dtype=np.int32))


CHECKS: dict[str, Callable[[GpuDevice, Kernel], bool]] = {
    "halves": _halves_right,
    "subgroups": _subgroups_right,
    "dot": _dot_right,
}
