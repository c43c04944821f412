"""Every backend on this machine answers every case of the op table as float64 NumPy does."""

import numpy as np
import pytest
from layerlift.backends import registry
from layerlift.backends.base import Backend, UnsupportedFormat
from layerlift.backends.opcases import all_cases, judge

COMPILED_FORMATS = ("", "F32", "Q4_1", "Q6_K")  # a program for each format, compiled at first use: the rest is slow


def questions():
    """Every device with every case."""
    for device in [device for probe in registry.probe_all() for device in probe.devices]:
        for case in all_cases():
            slow = device.backend == "opencl" and case.fmt not in COMPILED_FORMATS
            yield pytest.param(device, case, marks=pytest.mark.slow if slow else (), id=f"{device}-{case}")


@pytest.fixture(scope="module")
def backend(request):
    opened = registry.open_device(request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize(("backend", "case"), list(questions()), indirect=["backend"])
def test_backend_equals_float64(backend: Backend, case):
    try:
        verdict = judge(case, backend, relaxed=backend.name != "numpy")
    except UnsupportedFormat as error:
        pytest.skip(str(error))
    assert verdict.ok, f"{case} on {backend.name}: nmse {verdict.nmse:.3g}, max error {verdict.max_error:.3g}"


def test_a_wrong_answer_is_judged_wrong():
    case = next(c for c in all_cases() if c.op == "rms_norm")
    backend = registry.open_device(registry.backend_class("numpy").probe().devices[0])
    assert judge(case, backend).ok
    backend.rms_norm = lambda x, norm, width=0: np.where(np.arange(x.shape[1]) == 5, np.nan, x)
    assert not judge(case, backend).ok
