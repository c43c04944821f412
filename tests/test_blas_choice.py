"""Which engine multiplies prompts: what was measured decides, then what is there, and what the flags forbid."""

from __future__ import annotations

import json

import numpy as np
import pytest
from layerlift.backends.base import BackendError, BackendUnavailable, DeviceOutOfMemory, Weight
from layerlift.backends.blas import BlasProbe
from layerlift.backends.blas_choice import BlasRecord, Timing, explain, refused, summary, takes_vendor
from layerlift.backends.clblast import CLBlast, find_clblast
from layerlift.backends.gpu_blas import SCRATCH
from layerlift.backends.gpu_repack import supported
from layerlift.backends.kernel_settings import KernelSettings
from layerlift.backends.opcases import all_cases, judge, matrix, normal
from layerlift.backends.opencl import OpenCLBackend
from layerlift.backends.program_cache import ProgramCache
from layerlift.runtime.cli import main
from layerlift.runtime.model import Model
from opencl_here import opencl_device

FOUND = BlasProbe("SomeBLAS", "1.2")
MISSING = BlasProbe("SomeBLAS", reason="not installed")
W = Weight("w", "Q4_1", (64, 32), 0, None)
LONG = 33  # tokens; more than the fused products take


def record_in(folder, identity=("device", "driver 1"), found=FOUND):
    return BlasRecord(ProgramCache(folder), identity, found)


# -- the rule --


@pytest.mark.parametrize(
    ("times", "vendor"),
    [
        ({}, True),
        ({"Q4_1 64x32": Timing(own=2.0, vendor=1.0)}, True),
        ({"Q4_1 64x32": Timing(own=1.0, vendor=2.0)}, False),
        ({"Q4_0 64x32": Timing(own=1.0, vendor=2.0), "Q4_1 32x64": Timing(1.0, 2.0)}, True),  # of other matrices
    ],
)
def test_the_faster_one_wins_and_without_a_time_the_vendor(times, vendor):
    assert takes_vendor(W, times) is vendor


@pytest.mark.parametrize(
    ("found", "settings", "compiles", "word"),
    [
        (FOUND, KernelSettings(), True, ""),
        (FOUND, KernelSettings(recompile=True), True, ""),
        (MISSING, KernelSettings(), True, "not installed"),
        (FOUND, KernelSettings(tinyblas=True), False, "--tinyblas"),
        (FOUND, KernelSettings(nocompile=True), True, "--nocompile"),
        (FOUND, KernelSettings(nocompile=True), False, ""),
    ],
)
def test_a_library_is_left_alone_for_a_reason(found, settings, compiles, word):
    reason = refused(found, settings, compiles=compiles)
    assert word in reason
    assert bool(reason) == bool(word)


def test_a_record_is_read_by_the_next_start_and_grows(tmp_path):
    record_in(tmp_path).add({"Q4_1 64x32": Timing(2.0, 1.0)})
    record_in(tmp_path).add({"F16 8x32": Timing(1.0, 3.0)})
    assert record_in(tmp_path).times == {"Q4_1 64x32": Timing(2.0, 1.0), "F16 8x32": Timing(1.0, 3.0)}


def test_another_driver_or_library_has_a_record_of_its_own(tmp_path):
    record_in(tmp_path).add({"Q4_1 64x32": Timing(2.0, 1.0)})
    assert not record_in(tmp_path, identity=("device", "driver 2")).times
    assert not record_in(tmp_path, found=BlasProbe("SomeBLAS", "1.3")).times


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[1]", b'{"a": 1}', b'{"a": [1]}', b'{"a": ["x", "y"]}'])
def test_a_damaged_record_counts_as_none(tmp_path, content):
    kept = record_in(tmp_path)
    kept._cache.write(kept._key, content)
    assert record_in(tmp_path).times == {}


def test_the_line_for_the_user_says_what_is_used_and_why():
    assert "SomeBLAS: not installed" in explain(MISSING, {})
    assert "--recompile" in explain(FOUND, {})
    own, vendor = Timing(own=2.0, vendor=3.0), Timing(own=4.0, vendor=1.0)
    assert "our own kernels, 1.50 times as fast as SomeBLAS 1.2" in explain(FOUND, {"a": own})
    assert summary(FOUND, {"a": vendor}).startswith("SomeBLAS 1.2, 4.00 times as fast")
    assert "for 1 of 2 shapes" in summary(FOUND, {"a": own, "b": vendor})
    assert "3.0 ms (6.0 ms by our own" in summary(FOUND, {"a": own, "b": vendor})


# -- CLBlast --


@pytest.fixture
def opened(tmp_path):
    """Opens the OpenCL device with a cache of its own."""
    backends = []

    def open_with(**settings):
        device = opencl_device()
        backends.append(OpenCLBackend.open(device, cache_folder=tmp_path, kernels=KernelSettings(**settings)))
        return backends[-1]

    yield open_with
    for backend in backends:
        backend.close()


@pytest.fixture
def clblast():
    found = find_clblast()
    if found.reason:
        pytest.skip(f"CLBlast is {found.reason}")
    return found


def product_of(backend, fmt="Q4_1", rows=50, columns=512):
    raw, values = matrix(fmt, rows, columns)
    x = normal(LONG, columns)
    y = backend.download(backend.matmul(backend.upload(x), backend.load(raw, fmt, (rows, columns), "w")))
    return y, x.astype(np.float64) @ values.T


def counted(monkeypatch):
    calls = []
    real = CLBlast.gemm
    monkeypatch.setattr(CLBlast, "gemm", lambda self, *a, **k: (calls.append(k["rows"]), real(self, *a, **k)))
    return calls


@pytest.mark.slow
def test_clblast_multiplies_every_format_as_float64_does(opened, clblast, monkeypatch):
    calls, backend = counted(monkeypatch), opened()
    cases = [c for c in all_cases() if c.op == "matmul" and "33x" in c.label and c.fmt in supported()]
    wrong = [f"{v.case}: {v.nmse:.1e}" for v in (judge(c, backend) for c in cases) if not v.ok]
    assert not wrong
    assert len(calls) >= 16  # every format of the table


def test_a_matrix_larger_than_the_scratch_goes_in_pieces_onto_bias_and_residual(opened, clblast, monkeypatch):
    monkeypatch.setattr("layerlift.backends.gpu_blas.SCRATCH", 4 * 512 * 20)
    calls, backend = counted(monkeypatch), opened()
    raw, values = matrix("Q6_K", 50, 512)
    x, bias, residual = normal(LONG, 512), normal(50, seed=3), normal(LONG, 50, seed=4)
    w = backend.load(raw, "Q6_K", (50, 512), "w")
    y = backend._product(backend.upload(x), w, None, backend.upload(bias), backend.upload(residual))
    assert calls == [20, 20, 10]
    np.testing.assert_allclose(backend.download(y), x @ values.T + bias + residual, atol=2e-5)
    assert SCRATCH <= 16 << 20


def test_tinyblas_and_nocompile_never_open_it(opened, clblast, monkeypatch):
    calls = counted(monkeypatch)
    for settings in ({"tinyblas": True}, {"tinyblas": True, "nocompile": True}, {"nocompile": True}):
        got, want = product_of(opened(**settings))  # the first one fills the cache
        np.testing.assert_allclose(got, want, atol=2e-5)
    assert not calls


def test_a_status_of_clblast_is_an_error_with_the_next_step(opened, clblast):
    backend = opened()
    blas = backend.blas()
    for status, kind in ((-4, DeviceOutOfMemory), (-11, BackendError)):
        blas._gemm = lambda *_, status=status: status
        with pytest.raises(kind) as caught:
            product_of(backend)
        assert "CLBlast" in str(caught.value)
    assert "--tinyblas" in caught.value.hint


# -- measuring --


def test_tuning_measures_each_shape_once_and_the_next_start_uses_it(opened, clblast):
    backend = opened(recompile=True)
    weights = [backend.load(matrix(fmt, 64, 256)[0], fmt, (64, 256), fmt) for fmt in ("Q4_1", "Q8_0", "Q4_1")]
    line = backend.tune(weights, LONG)
    times = backend._record.times
    assert set(times) == {"Q4_1 64x256", "Q8_0 64x256"}
    assert all(time.own > 0 and time.vendor > 0 for time in times.values())
    assert "CLBlast" in line
    assert "times as fast" in line or "shapes" in line
    next_start = opened()
    for w in weights:
        time = times[f"{w.fmt} 64x256"]
        assert (next_start.by_vendor(w) is not None) == (time.vendor < time.own)


def test_without_a_library_tuning_says_what_is_used(opened, monkeypatch):
    monkeypatch.setattr("layerlift.backends.opencl.find_clblast", lambda: MISSING)
    assert "by our own (not installed)" in opened(recompile=True).tune([W], LONG)


def test_nocompile_needs_every_kernel_in_the_cache(opened):
    with pytest.raises(BackendUnavailable, match="not in the cache") as caught:
        product_of(opened(nocompile=True))
    assert "--recompile" in caught.value.hint


def test_recompile_builds_what_the_cache_holds(opened, tmp_path, monkeypatch):
    product_of(opened(tinyblas=True))
    builds = []
    real = OpenCLBackend._build
    monkeypatch.setattr(OpenCLBackend, "_build", lambda b, *a: builds.append(b.kernels.recompile) or real(b, *a))
    monkeypatch.setattr(ProgramCache, "read", lambda self, key: pytest.fail("read from the cache"))
    product_of(opened(tinyblas=True, recompile=True))
    assert builds == [True]


# -- whole models --


@pytest.mark.slow
def test_recompiling_a_model_fills_the_cache_for_nocompile(tiny, tmp_path, monkeypatch):
    opencl_device()
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path))
    path, notices = tiny("F32"), []
    with Model.load(
        path, ngl=999, gpu="opencl", context=32, kernels=KernelSettings(recompile=True), notify=notices.append
    ):
        pass
    assert [line for line in notices if line.startswith("opencl:0: kernels built; prompt products by ")]
    with Model.load(path, ngl=999, gpu="opencl", context=32, kernels=KernelSettings(nocompile=True)) as model:
        model.recompile()  # every kernel that a step needs


def test_recompile_without_a_gpu_says_so(tiny):
    notices = []
    settings = KernelSettings(recompile=True)
    with Model.load(tiny("F32"), ngl=0, context=32, kernels=settings, notify=notices.append):
        pass
    assert notices[-1] == "--recompile has no effect without a GPU"


MODES = {
    "cli": ["--cli", "-n", "1", "-p", "a"],
    "perplexity": ["perplexity", "-p", "a b c d e f g h i j k l m n o p", "-c", "8"],
    "bench": ["bench", "-p", "8", "-n", "0", "-r", "1"],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_that_loads_a_model_takes_the_flags(mode, tiny, capsys):
    path = str(tiny("F32"))
    assert main([*MODES[mode], "-m", path, "--gpu", "disable", "--recompile"]) == 0
    assert "--recompile has no effect without a GPU" in capsys.readouterr().err
    assert main([*MODES[mode], "-m", path, "--gpu", "disable", "--tinyblas", "--nocompile"]) == 0
    assert main([*MODES[mode], "-m", path, "--recompile", "--nocompile"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_nocompile_with_an_empty_cache_ends_with_one_line(tiny, tmp_path, monkeypatch, capsys):
    opencl_device()
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path))
    args = ["-m", str(tiny("F32")), "--gpu", "opencl", "-ngl", "999", "--nocompile"]
    assert main([*MODES["cli"], *args]) == 1
    err = capsys.readouterr().err
    assert "not in the cache" in err
    assert "Traceback" not in err


def test_devices_shows_what_multiplies_prompts_on_each_device(capsys):
    opencl_device()
    assert main(["devices"]) == 0
    assert "prompt products: " in capsys.readouterr().out
    assert main(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["devices"]
    assert any("CLBlast" in line for d in found if d["backend"] == "opencl" for line in d["choices"])
