"""A device that is none: NumPy behind a wall, which counts what crosses it and fails allocations on request."""

from __future__ import annotations

from typing import Any

import numpy as np
from layerlift.backends.base import DeviceInfo, Picked
from layerlift.backends.errors import DeviceOutOfMemory
from layerlift.backends.numpy_ import NumpyBackend

GIB = 1 << 30


class FakeArray(np.ndarray):
    """An array on the fake device. The host must never see one."""


class FakeBackend(NumpyBackend):
    """Counts `ups` and `downs`; with `memory` bytes given, loading more raises DeviceOutOfMemory."""

    name = "fake"

    def __init__(self, device: DeviceInfo, *, memory: int | None = None):
        super().__init__(device)
        self.ups = self.downs = 0
        self.memory = memory

    def upload(self, host: Any) -> Any:
        assert not isinstance(host, FakeArray), "uploaded twice"
        self.ups += 1
        return np.array(host).view(FakeArray)

    def download(self, x: Any) -> Any:
        assert isinstance(x, FakeArray), "downloaded what is not on the device"
        self.downs += 1
        return np.array(x)

    def load(self, raw, fmt, shape, name):
        if self.memory is not None:
            self.memory -= raw.nbytes
            if self.memory < 0:
                raise DeviceOutOfMemory(f"{self.device}: no memory for {name}, {raw.nbytes} bytes", nbytes=raw.nbytes)
        return super().load(raw, fmt, shape, name)

    def embed(self, table, tokens):
        return super().embed(table, tokens).view(FakeArray)

    def matmul(self, x, w):
        assert isinstance(x, FakeArray), "an activation of another device"
        return super().matmul(x, w).view(FakeArray)


class AheadBackend(NumpyBackend):
    """NumPy as a device that goes on with its own tokens before the host has them; `ahead` counts such steps."""

    name = "fake"
    ahead = 0

    def pick(self, logits, draws=()):
        ids = super().pick(logits, draws).wait()
        return Picked(lambda: ids, ids.view(FakeArray))

    def embed(self, table, tokens):
        self.ahead += isinstance(tokens, FakeArray)
        return super().embed(table, np.asarray(tokens))


class HostBackend(NumpyBackend):
    """NumPy that refuses arrays of the fake device."""

    def matmul(self, x, w):
        assert not isinstance(x, FakeArray), "an activation of another device"
        return super().matmul(x, w)


def fake_gpu(index: int = 0, free: int = 8 * GIB) -> DeviceInfo:
    return DeviceInfo("fake", index, "Fake GPU", "nvidia", True, total=free, free=free)


HOST = DeviceInfo("numpy", 0, "NumPy", "cpu", False)


def open_fake(device: DeviceInfo, **options: Any) -> NumpyBackend:
    """In place of the registry's: fake devices and a strict host."""
    return FakeBackend(device) if device.backend == "fake" else HostBackend(device)
