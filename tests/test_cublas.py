"""Long products by cuBLAS, on a fake of CuPy's module: where they go, what they answer, and what failures say."""

from __future__ import annotations

import contextlib

import fake_cuda
import numpy as np
import pytest
from fake_cublas import BRAIN_FLOAT, FLOAT, FakeCublas
from layerlift.backends.base import BackendError, DeviceOutOfMemory, Linear
from layerlift.backends.cuda import CudaBackend
from layerlift.backends.kernel_settings import KernelSettings
from layerlift.backends.opcases import matrix, normal
from test_cuda_backend import SMALL

LONG = 20  # tokens: more than the kernels for few take


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Opens a backend with a cuBLAS; the backend, and the library's fake."""
    opened, fakes = [], contextlib.ExitStack()

    def open_with(capability=(9, 0), **settings):
        cuda = fakes.enter_context(fake_cuda.installed(major=capability[0], minor=capability[1]))
        blas = FakeCublas(cuda)
        monkeypatch.setattr("layerlift.backends.cublas.cublas", lambda: blas)
        monkeypatch.setattr("layerlift.backends.cublas.external_stream", blas.external_stream)
        device, kernels = CudaBackend.probe().devices[0], KernelSettings(**settings)
        opened.append(CudaBackend.open(device, tuning=SMALL, cache_folder=tmp_path, kernels=kernels))
        return opened[-1], blas

    yield open_with
    for backend in opened:
        backend.close()
    fakes.close()


def error_of(y, want):
    return np.square(y - want).sum() / np.square(want).sum()


@pytest.mark.parametrize(
    ("capability", "code", "most"),
    [((9, 0), BRAIN_FLOAT, 2e-5), ((7, 5), FLOAT, 1e-10)],  # before 8.0 no device multiplies bfloat16
)
def test_a_long_product_goes_to_cublas_onto_bias_and_residual(start, capability, code, most):
    backend, blas = start(capability)
    raw, values = matrix("Q4_1", 40, 64)
    w, x = backend.load(raw, "Q4_1", (40, 64), "w"), normal(LONG, 64)
    bias, residual = normal(40, seed=3), normal(LONG, 40, seed=4)
    y = backend.project_add(backend.upload(x), Linear(w, backend.upload(bias)), backend.upload(residual))
    assert error_of(backend.download(y), x.astype(np.float64) @ values.T + bias + residual) < most
    assert blas.products == [(LONG, 40, 64, code)]


def test_pieces_of_a_large_matrix_land_in_their_columns(start, monkeypatch):
    monkeypatch.setattr("layerlift.backends.gpu_blas.SCRATCH", 16 * 64 * 2)
    backend, blas = start()
    raw, values = matrix("Q4_1", 40, 64)
    x = normal(LONG, 64)
    y = backend.download(backend.matmul(backend.upload(x), backend.load(raw, "Q4_1", (40, 64), "w")))
    assert error_of(y, x.astype(np.float64) @ values.T) < 2e-5
    assert [rows for _, rows, _, _ in blas.products] == [16, 16, 8]


def test_a_few_tokens_and_tinyblas_never_open_it(start):
    for settings, tokens in (({}, 1), ({"tinyblas": True}, LONG)):
        backend, blas = start(**settings)
        raw, values = matrix("Q4_1", 40, 64)
        x = normal(tokens, 64)
        y = backend.download(backend.matmul(backend.upload(x), backend.load(raw, "Q4_1", (40, 64), "w")))
        assert error_of(y, x.astype(np.float64) @ values.T) < 1e-6  # inputs of long products are halves
        assert not blas.calls


def test_its_failures_are_ours_and_name_the_next_step(start):
    backend, blas = start()
    w = backend.load(matrix("Q4_1", 40, 64)[0], "Q4_1", (40, 64), "w")
    x = backend.upload(normal(LONG, 64))
    blas.fails = 13
    with pytest.raises(BackendError, match=r"cuda:0: cuBLAS cannot multiply \[20, 64\] x \[40, 64\]") as caught:
        backend.matmul(x, w)
    assert "--tinyblas" in caught.value.hint
    blas.fails = 3
    with pytest.raises(DeviceOutOfMemory, match="no memory for cuBLAS"):
        backend.matmul(x, w)


def test_closing_the_backend_closes_it_once(start):
    backend, blas = start()
    backend.blas()
    backend.close()
    backend.close()
    assert blas.calls == {"create": 1, "destroy": 1}


def test_recompile_measures_both_and_devices_shows_who_won(start, tmp_path, monkeypatch):
    monkeypatch.setattr("layerlift.backends.cuda.default_folder", lambda: tmp_path)
    backend, _ = start(recompile=True)
    w = backend.load(matrix("Q4_1", 40, 64)[0], "Q4_1", (40, 64), "w")
    assert "nothing measured yet" in CudaBackend.choices(backend.device)[0]
    assert "cuBLAS" in backend.tune([w], LONG)
    assert "ms by cuBLAS" in CudaBackend.choices(backend.device)[0]


def test_without_the_library_devices_says_how_to_get_it():
    with fake_cuda.installed():
        (line,) = CudaBackend.choices(CudaBackend.probe().devices[0])
    assert "pip install nvidia-cublas" in line
