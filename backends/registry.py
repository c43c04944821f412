"""Which backends there are, in order of preference, and how one is opened. Imports none until it is asked for."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from .base import Backend, DeviceInfo, Probe
from .errors import BackendUnavailable

# name → module and class. Third parties register theirs as entry points of the group `layerlift.backends`.
BUILTIN = {
    "cuda": ("cuda", "CudaBackend"),
    "opencl": ("opencl", "OpenCLBackend"),
    "cpu": ("cpu", "CpuBackend"),
    "numpy": ("numpy_", "NumpyBackend"),
}
HOST = ("cpu", "numpy")  # compute on the host, the better one first


def names() -> tuple[str, ...]:
    """Every known backend: the built-in ones in order of preference, then those of other packages."""
    return (*BUILTIN, *(e.name for e in entry_points(group="layerlift.backends") if e.name not in BUILTIN))


def backend_class(name: str) -> type[Backend]:
    """The class behind a name; raises BackendUnavailable for an unknown one."""
    if name in BUILTIN:
        module, attribute = BUILTIN[name]
        return getattr(importlib.import_module(f".{module}", __package__), attribute)
    for entry in entry_points(group="layerlift.backends"):
        if entry.name == name:
            return entry.load()
    raise BackendUnavailable(f"backend {name!r} is unknown", hint=f"known: {', '.join(names())}")


def probe_all(*, gpus: bool = True) -> tuple[Probe, ...]:
    """What every backend found on this machine; without `gpus`, the host's only, which loads no driver.

    A third party's backend that fails is reported, not raised.
    """
    probes = []
    for name in names() if gpus else HOST:
        try:
            probes.append(backend_class(name).probe())
        except Exception as error:
            probes.append(Probe(name, reason=f"{type(error).__name__}: {error}"))
    return tuple(probes)


def open_device(device: DeviceInfo, **options: Any) -> Backend:
    """Opens a device that a probe found."""
    return backend_class(device.backend).open(device, **options)


def host_device(probes: tuple[Probe, ...]) -> tuple[DeviceInfo, str]:
    """The best backend that computes on the host, and a one-line notice where that is NumPy: why it is.

    LAYERLIFT_ISA=numpy asks for NumPy.
    """
    found = {probe.backend: probe for probe in probes}
    if found["cpu"].devices:
        return found["cpu"].devices[0], ""
    return found["numpy"].devices[0], f"computing with NumPy, which is slow: {found['cpu'].reason}"
