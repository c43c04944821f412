"""How CUDA kernels start: one after the other, or while the one before still ends. Knows no kernels.

With programmatic dependent launch (from compute capability 9.0 on) a kernel's blocks start as soon as there is room,
and the kernel itself waits for what came before it. CuPy has no call for that: cuLaunchKernelEx is the driver's own.
"""

from __future__ import annotations

import ctypes
from typing import Any

from .cuda_api import Api
from .cuda_arena import CudaBuffer
from .gpu_programs import Kernel

CTYPES = {"pointer": ctypes.c_void_p, "int": ctypes.c_int, "float": ctypes.c_float, "i64": ctypes.c_longlong}
WITHOUT_ASKING = 48 << 10  # bytes of shared memory that a block may have
MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
DEPENDENT_FROM = (9, 0)  # compute capability
DEPENDENT_DRIVER = 12030  # CUDA 12.3: the first whose graphs keep such launches


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute of cuda.h; its value is a union of 64 bytes, of which this takes the first member's place."""

    _fields_ = (
        ("id", ctypes.c_uint),
        ("pad", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid_x", ctypes.c_uint),
        ("grid_y", ctypes.c_uint),
        ("grid_z", ctypes.c_uint),
        ("block_x", ctypes.c_uint),
        ("block_y", ctypes.c_uint),
        ("block_z", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("n_attributes", ctypes.c_uint),
    )


class Call:
    """A kernel's function and room for its arguments, which a launch copies: one set serves every launch.

    `waits` says that the kernel waits by itself for what came before it.
    """

    __slots__ = ("_pointers", "_values", "address", "function", "shared", "waits")

    def __init__(self, function: int, signature: tuple[str, ...], *, waits: bool):
        self.function, self.waits = function, waits
        self.shared = WITHOUT_ASKING  # bytes that the driver grants
        self._values: list[Any] = [CTYPES[kind]() for kind in signature]
        self._pointers = (ctypes.c_void_p * len(signature))(*map(ctypes.addressof, self._values))
        self.address = ctypes.addressof(self._pointers)

    def fill(self, arguments: tuple[Any, ...]) -> None:
        for value, argument in zip(self._values, arguments, strict=True):
            value.value = argument.ptr if isinstance(argument, CudaBuffer) else argument


class Launcher:
    """Starts kernels in a stream of a device of this compute capability. Raises RuntimeError as CuPy does."""

    def __init__(self, api: Api, stream: int, capability: tuple[int, int]):
        self._driver, self._launch_ex = api.driver, api.launch_ex
        able = capability >= DEPENDENT_FROM and api.runtime.driverGetVersion() >= DEPENDENT_DRIVER
        self.dependent = able and api.launch_ex is not None
        self._stream = stream
        self._allowed = LaunchAttribute(SERIALIZATION, b"", 1, b"")
        self._config = LaunchConfig(1, 1, 1, 1, 1, 1, 0, stream, ctypes.pointer(self._allowed), 1)

    def launch(self, kernel: Kernel, x: int, y: int, arguments: tuple[Any, ...]) -> None:
        call: Call = kernel.handle
        call.fill(arguments)
        if kernel.shared > call.shared:
            self._driver.funcSetAttribute(call.function, MOST_SHARED, kernel.shared)
            call.shared = kernel.shared
        if not (self.dependent and call.waits):
            self._driver.launchKernel(
                call.function, x, y, 1, kernel.threads, 1, 1, kernel.shared, self._stream, call.address, 0
            )
            return
        config = self._config
        config.grid_x, config.grid_y, config.block_x, config.shared = x, y, kernel.threads, kernel.shared
        assert self._launch_ex is not None
        self._launch_ex(ctypes.addressof(config), call.function, call.address)
