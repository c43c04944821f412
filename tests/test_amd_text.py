"""The OpenCL kernels build for AMD's GPUs, as far as a compiler without AMD's device libraries can tell."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from layerlift.backends.gpu_programs import Tuning, text_of

GPUS = ("gfx906", "gfx1030", "gfx1100")  # Vega 20, RDNA 2, RDNA 3
PROGRAMS = (
    ("rows",),
    ("top_k",),
    ("attend", 64, 4, 0),
    ("product", "Q4_K", False),
    ("gated", "Q8_0", "Q8_0", False),
    ("qkv", "Q4_K", "Q4_K", "Q6_K", False),
    ("dense", "Q6_K"),
)
FLAGS = ("-x", "cl", "-cl-std=CL1.2", "-O3", "-target", "amdgcn-amd-amdhsa", "-nogpulib", "-S", "-o", "-", "-")
CLANGS = (*(f"clang-{version}" for version in range(22, 14, -1)), "clang")  # the newest knows most GPUs
HEADER = ("-Xclang", "-finclude-default-header")


def compiled(text, gpu):
    """The assembly of a program, or why there is none."""
    clang = next(filter(None, map(shutil.which, CLANGS)), None)
    if clang is None:
        pytest.skip("clang is not installed")
    command = [clang, *FLAGS, f"-mcpu={gpu}", *HEADER]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=100)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_builds_and_fits_the_registers(gpu):
    if compiled("kernel void none() {}", gpu).returncode:
        pytest.skip(f"this clang does not know {gpu}")
    for program in PROGRAMS:
        done = compiled(text_of("opencl", Tuning(), *program), gpu)
        assert done.returncode == 0, (program, done.stderr[:500])
        spilled = [int(n) for n in re.findall(r"\.vgpr_spill_count:\s+(\d+)", done.stdout)]
        # 256 registers a thread are all there are. Calls to the device library, which is not linked here, cost a few.
        assert max(spilled) <= 32, (program, spilled)
