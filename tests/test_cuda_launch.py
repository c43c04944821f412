"""How kernels start: with what CUDA's own header says, and as the device, the driver and the kernel allow."""

from __future__ import annotations

import ctypes
import glob
import re
import shutil
import subprocess

import fake_cuda
import numpy as np
import pytest
from layerlift.backends.base import BackendError
from layerlift.backends.cuda import WAIT, CudaBackend
from layerlift.backends.cuda_launch import MOST_SHARED, SERIALIZATION, LaunchAttribute, LaunchConfig
from layerlift.backends.opcases import matrix, normal
from layerlift.kernels import sources
from test_cuda_backend import SMALL

# cuda.h of CUDA 12 and 13: our name, its name, its place in bytes.
CONFIG = (
    ("grid_x", "gridDimX", 0), ("grid_y", "gridDimY", 4), ("grid_z", "gridDimZ", 8), ("block_x", "blockDimX", 12),
    ("block_y", "blockDimY", 16), ("block_z", "blockDimZ", 20), ("shared", "sharedMemBytes", 24),
    ("stream", "hStream", 32), ("attributes", "attrs", 40), ("n_attributes", "numAttrs", 48),
)  # fmt: skip


def test_the_structures_are_laid_out_as_cudas():
    for ours, theirs, at in CONFIG:
        assert getattr(LaunchConfig, ours).offset == at, theirs
    assert ctypes.sizeof(LaunchConfig) == 56
    assert (LaunchAttribute.id.offset, LaunchAttribute.value.offset, ctypes.sizeof(LaunchAttribute)) == (0, 8, 72)


def test_cudas_header_says_the_same(tmp_path):
    headers, compiler = sorted(glob.glob("/usr/local/cuda*/include/cuda.h")), shutil.which("g++")
    if not headers or not compiler:
        pytest.skip("no CUDA toolkit with its header here, or no compiler")
    lines = [f"static_assert(offsetof(CUlaunchConfig, {theirs}) == {at});" for _, theirs, at in CONFIG]
    lines += ["static_assert(sizeof(CUlaunchConfig) == 56 && sizeof(CUlaunchAttribute) == 72);"]
    lines += ["static_assert(offsetof(CUlaunchAttribute, value) == 8);"]
    lines += [f"static_assert(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == {MOST_SHARED});"]
    lines += [f"static_assert(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION == {SERIALIZATION});"]
    file = tmp_path / "layout.cpp"
    file.write_text("\n".join(["#include <cstddef>", f'#include "{headers[-1]}"', *lines, ""]))
    done = subprocess.run([compiler, "-std=c++17", "-fsyntax-only", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted(p.name for p in (sources.FOLDER / "cuda").glob("*.h")))
def test_every_kernel_of_kernels_cuda_comes_to_the_wait(file):
    text = sources.read(f"cuda/{file}")
    for body in re.split(r"^KERNEL\(", text, flags=re.MULTILINE)[1:]:
        waits = f"{WAIT}();" in body or "products<" in body or "two_pairs<" in body
        assert waits, body[:60]


@pytest.mark.parametrize(
    ("settings", "dependent"),
    [({}, 1), ({"major": 8, "minor": 9}, 0), ({"extended": False}, 0), ({"driver": 12020}, 0)],
    ids=["sm_90", "sm_89", "no cuLaunchKernelEx", "CUDA 12.2"],
)
def test_kernels_that_wait_by_themselves_may_start_early_where_that_is_known(settings, dependent, tmp_path):
    raw, w = matrix("Q4_1", 37, 512)
    x = normal(1, 512)
    with fake_cuda.installed(**settings) as fake:
        backend = CudaBackend.open(CudaBackend.probe().devices[0], tuning=SMALL, cache_folder=tmp_path)
        y = backend.matmul(backend.upload(x), backend.load(raw, "Q4_1", (37, 512), "w"))
        backend.add(y, y)  # a shared kernel, which does not wait by itself
        np.testing.assert_allclose(backend.download(y), x @ w.T, rtol=1e-4, atol=1e-4)
        assert fake.ran == ["project", "add"]
        assert fake.dependent == dependent


def test_more_shared_memory_than_usual_is_asked_for_once(tmp_path):
    raw, w = matrix("Q4_1", 20, 64)
    x = normal(70, 64)  # tokens of the largest tile, which takes 64 KB
    with fake_cuda.installed() as fake:
        backend = CudaBackend.open(CudaBackend.probe().devices[0], tuning=SMALL, cache_folder=tmp_path)
        for _ in range(2):
            y = backend.download(backend.matmul(backend.upload(x), backend.load(raw, "Q4_1", (20, 64), "w")))
        np.testing.assert_allclose(y, x @ w.T, rtol=0.01, atol=0.01)
        assert fake.calls["funcSetAttribute"] == 1


def test_a_launch_that_the_driver_refuses_is_an_error_of_ours(tmp_path):
    raw, _ = matrix("Q4_1", 37, 512)
    with fake_cuda.installed() as fake:
        backend = CudaBackend.open(CudaBackend.probe().devices[0], tuning=SMALL, cache_folder=tmp_path)
        x, w = backend.upload(normal(1, 512)), backend.load(raw, "Q4_1", (37, 512), "w")
        fake.fail["launchKernel"] = [719]
        with pytest.raises(BackendError, match="cuda:0: kernel project failed: cudaError719"):
            backend.matmul(x, w)
