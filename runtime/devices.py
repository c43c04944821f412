"""Chooses the devices that `--gpu` asks for among those the backends found. Pure; opens nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..backends.base import DeviceInfo, Probe
from ..backends.errors import BackendUnavailable
from .errors import UserError
from .gpu_kinds import ALIASES, KINDS

SPELLED = {"cuda": "CUDA", "opencl": "OpenCL"}
HOST_BACKENDS = ("cpu", "numpy")


def wants_gpu(gpu: str) -> bool:
    """Whether `--gpu` asks for any device but the host."""
    name = gpu.strip().lower()
    return ALIASES.get(name, name) != "disable"


def takes_any(gpu: str) -> bool:
    """Whether `--gpu` leaves the choice to us, so that a device that cannot be used is passed over."""
    return gpu.strip().lower() == "auto"


def without(probes: Sequence[Probe], device: DeviceInfo, reason: str) -> tuple[Probe, ...]:
    """The probes with a device closed that could not be opened; `reason` names it."""
    return tuple(
        replace(probe, devices=tuple(d for d in probe.devices if d != device), closed=(*probe.closed, reason))
        if probe.backend == device.backend
        else probe
        for probe in probes
    )


def choose_devices(gpu: str, probes: Sequence[Probe]) -> tuple[list[DeviceInfo], str]:
    """The devices that take layers, and a one-line notice for the user ("" when there is nothing to say).

    `gpu` is one of KINDS, an alias, a backend's name, or a device's such as `opencl:1`; case does not matter. A card
    that two backends see is taken from the first one, in the order of `probes`.

    auto     the real GPUs of the first backend that has any; with none, the CPU, and the notice says so
    nvidia   CUDA's devices, else OpenCL's of that vendor
    amd      OpenCL's GPUs of that vendor
    opencl   OpenCL's GPUs, else whatever devices it has, CPUs too
    disable  none

    Raises BackendUnavailable when what was asked for by name cannot be used, UserError for an unknown name.
    """
    name = gpu.strip().lower()
    kind = ALIASES.get(name, name)
    if not wants_gpu(gpu):
        return [], ""
    found = [device for probe in probes for device in probe.devices if device.backend not in HOST_BACKENDS]
    if kind == "auto":
        gpus = [device for device in found if device.is_gpu]
        if gpus:
            return [device for device in gpus if device.backend == gpus[0].backend], _closed(probes)
        closed = [probe for probe in probes if probe.closed]
        why = _reasons(closed) if closed else "`layerlift devices` says why"
        return [], f"no GPU in use, all layers on the CPU ({why})"
    if kind.split(":")[0] in HOST_BACKENDS:
        raise UserError(
            f"--gpu {gpu} is no GPU", hint="--gpu disable computes on the CPU; LAYERLIFT_ISA=numpy does so with NumPy"
        )
    if kind in KINDS:
        devices = _of_kind(kind, found)
    elif kind.split(":")[0] in {probe.backend for probe in probes}:
        devices = [device for device in found if kind in (str(device), device.backend)]
    else:
        raise UserError(f"--gpu {gpu} is unknown", hint=f"one of {', '.join(KINDS)}, or a device such as opencl:0")
    if not devices:
        concerned = {"nvidia": ("cuda", "opencl"), "amd": ("opencl",)}.get(kind, (kind.split(":")[0],))
        raise BackendUnavailable(
            f"--gpu {gpu} cannot be used: {_reasons([p for p in probes if p.backend in concerned])}",
            hint="--gpu auto takes what there is; `layerlift devices` shows it",
        )
    return devices, _closed([p for p in probes if p.backend in {device.backend for device in devices}])


def _closed(probes: Sequence[Probe]) -> str:
    """The devices that are passed over, on one line."""
    return "; ".join(f"not used: {line}" for probe in probes for line in probe.closed)


def _of_kind(kind: str, found: Sequence[DeviceInfo]) -> list[DeviceInfo]:
    if kind == "nvidia":
        cuda = [device for device in found if device.backend == "cuda"]
        return cuda or [d for d in found if d.backend == "opencl" and d.vendor == "nvidia" and d.is_gpu]
    opencl = [device for device in found if device.backend == "opencl"]
    gpus = [device for device in opencl if device.is_gpu]
    if kind == "amd":
        return [device for device in gpus if device.vendor == "amd"]
    return gpus or opencl


def _reasons(probes: Sequence[Probe]) -> str:
    """Why each backend has no fitting device, on one line."""
    parts = []
    for probe in probes:
        if probe.backend in HOST_BACKENDS:
            continue
        reason = probe.reason or "; ".join(probe.closed) or "no device"
        if probe.devices:
            names = [f"{device} {device.name}{'' if device.is_gpu else ', a CPU'}" for device in probe.devices]
            reason = f"only {'; '.join([*names, *probe.closed])}"
        parts.append(f"{SPELLED.get(probe.backend, probe.backend)}: {' '.join(reason.split())}")
    return "; ".join(parts) or "no GPU backend in this version"
