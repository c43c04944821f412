"""The native library: found, chosen by instruction set, with threads of its own; and how many threads by default."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from layerlift.backends.base import BackendUnavailable
from layerlift.backends.cpu import CpuBackend
from layerlift.backends.cpu_memory import address, give_back
from layerlift.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.reason() or "native library")


def open_cpu(threads: int) -> CpuBackend:
    return CpuBackend.open(CpuBackend.probe().devices[0], threads=threads)


def test_the_plain_instruction_set_is_always_there_and_last():
    assert native.isa_names()[-1] == "generic"


@pytest.mark.parametrize("isa", native.isa_names())
def test_layerlift_isa_forces_the_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("LAYERLIFT_ISA", isa)
    assert CpuBackend.probe().devices[0].detail == isa
    assert open_cpu(1).isa == isa


def test_an_instruction_set_this_cpu_lacks_is_a_reason_and_not_a_crash(monkeypatch):
    device = CpuBackend.probe().devices[0]
    monkeypatch.setenv("LAYERLIFT_ISA", "mmx")
    assert "LAYERLIFT_ISA=mmx cannot run here" in CpuBackend.probe().reason
    with pytest.raises(BackendUnavailable, match="mmx"):
        CpuBackend.open(device)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_a_backend_has_the_threads_it_was_asked_for(threads):
    lib, backend = native.library(), open_cpu(threads)
    assert lib is not None
    assert lib.ll_threads(backend._ctx) == threads
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    backend.close()
    if before:
        assert len(os.listdir("/proc/self/task")) == before - (threads - 1)


def test_closing_twice_is_harmless():
    backend = open_cpu(2)
    backend.close()
    backend.close()


def test_many_small_jobs_from_a_cold_and_a_warm_pool_give_the_same():
    backend, rng = open_cpu(3), np.random.default_rng(1)
    raw = rng.standard_normal((96, 64), np.float32)
    w = backend.load(raw.view(np.uint8).reshape(-1), "F32", (96, 64), "w")
    x = rng.standard_normal((1, 64), np.float32)
    first = backend.matmul(x, w)
    for pause in (0.0, 0.002):  # awake workers, and workers that have gone to sleep
        for _ in range(200 if not pause else 10):
            time.sleep(pause)
            assert np.array_equal(backend.matmul(x, w), first)


def test_idle_workers_burn_no_processor_time():
    backend = open_cpu(4)
    raw = np.ones((256, 64), np.float32)
    w = backend.load(raw.view(np.uint8).reshape(-1), "F32", (256, 64), "w")
    backend.matmul(np.ones((1, 64), np.float32), w)
    time.sleep(0.05)
    start = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - start < 0.1, "workers spin while there is nothing to do"


def test_backends_in_several_python_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(2)
    raw = rng.standard_normal((64, 128), np.float32)
    x = rng.standard_normal((9, 128), np.float32)
    wrong: list[int] = []

    def work(number: int) -> None:
        backend = open_cpu(2)
        w = backend.load(raw.view(np.uint8).reshape(-1), "F32", raw.shape, "w")
        first = backend.matmul(x, w)
        if any(not np.array_equal(backend.matmul(x, w), first) for _ in range(50)):
            wrong.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_without_a_library_the_probe_says_why():
    code = """
import layerlift.kernels.cpu.native as native
native.FILE_NAME = "nothing.so"
from layerlift.backends.cpu import CpuBackend
probe = CpuBackend.probe()
assert not probe.devices and "nothing.so was not built" in probe.reason, probe
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_giving_pages_back_leaves_the_bytes_of_file_and_array(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 4096)
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = np.frombuffer(pages, np.uint8)[1000:-1000]
    before = view.copy()
    give_back(view)
    assert np.array_equal(view, before)
    array = np.arange(1 << 16, dtype=np.uint8)
    give_back(array)
    assert np.array_equal(array, np.arange(1 << 16, dtype=np.uint8))


def test_address_is_that_of_the_first_element():
    x = np.zeros((3, 4), np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    for array in (x, x[1:], frozen, np.zeros((0, 4), np.float32)):
        assert address(array) == array.ctypes.data
