"""CuPy's modules for the CUDA runtime, driver and compiler, and what their failures mean. Knows no ops.

CuPy is imported here alone, at first use. Its low-level calls take addresses as integers and raise RuntimeErrors that
carry CUDA's status.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .errors import first_line

INSTALL = "pip install 'layerlift[cuda13]' (driver 580 or newer), or 'layerlift[cuda12]'"
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY
TOO_OLD, BUSY = 35, 46  # cudaErrorInsufficientDriver, cudaErrorDevicesUnavailable
COMPUTE_MODE = 20  # cudaDevAttrComputeMode
PROHIBITED = 2  # cudaComputeModeProhibited
MODES = {  # cudaComputeMode of a device that cannot be opened
    PROHIBITED: "the device's compute mode is prohibited; `nvidia-smi -c DEFAULT` lets programs use it",
    3: "the device is in exclusive mode and another program holds it; `nvidia-smi -c DEFAULT` lets both use it",
}

# What a user can do about a status of the CUDA runtime (cudaError_t).
MEANINGS = {
    OUT_OF_MEMORY: "the device's memory is taken by other programs",
    3: "the CUDA driver cannot be initialised; after a driver update the machine must be restarted",
    34: "the driver found is a stub without a GPU behind it",
    TOO_OLD: "the NVIDIA driver is missing or older than CuPy needs; install a newer driver, or CuPy for an older CUDA",
    BUSY: "the device is busy",
    100: "no NVIDIA GPU",
    101: "there is no such device",
    802: "the machine's NVLink fabric is not ready; the service nvidia-fabricmanager must run",
    803: "the NVIDIA driver's kernel and user parts differ; restart the machine",
    804: "the device is too old for this driver's compatibility package",
}


class DriverError(RuntimeError):
    """A call of the driver's that failed, as CuPy's errors are."""

    def __init__(self, name: str, status: int):
        super().__init__(f"{name} ended with CUDA error {status}")
        self.status = status


# cuLaunchKernelEx(address of a CUlaunchConfig, function, address of the arguments' addresses). Raises DriverError.
LaunchEx = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Api:
    """The three modules, as CuPy 13 and 14 have them, and what they lack of the driver (None: it has none)."""

    runtime: Any
    driver: Any
    nvrtc: Any
    launch_ex: LaunchEx | None


@functools.cache
def api() -> Api:
    """CuPy's modules. Raises ImportError where CuPy is missing or its own libraries are."""
    from cupy.cuda import driver, nvrtc, runtime

    return Api(runtime, driver, nvrtc, _launch_ex())


def _launch_ex() -> LaunchEx | None:
    """cuLaunchKernelEx, which drivers have from CUDA 11.8 on."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            function = ctypes.CDLL(name).cuLaunchKernelEx
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_void_p,) * 4

        def launch(config: int, kernel: int, arguments: int, function: Any = function) -> None:
            if status := function(config, kernel, arguments, None):
                raise DriverError("cuLaunchKernelEx", status)

        return launch
    return None


def cublas() -> Any:
    """CuPy's module for cuBLAS. Raises ImportError where the library is missing."""
    from cupy.cuda import cublas

    return cublas


def external_stream(stream: int) -> Any:
    """A context in which what CuPy queues itself goes to this stream."""
    from cupy.cuda import ExternalStream

    return ExternalStream(stream)


def missing() -> str:
    """Why CuPy cannot be used; "" when it can."""
    if find_spec("cupy") is None:
        return f"cupy is not installed; {INSTALL}"
    try:
        api()
    except Exception as error:
        return f"cupy cannot be imported: {first_line(error)}"
    return ""


def compute_mode(runtime: Any, index: int) -> int:
    """Who may use a device (cudaComputeMode). Opens nothing on it."""
    return int(runtime.deviceGetAttribute(COMPUTE_MODE, index))


def refusal(runtime: Any, error: BaseException, index: int | None = None) -> str:
    """Why the driver, or its device `index`, cannot be used: what to do about it, in one line."""
    status = getattr(error, "status", -1)
    try:
        if status == TOO_OLD:
            return _driver(runtime.driverGetVersion(), runtime.runtimeGetVersion())
        if status == BUSY and index is not None:
            return MODES.get(compute_mode(runtime, index), meaning(error))
    except Exception:  # the status says enough
        pass
    return meaning(error)


def _driver(found: int, needed: int) -> str:
    if not found:
        return "the NVIDIA driver is not installed"
    versions = [f"{version // 1000}.{version % 1000 // 10}" for version in (found, needed)]
    return "the NVIDIA driver is for CUDA {}, CuPy needs {}; install a newer driver, or CuPy for an older CUDA".format(
        *versions
    )


def meaning(error: BaseException) -> str:
    """A failure in a few words: what to do where that is known, else the first line of what CUDA says."""
    known = MEANINGS.get(getattr(error, "status", -1))
    return known or first_line(error)


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def free_bytes(bus_id: str) -> int:
    """Free memory of the device at a PCI address, by NVML, which opens no context on it; 0 where it does not tell."""
    library = _nvml()
    if library is None:
        return 0
    handle, memory = ctypes.c_void_p(), _Memory()
    if library.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), ctypes.byref(handle)):
        return 0
    return 0 if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) else int(memory.free)


@functools.cache
def _nvml() -> ctypes.CDLL | None:
    for name in ("libnvidia-ml.so.1", "nvml.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return library if library.nvmlInit_v2() == 0 else None
    return None
