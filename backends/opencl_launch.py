"""Launching OpenCL kernels: through PyOpenCL, or again by the driver's own call.

PyOpenCL sets every argument anew and makes an event at each launch. A kept launch has a kernel object of its own, whose
arguments are set once, and is then one call of clEnqueueNDRangeKernel with arguments that lie ready.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from .clblast import OUT_OF_MEMORY
from .gpu_programs import Kernel

KINDS = {"pointer": None, "int": np.int32, "float": np.float32, "i64": np.int64}
Enqueue = Callable[..., int]


class Call:
    """A kernel of a program with the types of its parameters; called as PyOpenCL's kernels are."""

    def __init__(self, cl: Any, program: Any, name: str, parameters: tuple[str, ...]):
        self._cl, self._program, self._name = cl, program, name
        self._kinds = [KINDS[parameter] for parameter in parameters]
        self._kernel = cl.Kernel(program, name)
        self._kernel.set_scalar_arg_dtypes(self._kinds)

    def __call__(self, queue: Any, size: tuple[int, int], group: tuple[int, int], *arguments: Any) -> None:
        self._kernel(queue, size, group, *arguments)

    def bound(self, arguments: tuple[Any, ...]) -> Any:
        """A kernel object of its own that has these arguments already."""
        kernel = self._cl.Kernel(self._program, self._name)
        for i, (kind, argument) in enumerate(zip(self._kinds, arguments, strict=True)):
            kernel.set_arg(i, argument if kind is None else kind(argument))
        return kernel


class KeptLaunches:
    """Launches on one queue, in order, to be made again; the memory of their arguments lives as long."""

    def __init__(self, queue: Any):
        self.calls: list[tuple[str, tuple[Any, ...]]] = []  # the kernel's name, the arguments of clEnqueueNDRangeKernel
        self._queue = ctypes.c_void_p(queue.int_ptr)
        self._alive: list[Any] = []

    def add(self, kernel: Kernel, x: int, y: int, arguments: tuple[Any, ...]) -> None:
        bound, pair = kernel.handle.bound(arguments), ctypes.c_size_t * 2
        address, size, group = ctypes.c_void_p(bound.int_ptr), pair(x * kernel.threads, y), pair(kernel.threads, 1)
        self._alive.append((bound, arguments))
        self.calls.append((kernel.name, (self._queue, address, 2, None, size, group, 0, None, None)))


def driver_enqueue(cl: Any) -> Enqueue | None:
    """clEnqueueNDRangeKernel of the very library that PyOpenCL has loaded; None where it cannot be reached."""
    try:
        function = ctypes.CDLL(cl._cl.__file__).clEnqueueNDRangeKernel  # found in what the extension is linked to
    except (AttributeError, OSError):
        return None
    function.restype = ctypes.c_int
    return function


def driver_error(cl: Any, code: int) -> Exception:
    """A failed call of `driver_enqueue`'s as the error that PyOpenCL would have raised."""
    text = f"clEnqueueNDRangeKernel failed: {cl.status_code.to_string(code, 'error %d')}"
    return cl.MemoryError(text) if code in OUT_OF_MEMORY else cl.RuntimeError(text)
