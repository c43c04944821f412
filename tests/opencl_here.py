"""The OpenCL device that tests run on, or the reason there is none."""

from __future__ import annotations

import pytest
from layerlift.backends.opencl import OpenCLBackend


def opencl_device():
    """The first OpenCL device; skips the test where there is none."""
    probe = OpenCLBackend.probe()
    if not probe.devices:
        pytest.skip(f"no OpenCL here: {probe.reason}")
    return probe.devices[0]
