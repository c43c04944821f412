"""The CUDA backend: GpuBackend's hooks over CuPy's low-level calls. Kernels need no header and are built by NVRTC."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .base import BackendError, BackendUnavailable, DeviceInfo, DeviceOutOfMemory, Probe
from .blas import BlasProbe, VendorBlas
from .blas_choice import explain
from .cublas import CuBlas, find_cublas
from .cuda_api import (
    MODES,
    OUT_OF_MEMORY,
    PROHIBITED,
    Api,
    api,
    compute_mode,
    free_bytes,
    meaning,
    missing,
    refusal,
)
from .cuda_arena import Arena, CudaBuffer
from .cuda_graph import CudaGraphs
from .cuda_launch import Call, Launcher
from .cuda_staging import SMALL, Staging
from .errors import first_line
from .gpu_blas import record
from .gpu_memory import GpuArray
from .gpu_programs import Kernel, Tuning
from .kernel_settings import KernelSettings
from .program_cache import ProgramCache, default_folder

T = TypeVar("T")
OPTIONS = ("-std=c++17", "-default-device")
NON_BLOCKING = 1  # cudaStreamNonBlocking
EXTRA = 32 << 20  # bytes reserved beside what a plan knows: graphs' own memory, tables of a step, room between sizes
WARP_GROUPS = "wgmma_wait"  # in texts that are for one architecture alone, sm_90a
WAIT = "wait_for_predecessors"  # in the texts of kernels/cuda alone, whose kernels all come to it

_thread = threading.local()  # `index`: the device that CUDA's calls of this thread mean


class CudaBackend(CudaGraphs):
    name = "cuda"
    language = "cuda"

    def __init__(
        self,
        device: DeviceInfo,
        *,
        tuning: Tuning | None = None,
        cache_folder: Path | None = None,
        kernels: KernelSettings | None = None,
    ):
        if reason := missing():
            raise BackendUnavailable(f"{device}: {reason}")
        self._api: Api = api()
        runtime = self._api.runtime
        try:
            runtime.setDevice(device.index)
            _thread.index = device.index
            runtime.free(0)  # opens the device's context
            self._stream: int = runtime.streamCreateWithFlags(NON_BLOCKING)
            self._staging = Staging(runtime, self._stream)
            properties = runtime.getDeviceProperties(device.index)
        except RuntimeError as error:
            raise BackendUnavailable(f"{device}: cannot be opened: {refusal(runtime, error, device.index)}") from None
        self._arena = Arena(runtime.malloc, runtime.free)
        self.cache = ProgramCache(cache_folder or default_folder())
        self.capability = int(properties["major"]), int(properties["minor"])
        self.multiprocessors = int(properties["multiProcessorCount"])
        self._launcher = Launcher(self._api, self._stream, self.capability)
        self._target = _arch(self._api.nvrtc, *self.capability)
        self.identity = _identity(self._api, device, self._target)
        super().__init__(device, tuning or _tuning(properties), kernels)

    @classmethod
    def probe(cls) -> Probe:
        if reason := missing():
            return Probe("cuda", reason=reason)
        runtime = api().runtime
        try:
            indices = range(runtime.getDeviceCount())
            closed = [i for i in indices if compute_mode(runtime, i) == PROHIBITED]
            found = tuple(_info(runtime, index) for index in indices if index not in closed)
        except Exception as error:
            return Probe("cuda", reason=refusal(runtime, error))
        reason = "" if len(indices) else "no NVIDIA GPU"
        return Probe("cuda", found, reason, tuple(f"cuda:{index}: {MODES[PROHIBITED]}" for index in closed))

    @classmethod
    def open(cls, device: DeviceInfo, **options: Any) -> CudaBackend:
        return cls(device, **{name: options.get(name) for name in ("tuning", "cache_folder", "kernels")})

    @classmethod
    def choices(cls, device: DeviceInfo) -> tuple[str, ...]:
        try:
            modules, found = api(), find_cublas()
            properties = modules.runtime.getDeviceProperties(device.index)
            arch = _arch(modules.nvrtc, properties["major"], properties["minor"])
            known = record(ProgramCache(default_folder()), _identity(modules, device, arch), found)
        except Exception as error:
            return (f"cannot be asked: {first_line(error)}",)
        return (explain(found, known.times),)

    def close(self) -> None:
        super().close()
        if self._stream:
            try:
                self._sync()
                if isinstance(self._blas, CuBlas):
                    self._blas.close()
                self._staging.close()
                self._arena.close()
                self._api.runtime.streamDestroy(self._stream)
            except (BackendError, RuntimeError):
                pass  # a device that is gone has nothing left to give back
            self._stream = 0

    def reserve(self, nbytes: int) -> None:
        self._guarded("allocating", lambda: self._arena.reserve(nbytes + EXTRA), nbytes + EXTRA)

    # -- hooks --

    def _guarded(self, doing: str, call: Callable[[], T], nbytes: int = 0) -> T:
        """What `call` returns on this device, CUDA's failures as ours."""
        try:
            if getattr(_thread, "index", -1) != self.device.index:
                self._api.runtime.setDevice(self.device.index)
                _thread.index = self.device.index
            return call()
        except RuntimeError as error:
            if getattr(error, "status", 0) == OUT_OF_MEMORY:
                raise DeviceOutOfMemory(
                    f"{self.device}: no memory for {nbytes} bytes", nbytes=nbytes, device=self.device
                ) from None
            raise BackendError(f"{self.device}: {doing} failed: {meaning(error)}") from None

    def _alloc(self, nbytes: int) -> CudaBuffer:
        self._refuse_while_recording("memory is asked for")
        return self._guarded("allocating", lambda: self._arena.take(nbytes), nbytes)

    def _copy_in(self, handle: CudaBuffer, host: NDArray[Any]) -> None:
        self._refuse_while_recording("something goes up")
        runtime, nbytes = self._api.runtime, host.nbytes

        def copy() -> None:
            if nbytes <= SMALL:
                return self._staging.copy_in(handle.ptr, host)
            runtime.memcpyAsync(handle.ptr, host.ctypes.data, nbytes, runtime.memcpyHostToDevice, self._stream)
            runtime.streamSynchronize(self._stream)  # `host` may go away
            return None

        self._guarded("copying to the device", copy, nbytes)

    def _copy_out(self, handle: CudaBuffer, host: NDArray[Any]) -> None:
        runtime, nbytes = self._api.runtime, host.nbytes

        def copy() -> None:
            if nbytes <= SMALL:
                return self._staging.copy_out(handle.ptr, host)
            runtime.memcpyAsync(host.ctypes.data, handle.ptr, nbytes, runtime.memcpyDeviceToHost, self._stream)
            runtime.streamSynchronize(self._stream)
            return None

        self._guarded("copying from the device", copy, nbytes)

    def fetch(self, x: GpuArray) -> Callable[[], NDArray[Any]]:
        host = np.empty(x.shape, x.dtype)
        wait = self._guarded("copying from the device", lambda: self._staging.fetch(x.handle.ptr, host))
        if wait is None:
            host = self.download(x)  # at once: a kept step's tokens give way to the next one's
            return lambda: host

        def finish() -> NDArray[Any]:
            self._guarded("waiting for the device", wait)
            return host

        return finish

    def _launch(self, kernel: Kernel, x: int, y: int, arguments: tuple[Any, ...]) -> None:
        self._guarded(f"kernel {kernel.name}", lambda: self._launcher.launch(kernel, x, y, arguments))

    def _sync(self) -> None:
        self._guarded("waiting for the device", lambda: self._api.runtime.streamSynchronize(self._stream))

    def _compile(self, text: str, signatures: dict[str, tuple[str, ...]]) -> dict[str, Any]:
        self._refuse_while_recording("a kernel is built")
        driver, module, waits = self._api.driver, self._module(text), WAIT in text
        functions = {
            name: self._guarded(f"kernel {name}", lambda name=name: driver.moduleGetFunction(module, name))
            for name in signatures
        }
        return {name: Call(functions[name], signatures[name], waits=waits) for name in signatures}

    def _module(self, text: str) -> int:
        def load(binary: bytes) -> int:
            return self._guarded("loading a kernel", lambda: self._api.driver.moduleLoadData(binary))

        def build() -> tuple[bytes, int]:
            binary = self._build(text)
            return binary, load(binary)

        return self.cached_program(text, load, build)

    def _build(self, text: str) -> bytes:
        """Machine code for this device, or PTX where this NVRTC does not know it yet."""
        nvrtc = self._api.nvrtc
        program = nvrtc.createProgram(text, "layerlift.cu", (), ())
        try:
            target = f"{self._target}a" if WARP_GROUPS in text else self._target
            nvrtc.compileProgram(program, (f"-arch={target}", *OPTIONS))
            binary = nvrtc.getCUBIN(program) if self._target.startswith("sm_") else nvrtc.getPTX(program)
            return binary if isinstance(binary, bytes) else binary.encode()
        except RuntimeError as error:
            log = str(nvrtc.getProgramLog(program))
            told = next((line.strip() for line in log.splitlines() if "error" in line), first_line(error))
            raise BackendError(f"{self.device}: a kernel cannot be built: {told}") from None
        finally:
            nvrtc.destroyProgram(program)

    # -- cuBLAS --

    def find_blas(self) -> BlasProbe:
        return find_cublas()

    def open_blas(self, found: BlasProbe) -> VendorBlas:
        return CuBlas(found, self.device, self._guarded, self._stream, brain=self.capability >= (8, 0))


def _identity(modules: Api, device: DeviceInfo, arch: str) -> tuple[str, ...]:
    """What compiled programs and measured times depend on beside the text."""
    version = ".".join(map(str, modules.nvrtc.getVersion()))
    return (device.name, arch, version, str(modules.runtime.driverGetVersion()), *OPTIONS)


def _info(runtime: Any, index: int) -> DeviceInfo:
    properties = runtime.getDeviceProperties(index)
    name, total = properties["name"], int(properties["totalGlobalMem"])
    capability = f"compute capability {properties['major']}.{properties['minor']}"
    version = runtime.driverGetVersion()
    return DeviceInfo(
        "cuda",
        index,
        name.decode() if isinstance(name, bytes) else str(name),
        "nvidia",
        True,
        total,
        free_bytes(runtime.deviceGetPCIBusId(index)) or total,
        detail=f"{capability}, driver for CUDA {version // 1000}.{version % 1000 // 10}",
    )


def _arch(nvrtc: Any, major: int, minor: int) -> str:
    """What to build for: the device itself, an older one of its family, or PTX of an older family."""
    own, known = 10 * major + minor, sorted(int(arch) for arch in nvrtc.getSupportedArchs())
    older = [arch for arch in known if arch <= own]
    if not older:
        raise BackendUnavailable(
            f"compute capability {major}.{minor} is older than this CUDA compiler builds for ({known[0]} and up)",
            hint="--gpu opencl, or CuPy for an older CUDA: pip install 'layerlift[cuda12]'",
        )
    return f"sm_{older[-1]}" if older[-1] // 10 == major else f"compute_{older[-1]}"


def _tuning(properties: Any) -> Tuning:
    """Sizes for a device. A work group is two warps, and eight of them keep a multiprocessor busy."""
    return Tuning(units=8 * int(properties["multiProcessorCount"]))
