"""cuBLAS through CuPy: the CUDA backend's other engine for long products. Imports CuPy at first use.

x and w go in as bfloat16 where the device multiplies it (compute capability 8.0 and up), else as float32: float16 would
overflow in models whose activations pass 65504. Sums are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .base import BackendError, DeviceInfo, DeviceOutOfMemory
from .blas import BlasProbe, VendorBlas
from .cuda_api import cublas, external_stream
from .errors import first_line
from .gpu_memory import Handle

AS_IS, TRANSPOSED = 0, 1  # cublasOperation_t
NO_MEMORY = 3  # CUBLAS_STATUS_ALLOC_FAILED
FLOAT, BRAIN_FLOAT = 0, 14  # cudaDataType_t
SUMS_IN_FLOAT, ANY_ALGORITHM = 68, -1  # CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT
INSTALL = "pip install nvidia-cublas, or nvidia-cublas-cu12 beside layerlift[cuda12]"

Guard = Callable[[str, Callable[[], Any]], Any]  # runs a call on the backend's device


def find_cublas() -> BlasProbe:
    """cuBLAS of this machine, or how to get it. Opens nothing on the device."""
    try:
        cublas()
    except ImportError:
        return BlasProbe("cuBLAS", reason=f"not installed; {INSTALL}")
    except Exception as error:
        return BlasProbe("cuBLAS", reason=f"cannot be loaded: {first_line(error)}")
    return BlasProbe("cuBLAS")


class CuBlas(VendorBlas):
    """`stream` is the backend's; `brain` says that the device multiplies bfloat16."""

    def __init__(self, found: BlasProbe, device: DeviceInfo, guarded: Guard, stream: int, *, brain: bool):
        super().__init__(found)
        self._device = device
        self.dtype = "bf16" if brain else "f32"
        self._code = BRAIN_FLOAT if brain else FLOAT
        self._guarded, self._library = guarded, cublas()
        self._stream = external_stream(stream)
        self._handle = int(self._call("be opened", self._library.create))
        self._factors = np.array([0, 1], np.float32)  # cuBLAS reads them on the host, at the call

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
        # cuBLAS counts down columns, so that our rows are its columns: it computes y.T = w @ x.T.
        zero = self._factors.ctypes.data
        multiply = functools.partial(
            self._library.gemmEx, self._handle, TRANSPOSED, AS_IS, rows, tokens, columns, zero + 4, w.ptr, self._code,
            columns, x.ptr, self._code, columns, zero + 4 * accumulate, y.ptr + 4 * first, FLOAT, stride, SUMS_IN_FLOAT,
            ANY_ALGORITHM,
        )  # fmt: skip

        def queue() -> None:
            with self._stream:  # CuPy hands its current stream on
                multiply()

        self._call(f"multiply [{tokens}, {columns}] x [{rows}, {columns}]", queue)

    def close(self) -> None:
        if self._handle:
            self._call("be closed", lambda: self._library.destroy(self._handle))
            self._handle = 0

    def _call(self, doing: str, call: Callable[[], Any]) -> Any:
        """The library's failures as ours: its numbers are not those of CUDA."""

        def guarded() -> Any:
            try:
                return call()
            except RuntimeError as error:
                if getattr(error, "status", 0) == NO_MEMORY:
                    raise DeviceOutOfMemory(
                        f"{self._device}: no memory for cuBLAS to {doing}", nbytes=0, device=self._device
                    ) from None
                raise BackendError(
                    f"{self._device}: cuBLAS cannot {doing}: {first_line(error)}",
                    hint="--tinyblas multiplies with our own kernels",
                ) from None

        return self._guarded("cuBLAS", guarded)
