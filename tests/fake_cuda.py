"""A CUDA without a GPU: memory and kernels are PoCL's, the calls and their rules CUDA's, as CuPy's modules have them.

Kernels get the OpenCL prelude in place of CUDA's; their shared text runs as it is. The stream is as lazy as it may be:
copies and kernels run at the next wait, so that memory which changes before its copy is done shows in the results.
Addresses are checked, freed memory is gone, and `fail` makes the next call of a name fail with a status.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from layerlift.backends.cuda_api import Api
from layerlift.kernels import sources

OUT_OF_MEMORY, INVALID_IMAGE, ILLEGAL_ADDRESS, NOT_FOUND = 2, 200, 700, 500
KINDS = {"pointer": ctypes.c_void_p, "int": ctypes.c_int, "float": ctypes.c_float, "i64": ctypes.c_longlong}
SCALARS = {"pointer": None, "int": np.int32, "float": np.float32, "i64": np.int64}


class FakeCudaError(RuntimeError):
    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


@dataclass
class FakeCuda:
    """`runtime`, `driver` and `nvrtc` are this object; `calls` counts by name."""

    cl_device: Any
    capacity: int = 1 << 30
    major: int = 9
    minor: int = 0
    archs: tuple[int, ...] = (75, 80, 86, 89, 90, 100, 120)
    devices: int = 1
    calls: dict[str, int] = field(default_factory=dict)
    fail: dict[str, list[int | None]] = field(default_factory=dict)  # statuses of the next calls; None: it succeeds

    hostAllocDefault, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = 0, 1, 2, 3

    def __post_init__(self) -> None:
        import pyopencl as cl

        self._cl = cl
        self._context = cl.Context([self.cl_device])
        self._queue = cl.CommandQueue(self._context)
        self.memory: dict[int, Any] = {}
        self._host: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._next = itertools.count(1)
        self._address = 0x7F00_0000_0000
        self._programs: dict[int, str] = {}
        self._modules: dict[int, tuple[Any, dict[str, tuple[str, ...]]]] = {}
        self._functions: dict[int, tuple[Any, tuple[str, ...]]] = {}
        self._pending: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}

    @property
    def api(self) -> Api:
        return Api(self, self, self)

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
        return 13000

    def setDevice(self, index: int) -> None:
        self._called("setDevice")
        if not 0 <= index < self.devices:
            raise FakeCudaError(101, "cudaErrorInvalidDevice: invalid device ordinal")

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
        for work in pending:
            work()
        self._queue.finish()

    def malloc(self, nbytes: int) -> int:
        self._called("malloc")
        self._not_recording()
        if self.in_use + nbytes > self.capacity:
            raise FakeCudaError(OUT_OF_MEMORY, "cudaErrorMemoryAllocation: out of memory")
        address = self._address
        self._address += (nbytes + 511) // 512 * 512
        buffer = self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, nbytes)
        self._cl.enqueue_copy(self._queue, buffer, np.full(nbytes, 0xFF, np.uint8))  # NaN, in every type
        self.memory[address], self._sizes[address] = buffer, nbytes
        return address

    def free(self, address: int) -> None:
        self._called("free")
        if address:
            self.streamSynchronize(0)
            self.memory.pop(address)
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
            assert nbytes <= min(self._sizes[target], self._sizes[source]), "a copy beyond the end of device memory"
            self._enqueue(lambda: self._copy_across(source, target, nbytes))
            return
        assert kind in (self.memcpyHostToDevice, self.memcpyDeviceToHost)
        down = kind == self.memcpyDeviceToHost
        buffer, host_address = self._buffer(source if down else target), target if down else source
        assert nbytes <= self._sizes[source if down else target], "a copy beyond the end of device memory"

        def copy() -> None:
            host = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(host_address))
            self._cl.enqueue_copy(self._queue, *((host, buffer) if down else (buffer, host)), is_blocking=True)

        self._enqueue(copy)

    def _copy_across(self, source: int, target: int, nbytes: int) -> None:
        if source != target and nbytes:
            self._cl.enqueue_copy(self._queue, self._buffer(target), self._buffer(source), byte_count=nbytes)

    def _buffer(self, address: int) -> Any:
        if address not in self.memory:
            raise FakeCudaError(ILLEGAL_ADDRESS, "cudaErrorIllegalAddress: an illegal memory access was encountered")
        return self.memory[address]

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
        assert any(option.startswith("-arch=") for option in options)
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
        shared = text.replace(sources.read("cuda/prelude.h"), sources.read("opencl/prelude.h"))
        program = self._cl.Program(self._context, shared).build(options=["-cl-std=CL1.2", "-w"])
        module = next(self._next)
        self._modules[module] = program, sources.signatures(text)
        return module

    def moduleGetFunction(self, module: int, name: str) -> int:
        program, signatures = self._modules[module]
        if name not in signatures:
            raise FakeCudaError(NOT_FOUND, "CUDA_ERROR_NOT_FOUND: named symbol not found")
        kernel = self._cl.Kernel(program, name)
        kernel.set_scalar_arg_dtypes([SCALARS[kind] for kind in signatures[name]])
        function = next(self._next)
        self._functions[function] = kernel, signatures[name]
        return function

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
        kernel, signature = self._functions[f]
        assert (gz, by, bz, shared, extra) == (1, 1, 1, 0, 0)
        assert 0 < gy <= 65535, "CUDA takes no more groups that way"
        assert bx <= 1024
        pointers = (ctypes.c_void_p * len(signature)).from_address(params)
        values = [KINDS[kind].from_address(at or 0).value for kind, at in zip(signature, pointers, strict=True)]
        arguments = [
            (self._buffer(value) if value else None) if kind == "pointer" else value
            for kind, value in zip(signature, values, strict=True)
        ]
        addresses = [value for kind, value in zip(signature, values, strict=True) if kind == "pointer" and value]

        def run() -> None:
            for address in addresses:
                self._buffer(address)  # a graph may outlive the memory it was recorded with
            kernel(self._queue, (gx * bx, gy), (bx, 1), *arguments)

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


def install(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> FakeCuda:
    """Puts a fake in the place of CuPy; skips the test where PoCL is missing."""
    cl = pytest.importorskip("pyopencl", reason="the fake CUDA computes with PyOpenCL, which is not installed")
    from opencl_here import opencl_device

    device = opencl_device()
    fake = FakeCuda(cl.get_platforms()[0].get_devices()[device.index], **settings)
    monkeypatch.setattr("layerlift.backends.cuda.missing", lambda: "")
    monkeypatch.setattr("layerlift.backends.cuda.api", lambda: fake.api)

    def no_cublas() -> None:
        raise ImportError("libcublas.so.13 is not there")

    monkeypatch.setattr("layerlift.backends.cublas.cublas", no_cublas)
    return fake
