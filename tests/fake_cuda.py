"""A CUDA without a GPU: the calls and their rules are CUDA's, as CuPy's modules have them; kernels run in the emulator.

Device memory is a file that this process and the kernels' both map, the latter at its addresses. The stream is as lazy
as it may be: copies and kernels run at the next wait, so that memory which changes before its copy is done shows in the
results. Addresses are checked, freed memory is gone, and `fail` makes the next call of a name fail with a status.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cuda_emulator import Emulator, Memory, prelude
from layerlift.backends.cuda_api import Api
from layerlift.backends.cuda_launch import MOST_SHARED, SERIALIZATION, WITHOUT_ASKING, LaunchConfig
from layerlift.kernels import sources

OUT_OF_MEMORY, INVALID_IMAGE, ILLEGAL_ADDRESS, NOT_FOUND, INVALID_VALUE, BUSY = 2, 200, 700, 500, 1, 46
KINDS = {"pointer": ctypes.c_void_p, "int": ctypes.c_int, "float": ctypes.c_float, "i64": ctypes.c_longlong}
BASE, ADDRESSES = 0x7000_0000_0000, 8 << 30  # where device memory lies; no address is given out twice


class FakeCudaError(RuntimeError):
    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


@dataclass
class Function:
    module: Emulator
    name: str
    signature: tuple[str, ...]
    waits: bool
    shared: int = WITHOUT_ASKING


@dataclass
class FakeCuda:
    """`runtime`, `driver` and `nvrtc` are this object; `calls` counts by name."""

    capacity: int = 1 << 30
    major: int = 9
    minor: int = 0
    driver: int = 13000
    modes: dict[int, int] = field(default_factory=dict)  # compute modes by device, where they are not the usual one
    held: frozenset[int] = frozenset()  # devices that another program has for itself
    extended: bool = True  # whether the driver has cuLaunchKernelEx
    archs: tuple[int, ...] = (75, 80, 86, 89, 90, 100, 120)
    devices: int = 1
    calls: dict[str, int] = field(default_factory=dict)
    fail: dict[str, list[int | None]] = field(default_factory=dict)  # statuses of the next calls; None: it succeeds

    hostAllocDefault, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = 0, 1, 2, 3

    def __post_init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="layerlift-fake-cuda-")  # noqa: SIM115  (closed in `close`)
        self._file.truncate(ADDRESSES)  # holes take no room
        self._memory = np.frombuffer(mmap.mmap(self._file.fileno(), ADDRESSES), np.uint8)
        self._place = Memory(self._file.name, BASE, ADDRESSES)
        self._host: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._next = itertools.count(1)
        self._address, self._device = BASE, 0
        self._programs: dict[int, str] = {}
        self._modules: dict[int, Emulator] = {}
        self._functions: dict[int, Function] = {}
        self.ran: list[str] = []  # kernels, in order
        self.dependent = 0  # launches that may start before the one before them ends
        self._pending: list[Callable[[], None]] = []
        self._events: dict[int, int] = {}  # how much of the stream's work was queued before each
        self.recording: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}

    @property
    def api(self) -> Api:
        return Api(self, self, self, self.launch_ex if self.extended else None)

    def close(self) -> None:
        for module in self._modules.values():
            module.__exit__(None, None, None)
        self._file.close()

    @property
    def in_use(self) -> int:
        """Bytes of device memory."""
        return sum(self._sizes.values())

    def _called(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        statuses = self.fail.get(name)
        if statuses and (status := statuses.pop(0)) is not None:
            raise FakeCudaError(status, f"cudaError{status}: made to fail")

    # -- runtime --

    def getDeviceCount(self) -> int:
        self._called("getDeviceCount")
        return self.devices

    def getDeviceProperties(self, index: int) -> dict[str, Any]:
        assert 0 <= index < self.devices
        return {
            "name": b"Fake GPU",
            "totalGlobalMem": self.capacity,
            "major": self.major,
            "minor": self.minor,
            "multiProcessorCount": 2,
        }

    def deviceGetPCIBusId(self, index: int) -> str:
        return f"0000:{index:02x}:00.0"

    def driverGetVersion(self) -> int:
        return self.driver

    def runtimeGetVersion(self) -> int:
        return 13000

    def deviceGetAttribute(self, attribute: int, index: int) -> int:
        assert attribute == 20, "only the compute mode is asked for"
        return self.modes.get(index, 0)

    def setDevice(self, index: int) -> None:
        self._called("setDevice")
        if not 0 <= index < self.devices:
            raise FakeCudaError(101, "cudaErrorInvalidDevice: invalid device ordinal")
        self._device = index

    def streamCreateWithFlags(self, flags: int) -> int:
        self._called("streamCreateWithFlags")
        assert flags == 1, "the legacy stream would wait for ours"
        return next(self._next)

    def streamDestroy(self, stream: int) -> None:
        assert not self._pending, "the stream still has work"

    def streamSynchronize(self, stream: int) -> None:
        self._called("streamSynchronize")
        self._not_recording()
        pending, self._pending = self._pending, []
        self._events = dict.fromkeys(self._events, 0)
        for work in pending:
            work()

    def eventCreateWithFlags(self, flags: int) -> int:
        assert flags == 2, "an event that takes times is slow"
        return next(self._next)

    def eventDestroy(self, event: int) -> None:
        self._events.pop(event, None)

    def eventRecord(self, event: int, stream: int) -> None:
        self._not_recording()
        self._events[event] = len(self._pending)

    def eventSynchronize(self, event: int) -> None:
        """Runs what was queued before the event was, and no more."""
        self._called("eventSynchronize")
        before = self._events[event]
        now, self._pending = self._pending[:before], self._pending[before:]
        self._events = {e: max(at - before, 0) for e, at in self._events.items()}
        for work in now:
            work()

    def malloc(self, nbytes: int) -> int:
        self._called("malloc")
        self._not_recording()
        if self.in_use + nbytes > self.capacity:
            raise FakeCudaError(OUT_OF_MEMORY, "cudaErrorMemoryAllocation: out of memory")
        address = self._address
        self._address += (nbytes + 511) // 512 * 512
        self._sizes[address] = nbytes
        self.bytes(address, nbytes)[:] = 0xFF  # NaN, in every type
        return address

    def free(self, address: int) -> None:
        self._called("free")
        if self._device in self.held:
            raise FakeCudaError(BUSY, "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable")
        if address:
            self.streamSynchronize(0)
            self._sizes.pop(address)

    def hostAlloc(self, nbytes: int, flags: int) -> int:
        array = np.full(nbytes, 0xFF, np.uint8)
        self._host[array.ctypes.data] = array
        return array.ctypes.data

    def freeHost(self, address: int) -> None:
        assert not self._pending, "a copy from this memory may still run"
        self._host.pop(address)

    def memcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        self._called("memcpyAsync")
        if kind == self.memcpyDeviceToDevice:
            self._enqueue(lambda: self._copy(self.bytes(target, nbytes), self.bytes(source, nbytes)))
            return
        assert kind in (self.memcpyHostToDevice, self.memcpyDeviceToHost)
        down = kind == self.memcpyDeviceToHost
        self.bytes(source if down else target, nbytes)

        def copy() -> None:
            host = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(target if down else source))
            device = self.bytes(source if down else target, nbytes)
            self._copy(*((host, device) if down else (device, host)))

        self._enqueue(copy)

    @staticmethod
    def _copy(target: Any, source: Any) -> None:
        target[:] = source

    def bytes(self, address: int, nbytes: int = 1) -> Any:
        """Device memory, as an array; all of it must have been allocated in one piece."""
        # A copy of the table: collecting garbage may give memory back at any line.
        end = next((b + size for b, size in list(self._sizes.items()) if b <= address < b + size), None)
        if end is None:
            raise FakeCudaError(ILLEGAL_ADDRESS, "cudaErrorIllegalAddress: an illegal memory access was encountered")
        assert address + nbytes <= end, "beyond the end of device memory"
        return self._memory[address - BASE : address - BASE + nbytes]

    # -- compiler --

    def getVersion(self) -> tuple[int, int]:
        return (13, 0)

    def getSupportedArchs(self) -> tuple[int, ...]:
        return self.archs

    def createProgram(self, text: str, name: str, headers: Any, include_names: Any) -> int:
        assert isinstance(text, str)
        assert isinstance(name, str)
        assert not headers
        assert not include_names
        program = next(self._next)
        self._programs[program] = text
        return program

    def compileProgram(self, program: int, options: tuple[str, ...]) -> None:
        self._called("compileProgram")
        (arch,) = [option.removeprefix("-arch=") for option in options if option.startswith("-arch=")]
        assert (arch == "sm_90a") == (sources.read("cuda/wgmma.h") in self._programs[program])
        if "#error" in self._programs[program]:
            raise FakeCudaError(6, "NVRTC_ERROR_COMPILATION")

    def getProgramLog(self, program: int) -> str:
        return "layerlift.cu(1): catastrophe\nlayerlift.cu(2): error: made to fail\n"

    def getCUBIN(self, program: int) -> bytes:
        return b"CUBIN" + self._programs[program].encode()

    def getPTX(self, program: int) -> str:
        return "CUBIN" + self._programs[program]

    def destroyProgram(self, program: int) -> None:
        self._programs.pop(program)

    # -- driver --

    def moduleLoadData(self, image: bytes) -> int:
        self._called("moduleLoadData")
        if not image.startswith(b"CUBIN"):
            raise FakeCudaError(INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid")
        text = image[5:].decode()
        assert sources.read("cuda/prelude.h") in text
        plain = text.replace(sources.read("cuda/prelude.h"), prelude()).replace(sources.read("cuda/ptx.h"), "")
        plain = plain.replace(sources.read("cuda/wgmma.h"), "")
        self._modules[module := next(self._next)] = Emulator(plain, memory=self._place).__enter__()
        return module

    def moduleGetFunction(self, module: int, name: str) -> int:
        emulator = self._modules[module]
        if name not in emulator.signatures:
            raise FakeCudaError(NOT_FOUND, "CUDA_ERROR_NOT_FOUND: named symbol not found")
        self._functions[function := next(self._next)] = Function(
            emulator, name, emulator.signatures[name], emulator.waits
        )
        return function

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self._called("funcSetAttribute")
        assert attribute == MOST_SHARED
        self._functions[function].shared = value

    def launchKernel(
        self,
        f: int,
        gx: int,
        gy: int,
        gz: int,
        bx: int,
        by: int,
        bz: int,
        shared: int,
        stream: int,
        params: int,
        extra: int,
    ) -> None:
        self._called("launchKernel")
        assert (gz, by, bz, extra) == (1, 1, 1, 0)
        self._start(self._functions[f], gx, gy, bx, shared, params)

    def launch_ex(self, config: int, f: int, params: int) -> None:
        self._called("launchKernel")
        c, function = LaunchConfig.from_address(config), self._functions[f]
        assert (c.grid_z, c.block_y, c.block_z, c.n_attributes) == (1, 1, 1, 1)
        assert (c.attributes[0].id, c.attributes[0].value) == (SERIALIZATION, 1)
        assert c.stream, "the kernel would run in the default stream"
        assert function.waits, f"{function.name} would not wait for the kernel before it"
        self.dependent += 1
        self._start(function, c.grid_x, c.grid_y, c.block_x, c.shared, params)

    def _start(self, function: Function, gx: int, gy: int, threads: int, shared: int, params: int) -> None:
        assert 0 < gy <= 65535, "CUDA takes no more groups that way"
        assert threads <= 1024
        if shared > function.shared:
            raise FakeCudaError(INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE: invalid argument")
        signature = function.signature
        pointers = (ctypes.c_void_p * len(signature)).from_address(params)
        values = [KINDS[kind].from_address(at or 0).value for kind, at in zip(signature, pointers, strict=True)]
        addresses = [value for kind, value in zip(signature, values, strict=True) if kind == "pointer" and value]

        def run() -> None:
            for address in addresses:
                self.bytes(address)  # a graph may outlive the memory it was recorded with
            self.ran.append(function.name)
            function.module.launch(function.name, (gx, gy), threads, *values, shared=shared, seed=len(self.ran))

        self._enqueue(run)

    # -- graphs --

    def _enqueue(self, work: Callable[[], None]) -> None:
        (self._pending if self.recording is None else self.recording).append(work)

    def _not_recording(self) -> None:
        if self.recording is not None:
            raise FakeCudaError(900, "cudaErrorStreamCaptureUnsupported: not permitted while a stream is captured")

    def streamBeginCapture(self, stream: int) -> None:
        self._called("streamBeginCapture")
        assert self.recording is None
        self.recording = []

    def streamEndCapture(self, stream: int) -> int:
        self._called("streamEndCapture")
        assert self.recording is not None
        self._graphs[graph := next(self._next)] = self.recording
        self.recording = None
        return graph

    def graphInstantiate(self, graph: int) -> int:
        self._called("graphInstantiate")
        self._graphs[ready := next(self._next)] = self._graphs[graph]
        return ready

    def graphDestroy(self, graph: int) -> None:
        del self._graphs[graph]

    graphExecDestroy = graphDestroy

    def graphLaunch(self, graph: int, stream: int) -> None:
        self._called("graphLaunch")
        self._pending.extend(self._graphs[graph])


@contextmanager
def installed(**settings: Any) -> Iterator[FakeCuda]:
    """Puts a fake in the place of CuPy; skips the test where the emulator cannot be built."""
    fake = FakeCuda(**settings)

    def no_cublas() -> None:
        raise ImportError("libcublas.so.13 is not there")

    with closing(fake), pytest.MonkeyPatch.context() as patch:
        patch.setattr("layerlift.backends.cuda.missing", lambda: "")
        patch.setattr("layerlift.backends.cuda.api", lambda: fake.api)
        patch.setattr("layerlift.backends.cublas.cublas", no_cublas)
        yield fake
