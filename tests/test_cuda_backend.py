"""The CUDA backend's host side on a fake CUDA: what it computes, what it holds, and what it says when things fail."""

from __future__ import annotations

import sys
import threading

import fake_cuda
import numpy as np
import pytest
from layerlift.backends import cuda_staging, registry
from layerlift.backends.base import BackendError, BackendUnavailable, DeviceOutOfMemory
from layerlift.backends.cuda import CudaBackend, _arch
from layerlift.backends.cuda_api import api, missing
from layerlift.backends.gpu_programs import Tuning
from layerlift.backends.kernel_settings import KernelSettings
from layerlift.backends.opcases import all_cases, judge, matrix, normal

SMALL = Tuning(
    group=16, lanes=1, tile_tokens=16, tile_rows=16, thread_tokens=2, thread_rows=4, compact=True, units=4
)  # of few threads, which the emulator runs quickly
QUICK = ("", "Q4_1")  # each format is a program that the emulator compiles


@pytest.fixture
def fake():
    with fake_cuda.installed() as fake:
        yield fake


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "programs"


def opened(folder, **options) -> CudaBackend:
    return CudaBackend.open(CudaBackend.probe().devices[0], tuning=SMALL, cache_folder=folder, **options)


@pytest.fixture(scope="module")
def shared():
    """One backend for the whole op table."""
    with fake_cuda.installed():
        backend = CudaBackend.open(CudaBackend.probe().devices[0], tuning=SMALL)
        yield backend
        backend.close()


def quick(case) -> bool:
    """Whether it takes a program or two; tests/test_cuda_ops.py has all of attention."""
    return case.fmt in QUICK and (case.op != "attend" or case.label.startswith(("decode", "prefill")))


@pytest.mark.parametrize("case", [case for case in all_cases() if quick(case)], ids=str)
def test_every_op_equals_float64_through_cudas_calls(shared, case):
    verdict = judge(case, shared, relaxed=True)
    assert verdict.ok, f"{case}: nmse {verdict.nmse:.3g}, max error {verdict.max_error:.3g}"


def test_a_copy_from_an_array_that_changes_at_once_is_right(fake, folder):
    backend, host = opened(folder), np.arange(1000, dtype=np.float32)
    x = backend.upload(host)
    host[:] = -1
    np.testing.assert_array_equal(backend.download(x), np.arange(1000))


def test_more_than_the_ring_holds_goes_up_whole(fake, folder, monkeypatch):
    monkeypatch.setattr(cuda_staging, "STAGING", 1 << 12)
    backend = opened(folder)
    arrays = [np.full(333, i, np.float32) for i in range(20)]
    for i, x in enumerate([backend.upload(a) for a in arrays]):
        np.testing.assert_array_equal(backend.download(x), arrays[i])


def test_large_arrays_go_past_the_ring(fake, folder):
    backend = opened(folder)
    host = np.random.default_rng(0).standard_normal((cuda_staging.SMALL // 4 + 7,)).astype(np.float32)
    np.testing.assert_array_equal(backend.download(backend.upload(host)), host)


def test_the_second_start_compiles_nothing_and_a_damaged_program_is_made_again(fake, folder):
    x = np.arange(64, dtype=np.float32).reshape(1, 64)
    for _ in range(2):
        backend = opened(folder)
        assert backend.download(backend.add(backend.upload(x), backend.upload(x)))[0, 5] == 10
    assert fake.calls["compileProgram"] == 1
    entry = next(folder.iterdir())
    entry.write_bytes(entry.read_bytes()[:-1] + b"?")
    backend = opened(folder)
    assert backend.download(backend.add(backend.upload(x), backend.upload(x)))[0, 5] == 10
    assert fake.calls["compileProgram"] == 2


def test_a_program_that_the_driver_refuses_is_made_again(fake, folder):
    x = np.ones((1, 64), np.float32)
    opened(folder).add(opened(folder).upload(x), opened(folder).upload(x))
    fake.fail["moduleLoadData"] = [fake_cuda.INVALID_IMAGE, None]
    backend = opened(folder)
    assert backend.download(backend.add(backend.upload(x), backend.upload(x)))[0, 0] == 2
    assert fake.calls["compileProgram"] == 2


def test_nocompile_says_what_to_run_first(fake, folder):
    backend = opened(folder, kernels=KernelSettings(nocompile=True))
    x = backend.upload(np.ones((1, 64), np.float32))
    with pytest.raises(BackendUnavailable, match="--nocompile builds none"):
        backend.add(x, x)


def test_a_kernel_that_does_not_build_is_one_line_of_the_compilers(fake, folder):
    backend = opened(folder)
    with pytest.raises(BackendError, match=r"cuda:0: a kernel cannot be built: layerlift\.cu\(2\): error") as caught:
        backend._compile("#error no\n", {})
    assert "\n" not in str(caught.value)


def test_memory_is_given_back(fake, folder):
    before = fake.in_use
    backend = opened(folder)
    raw, _ = matrix("Q4_1", 32, 64)
    weight = backend.load(raw, "Q4_1", (32, 64), "w")
    assert fake.in_use >= raw.nbytes
    del weight
    backend.close()
    assert fake.in_use == before


def test_a_full_device_says_how_much_was_asked_for_and_the_backend_lives(fake, folder):
    backend = opened(folder)
    with pytest.raises(DeviceOutOfMemory, match=r"cuda:0: no memory for \d+ bytes"):
        backend.empty((1 << 20, 1 << 10))
    x = np.ones((1, 64), np.float32)
    assert backend.download(backend.add(backend.upload(x), backend.upload(x)))[0, 0] == 2


def test_a_device_that_is_gone_is_an_error_of_ours(fake, folder):
    backend = opened(folder)
    x = backend.upload(np.ones((1, 64), np.float32))
    backend.add(x, x)
    fake.fail["launchKernel"] = [46]
    with pytest.raises(BackendError, match=r"cuda:0: kernel \w+ failed: the device is busy"):
        backend.add(x, x)
    fake.fail["streamSynchronize"] = [719]
    with pytest.raises(BackendError, match=r"cuda:0: .* failed: cudaError719"):
        backend.synchronize()
    backend.close()


def test_another_thread_uses_the_right_device(folder):
    with fake_cuda.installed(devices=2) as fake:
        second = CudaBackend.probe().devices[1]
        backend = CudaBackend.open(second, tuning=SMALL, cache_folder=folder)
        fake.calls.clear()
        thread = threading.Thread(target=lambda: backend.upload(normal(1, 8)))
        thread.start()
        thread.join()
        assert fake.calls["setDevice"] == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "restarted"), (100, "no NVIDIA GPU"), (46, "busy"), (999, "cudaError999")],
)
def test_a_driver_that_fails_is_a_reason_of_one_line(fake, status, words):
    fake.fail["getDeviceCount"] = [status]
    probe = CudaBackend.probe()
    assert not probe.devices
    assert words in probe.reason
    assert "\n" not in probe.reason


@pytest.mark.parametrize(
    ("driver", "words"),
    [(0, "the NVIDIA driver is not installed"), (12020, "is for CUDA 12.2, CuPy needs 13.0; install a newer driver")],
)
def test_a_missing_driver_and_one_that_is_too_old_have_reasons_of_their_own(driver, words):
    with fake_cuda.installed(driver=driver) as fake:
        fake.fail["getDeviceCount"] = [35]
        probe = CudaBackend.probe()
    assert not probe.devices
    assert words in probe.reason


def test_a_device_that_no_program_may_use_is_not_offered(folder):
    with fake_cuda.installed(devices=2, modes={0: 2}):
        assert [device.index for device in CudaBackend.probe().devices] == [1]
    with fake_cuda.installed(modes={0: 2}):
        probe = CudaBackend.probe()
        assert not probe.devices
        assert probe.closed[0].startswith("cuda:0: the device's compute mode is prohibited; `nvidia-smi -c DEFAULT`")


def test_a_device_that_another_program_holds_alone_says_so(folder):
    words = "cannot be opened: the device is in exclusive mode and another"
    with fake_cuda.installed(modes={0: 3}, held=frozenset({0})), pytest.raises(BackendUnavailable, match=words):
        opened(folder)


def test_a_device_that_cannot_be_opened_says_why(fake, folder):
    fake.fail["streamCreateWithFlags"] = [2]
    with pytest.raises(BackendUnavailable, match="cuda:0: cannot be opened: the device's memory is taken"):
        opened(folder)


def test_without_cupy_the_probe_names_the_install_command(monkeypatch):
    monkeypatch.setattr("layerlift.backends.cuda_api.find_spec", lambda name: None)
    assert "pip install 'layerlift[cuda13]'" in missing()


def test_a_cupy_that_cannot_be_imported_is_a_reason(monkeypatch):
    monkeypatch.setattr("layerlift.backends.cuda_api.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    api.cache_clear()
    assert "cannot be imported" in missing()


def test_what_is_built_for_which_device(fake):
    assert _arch(fake, 9, 0) == "sm_90"
    assert _arch(fake, 8, 7) == "sm_86"  # the newest of its family
    assert _arch(fake, 11, 0) == "compute_100"  # the driver builds the rest
    with pytest.raises(BackendUnavailable, match=r"compute capability 7\.0 is older"):
        _arch(fake, 7, 0)


def test_cuda_comes_before_opencl():
    assert registry.names()[:2] == ("cuda", "opencl")
