"""The OpenCL backend: GpuBackend's hooks over PyOpenCL. Needs OpenCL 1.2; what is optional must be proved first."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from . import opencl_proofs
from .base import BackendError, BackendUnavailable, DeviceInfo, DeviceOutOfMemory, Probe
from .blas import BlasProbe, VendorBlas
from .blas_choice import explain
from .clblast import CLBlast, find_clblast
from .errors import first_line
from .gpu_blas import record
from .gpu_memory import Handle
from .gpu_programs import Kernel, Tuning
from .kernel_settings import KernelSettings
from .opencl_launch import Call, driver_enqueue
from .opencl_memory import SMALL, Staging
from .opencl_proofs import Proofs
from .opencl_replay import OpenCLReplay
from .program_cache import ProgramCache, default_folder

T = TypeVar("T")
OPTIONS = ["-cl-mad-enable"]
VENDORS = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel", 0x106B: "apple"}
VENDOR_WORDS = {"nvidia": "nvidia", "advanced micro": "amd", "amd": "amd", "intel": "intel", "apple": "apple"}
INSTALL = "pip install 'layerlift[opencl]'"


class OpenCLBackend(OpenCLReplay):
    name = "opencl"
    language = "opencl"
    blas_compiles = CLBlast.compiles

    def __init__(
        self,
        device: DeviceInfo,
        *,
        tuning: Tuning | None = None,
        cache_folder: Path | None = None,
        kernels: KernelSettings | None = None,
    ):
        import pyopencl as cl

        self._cl = cl
        try:
            self._device = _devices(cl)[device.index]
            self._context = cl.Context([self._device])
            self._queue = cl.CommandQueue(self._context)
            self._staging = Staging(cl, self._context, self._queue)
        except (cl.Error, IndexError) as error:
            raise BackendUnavailable(f"{device}: cannot be opened: {first_line(error)}") from None
        self.cache = ProgramCache(cache_folder or default_folder())
        self.identity = _identity(self._device)
        super().__init__(device, tuning or _tuning(cl, self._device), kernels)
        if tuning is None:
            self._use(replace(self.tuning, **self.proofs().parts))
        self._enqueue = driver_enqueue(cl)
        self.replays = self._enqueue is not None
        self._close = weakref.finalize(self, self._staging.close)

    @classmethod
    def probe(cls) -> Probe:
        if find_spec("pyopencl") is None:
            return Probe("opencl", reason=f"pyopencl is not installed; {INSTALL}")
        try:
            import pyopencl as cl
        except Exception as error:
            return Probe("opencl", reason=f"pyopencl cannot be imported: {first_line(error)}")
        try:
            found = tuple(_info(cl, device, index) for index, device in enumerate(_devices(cl)))
        except Exception as error:
            return Probe("opencl", reason=f"the OpenCL driver failed: {first_line(error)}")
        if not found:
            return Probe("opencl", reason="no OpenCL driver with a device; install the graphics card's OpenCL package")
        return Probe("opencl", found)

    @classmethod
    def open(cls, device: DeviceInfo, **options: Any) -> OpenCLBackend:
        chosen = {name: options.get(name) for name in ("tuning", "cache_folder", "kernels")}
        return cls(device, **chosen)

    @classmethod
    def choices(cls, device: DeviceInfo) -> tuple[str, ...]:
        try:
            import pyopencl as cl

            identity, found = _identity(_devices(cl)[device.index]), find_clblast()
            cache = ProgramCache(default_folder())
            proofs = opencl_proofs.known(cache, identity)
            if proofs is None:
                opened = cls.open(device)
                proofs = opened.proofs()
                opened.close()
        except Exception as error:
            return (f"cannot be asked: {first_line(error)}",)
        return proofs.describe(), explain(found, record(cache, identity, found).times)

    def proofs(self) -> Proofs:
        """The optional parts that were proved here, now or by an earlier run."""
        found = None if self.kernels.recompile else opencl_proofs.known(self.cache, self.identity)
        return found or opencl_proofs.prove(self, _offered(self._device))

    def close(self) -> None:
        super().close()
        self._close()

    # -- hooks --

    def _guarded(self, doing: str, call: Callable[[], T], nbytes: int = 0) -> T:
        """What `call` returns, the driver's failures as ours."""
        try:
            return call()
        except self._cl.MemoryError:
            raise DeviceOutOfMemory(
                f"{self.device}: no memory for {nbytes} bytes", nbytes=nbytes, device=self.device
            ) from None
        except self._cl.Error as error:
            raise self._failure(doing, error) from None

    def _failure(self, doing: str, error: Exception) -> BackendError:
        return BackendError(f"{self.device}: {doing} failed: {first_line(error)}")

    def _alloc(self, nbytes: int) -> Handle:
        cl, limit = self._cl, self._device.max_mem_alloc_size
        if nbytes > limit:
            raise DeviceOutOfMemory(
                f"{self.device}: no memory for {nbytes} bytes in one piece", nbytes=nbytes, device=self.device
            )
        return self._guarded("allocating", lambda: cl.Buffer(self._context, cl.mem_flags.READ_WRITE, nbytes), nbytes)

    def _copy_in(self, handle: Handle, host: NDArray[Any]) -> None:
        def copy() -> None:
            if host.nbytes <= SMALL:
                self._staging.copy_in(handle, host)
            else:
                self._cl.enqueue_copy(self._queue, handle, host, is_blocking=True)

        self._guarded("copying to the device", copy, host.nbytes)

    def _copy_out(self, handle: Handle, host: NDArray[Any]) -> None:
        def copy() -> None:
            if host.nbytes <= SMALL:
                self._staging.copy_out(handle, host)
            else:
                self._cl.enqueue_copy(self._queue, host, handle, is_blocking=True)

        self._guarded("copying from the device", copy, host.nbytes)

    def _launch(self, kernel: Kernel, x: int, y: int, arguments: tuple[Any, ...]) -> None:
        if self._keeping:
            self._keeping.add(kernel, x, y, arguments)
        threads = kernel.threads
        try:
            kernel.handle(self._queue, (x * threads, y), (threads, 1), *arguments)
        except self._cl.Error as error:
            raise self._not_launched(kernel.name, error) from None

    def _not_launched(self, name: str, error: Exception) -> BackendError:
        if isinstance(error, self._cl.MemoryError):
            return DeviceOutOfMemory(f"{self.device}: no memory to run {name}", nbytes=0, device=self.device)
        return self._failure(f"kernel {name}", error)

    def _sync(self) -> None:
        self._guarded("waiting for the device", self._queue.finish)

    def _compile(self, text: str, signatures: dict[str, tuple[str, ...]]) -> dict[str, Any]:
        program = self._program(text)
        return {
            name: self._guarded(f"kernel {name}", lambda name=name: Call(self._cl, program, name, signatures[name]))
            for name in signatures
        }

    def _program(self, text: str) -> Any:
        cl = self._cl

        def load(binary: bytes) -> Any:
            return self._guarded(
                "loading a kernel", lambda: self._build(cl.Program(self._context, [self._device], [binary]), text)
            )

        def build() -> tuple[bytes, Any]:
            try:
                program = self._build(cl.Program(self._context, text), text)
            except cl.Error as error:
                raise BackendError(f"{self.device}: a kernel cannot be built: {_build_log(error)}") from None
            return program.get_info(cl.program_info.BINARIES)[0], program

        return self.cached_program(text, load, build)

    def find_blas(self) -> BlasProbe:
        return find_clblast()

    def open_blas(self, found: BlasProbe) -> VendorBlas:
        return CLBlast(found, str(self.device), self._queue.int_ptr, lambda buffer: buffer.int_ptr)

    def _build(self, program: Any, text: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks
            return program.build(options=[standard(text), *OPTIONS], cache_dir=False)


def standard(text: str) -> str:
    """The option that names the language of a program: OpenCL C 1.2, but subgroups as Khronos has them are of 2.0."""
    return "-cl-std=CL2.0" if "#define SUBGROUPS 1\n" in text else "-cl-std=CL1.2"


def _identity(device: Any) -> tuple[str, ...]:
    """What a compiled program depends on beside its text."""
    return (device.name, device.vendor, device.version, device.driver_version, device.platform.version, *OPTIONS)


def _offered(device: Any) -> set[str]:
    """What may be worth a try: the extensions that the driver names, and the vendor."""
    return {*device.extensions.split(), _vendor(device)}


def _devices(cl: Any) -> list[Any]:
    """Every device of every driver, in the drivers' order."""
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        return []  # the loader says so where no driver is installed
    found = []
    for platform in platforms:
        try:
            found += [device for device in platform.get_devices() if device.available and device.compiler_available]
        except cl.Error:
            continue
    return found


def _info(cl: Any, device: Any, index: int) -> DeviceInfo:
    is_gpu = bool(device.type & cl.device_type.GPU)
    total = int(device.global_mem_size)
    return DeviceInfo(
        "opencl",
        index,
        device.name.strip(),
        _vendor(device) if is_gpu else "cpu",
        is_gpu,
        total,
        _free(device, total),
        detail=f"{device.platform.name.strip()}, driver {device.driver_version.strip()}",
    )


def _vendor(device: Any) -> str:
    if device.vendor_id in VENDORS:
        return VENDORS[device.vendor_id]
    text = f"{device.vendor} {device.platform.vendor}".lower()
    return next((vendor for word, vendor in VENDOR_WORDS.items() if word in text), "")


def _free(device: Any, total: int) -> int:
    """Free bytes where the driver tells (AMD's does, in KiB); else all of it."""
    try:
        return min(total, int(device.global_free_memory_amd[0]) << 10)
    except Exception:
        return total


def _tuning(cl: Any, device: Any) -> Tuning:
    """Sizes for a device: a CPU runs the threads of a group in turn, so that few of them are best there."""
    most = int(device.max_work_group_size)
    if not device.type & cl.device_type.GPU:
        return Tuning(
            group=16,
            lanes=1,
            thread_tokens=4,
            thread_rows=8,
            compact=True,
            units=device.max_compute_units,
        )
    small: dict[str, Any] = {"tile_tokens": 32, "tile_rows": 32, "thread_tokens": 4, "thread_rows": 4}
    return Tuning(
        group=min(64, 1 << (most.bit_length() - 1)),
        lanes=min(32, 1 << (most.bit_length() - 1)),
        units=8 * int(device.max_compute_units),
        **(small if device.local_mem_size < 40 << 10 or most < 128 else {}),
    )


def _build_log(error: BaseException) -> str:
    """The first line of a build's log that names an error, else its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
