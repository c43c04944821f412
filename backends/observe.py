"""A CPU backend that notes the inputs of every product with a weight. Knows nothing of what they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels.cpu import native
from .base import Array, Backend, DeviceInfo, Weight
from .cpu import CpuBackend
from .numpy_ import NumpyBackend

Observer = Callable[[str, Array], None]  # a weight's name, and the input [T, columns]


def observing(observer: Observer) -> Callable[..., Backend]:
    """What opens a device as `registry.open_device` does, with `observer` told of every product.

    The layers are run by the base class's composites, which are written with `matmul` alone.
    """

    def open_device(device: DeviceInfo, **options: Any) -> Backend:
        base: Any = NumpyBackend if device.backend == "numpy" or native.library() is None else CpuBackend

        class Observing(base):
            linear, qkv, gated, project_add = Backend.linear, Backend.qkv, Backend.gated, Backend.project_add

            def run(self, stage: Any, x: Array, step: Any) -> Array:
                return Backend.run(self, stage, x, step)

            def matmul(self, x: Array, w: Weight) -> Array:
                observer(w.name, np.asarray(x))
                return super().matmul(x, w)

        return Observing.open(device, **options)

    return open_device
