"""A GPU as memory, kernels and a queue, over six hooks that a driver supplies. Knows no driver and no ops."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .base import Backend, BackendError, BackendUnavailable, DeviceInfo, DeviceOutOfMemory, UnsupportedFormat, Weight
from .formats import BY_NAME
from .gpu_memory import Block, GpuArray, Handle, Pool
from .gpu_programs import Kernel, Programs, Tuning
from .gpu_repack import repack, supported
from .kernel_settings import KernelSettings
from .program_cache import ProgramCache

T = TypeVar("T")
ROWS_AT_ONCE = 32768  # rows of one launch: some devices take no more than 65535 groups that way


class GpuDevice(Backend):
    """`language` names the prelude of the kernels; a subclass sets `cache` and `identity` before this starts."""

    language: str
    cache: ProgramCache  # of compiled programs and of what was measured
    identity: tuple[str, ...]  # what both depend on beside the kernels' text: device, driver, options

    def __init__(self, device: DeviceInfo, tuning: Tuning, kernels: KernelSettings | None = None):
        self.device, self.kernels = device, kernels or KernelSettings()
        self.pool = Pool(self._alloc)
        self.launches = 0  # since the start; for tests and measurements
        self._use(tuning)

    def _use(self, tuning: Tuning) -> None:
        self.tuning, self.programs = tuning, Programs(self.language, tuning, self._compile)

    # -- the six hooks --

    @abstractmethod
    def _alloc(self, nbytes: int) -> Handle:
        """Device memory; freed when nothing refers to it. Raises DeviceOutOfMemory."""

    @abstractmethod
    def _copy_in(self, handle: Handle, host: NDArray[Any]) -> None:
        """Queues a copy of a contiguous array to the device; the caller does not change it any more."""

    @abstractmethod
    def _copy_out(self, handle: Handle, host: NDArray[Any]) -> None:
        """Copies to a contiguous array and waits."""

    @abstractmethod
    def _compile(self, text: str, signatures: dict[str, tuple[str, ...]]) -> dict[str, Any]:
        """Builds a program; its kernels by name. Raises BackendError."""

    @abstractmethod
    def _launch(self, kernel: Kernel, x: int, y: int, arguments: tuple[Any, ...]) -> None:
        """Queues x · y work groups. Arguments are handles, None for no array, and Python numbers."""

    @abstractmethod
    def _sync(self) -> None:
        """Waits until the queue is empty."""

    # -- programs --

    def cached_program(self, text: str, load: Callable[[bytes], T], build: Callable[[], tuple[bytes, T]]) -> T:
        """A program of the driver's: from the cache where it holds one that `load` takes, else built and kept.

        `load` raises BackendError for a binary that the driver refuses. With --recompile the cache is not read, with
        --nocompile nothing is built: BackendUnavailable.
        """
        key = self.cache.key((*self.identity, text))
        if binary := None if self.kernels.recompile else self.cache.read(key):
            try:
                return load(binary)
            except BackendError:
                pass  # made again below
        if self.kernels.nocompile:
            raise BackendUnavailable(
                f"{self.device}: a kernel is not in the cache {self.cache.folder}, and --nocompile builds none",
                hint="run once with --recompile instead, which builds them all",
            )
        binary, program = build()
        self.cache.write(key, binary)
        return program

    # -- memory --

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> GpuArray:
        """An array of the device whose values are yet to come."""
        itemsize = 4 if dtype is np.float32 else np.dtype(dtype).itemsize  # asked for hundreds of times a token
        nbytes = math.prod(shape) * itemsize
        return GpuArray(self.pool.take(nbytes), shape, dtype)

    def load(self, raw: NDArray[np.uint8], fmt: str, shape: tuple[int, int], name: str) -> Weight:
        if fmt not in supported():
            raise UnsupportedFormat(
                f"{self.device}: {name} is {fmt}, which has no kernel; known: {', '.join(supported())}",
                hint="run this model on the CPU with -ngl 0, or convert it to one of these formats",
            )
        expected = shape[0] * BY_NAME[fmt].row_nbytes(shape[1])
        if raw.nbytes != expected:
            raise BackendError(f"load: {name} is {fmt} {list(shape)}, {expected} bytes; {raw.nbytes} were given")
        planes = repack(np.ascontiguousarray(raw).reshape(-1), fmt, shape)
        try:
            block = Block(self.pool, self._alloc(planes.nbytes), planes.nbytes)
        except DeviceOutOfMemory as error:
            raise DeviceOutOfMemory(
                f"{error} for {name}", nbytes=error.nbytes, device=self.device, hint=error.hint
            ) from None
        self._copy_in(block.handle, planes)
        return Weight(name, fmt, shape, planes.nbytes, GpuArray(block, (planes.nbytes,), np.uint8))

    def upload(self, host: NDArray[Any]) -> GpuArray:
        array = self.empty(host.shape, host.dtype)
        if host.size:
            self._copy_in(array.handle, np.ascontiguousarray(host))
        return array

    def download(self, x: GpuArray) -> NDArray[Any]:
        host = np.empty(x.shape, x.dtype)
        if host.size:
            self._copy_out(x.handle, host)
        return host

    def synchronize(self) -> None:
        self._sync()

    def close(self) -> None:
        self.pool.close()

    # -- launching --

    def run_kernel(self, kernel: Kernel, x: int, y: int, *arguments: Any) -> None:
        """Queues a kernel; nothing where there is nothing to do."""
        if x and y:
            self.launches += 1
            self._launch(kernel, x, y, arguments)

    def _rows(self, name: str) -> Kernel:
        return self.programs.get("rows")[name]

    def _groups(self, threads: int) -> int:
        return -(-threads // self.tuning.group)

    def move_rows(
        self, source: GpuArray, chosen: GpuArray | None, target: GpuArray, into: GpuArray | None, words: int, n: int
    ) -> None:
        """Row chosen[i] of source to row into[i] of target, i where a list is missing; i below n, rows of `words`."""
        assert n <= ROWS_AT_ONCE, "callers cut long lists"
        self.run_kernel(
            self._rows("move_rows"),
            self._groups(words),
            n,
            source.handle,
            handle_of(chosen),
            target.handle,
            handle_of(into),
            words,
        )


def handle_of(array: GpuArray | None) -> Handle | None:
    return None if array is None else array.handle
