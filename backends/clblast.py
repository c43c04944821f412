"""CLBlast through its C interface: the OpenCL backend's other engine for long products. Imports no PyOpenCL."""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import BackendError, DeviceOutOfMemory
from .blas import BlasProbe, VendorBlas
from .gpu_memory import Handle

LIBRARIES = {
    "win32": ("clblast.dll",),
    "darwin": ("libclblast.1.dylib", "libclblast.dylib"),
}
INSTALL = {
    "linux": "apt install libclblast1, or your system's clblast package",
    "win32": "put clblast.dll on PATH",
    "darwin": "brew install clblast",
}
ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112  # clblast_c.h
OUT_OF_MEMORY = (-4, -5, -6)  # CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_RESOURCES, CL_OUT_OF_HOST_MEMORY


@functools.cache
def library() -> ctypes.CDLL | None:
    """The shared library, loaded; None where there is none."""
    for name in LIBRARIES.get(sys.platform, ("libclblast.so.1", "libclblast.so")):
        try:
            found = ctypes.CDLL(name)
            gemm = found.CLBlastSgemm
        except (OSError, AttributeError):
            continue
        size, pointer, matrix = ctypes.c_size_t, ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
        scalar = ctypes.c_float
        gemm.argtypes = [*[ctypes.c_int] * 3, *[size] * 3, scalar, *matrix, *matrix, scalar, *matrix, pointer, pointer]
        gemm.restype = ctypes.c_int
        return found
    return None


def find_clblast() -> BlasProbe:
    """CLBlast on this machine, or how to get it."""
    if library() is None:
        return BlasProbe("CLBlast", reason=f"not installed; {INSTALL.get(sys.platform, INSTALL['linux'])}")
    return BlasProbe("CLBlast", _version())


def _version() -> str:
    """The version in the name of the loaded file; CLBlast itself does not tell."""
    try:
        loaded = re.search(r"\S*/libclblast\S*", Path("/proc/self/maps").read_text())
    except OSError:
        return ""
    numbers = loaded and re.search(r"\.so\.([\d.]+)$", loaded[0])
    return numbers[1] if numbers else ""


class CLBlast(VendorBlas):
    """`queue` is a cl_command_queue, `address(handle)` the cl_mem of a backend's buffer, both as integers."""

    compiles = True

    def __init__(self, found: BlasProbe, device: str, queue: int, address: Callable[[Handle], int]):
        super().__init__(found)
        loaded = library()
        assert loaded is not None, "only what was found is opened"
        self._gemm: Any = loaded.CLBlastSgemm
        self._device, self._address = device, address
        self._queue = ctypes.c_void_p(queue)

    def gemm(
        self,
        x: Handle,
        w: Handle,
        y: Handle,
        *,
        tokens: int,
        rows: int,
        columns: int,
        first: int,
        stride: int,
        accumulate: bool,
    ) -> None:
        address = self._address
        status = self._gemm(
            ROW_MAJOR, AS_IS, TRANSPOSED, tokens, rows, columns, 1.0, address(x), 0, columns, address(w), 0, columns,
            float(accumulate), address(y), first, stride, ctypes.byref(self._queue), None,
        )  # fmt: skip
        if status in OUT_OF_MEMORY:
            raise DeviceOutOfMemory(f"{self._device}: no memory for a product by {self.found}", nbytes=0)
        if status:
            raise BackendError(
                f"{self._device}: {self.found} failed with status {status} in a product "
                f"[{tokens}, {columns}] x [{rows}, {columns}]",
                hint="--tinyblas multiplies with our own kernels",
            )
