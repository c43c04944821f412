"""The OpenCL kernels build for AMD's GPUs, as far as a compiler without AMD's device libraries can tell."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from layerlift.backends.gpu_programs import Tuning, text_of
from layerlift.backends.opencl import standard
from layerlift.backends.opencl_proofs import WAYS
from layerlift.backends.opencl_proofs import text_of as proof_of

GPUS = ("gfx906", "gfx1030", "gfx1100")  # Vega 20, RDNA 2, RDNA 3
PROGRAMS = (
    ("rows",),
    ("top_k",),
    ("attend", 64, 4, 1, 0),
    ("attend", 64, 2, 8, 0),
    ("product", "Q4_K", False),
    ("gated", "Q8_0", "Q8_0", False),
    ("qkv", "Q4_K", "Q4_K", "Q6_K", False),
    ("dense", "Q6_K"),
)
DOTS = {"gfx906": 3, "gfx1030": 3, "gfx1100": 2}  # which of the prelude's ways to multiply bytes each GPU has
FLAGS = ("-x", "cl", "-O3", "-target", "amdgcn-amd-amdhsa", "-nogpulib", "-S", "-o", "-", "-")
CLANGS = (*(f"clang-{version}" for version in range(22, 14, -1)), "clang")  # the newest knows most GPUs
# What the device library makes of these: as calls they would put what is alive across them into memory.
LIBRARY = (
    "#define vload_half(i, p) __builtin_load_halff((p) + (i))\n"
    "#define convert_float4(v) __builtin_convertvector(v, float4)\n"
)
HEADER = ("-Xclang", "-finclude-default-header")


def compiled(text, gpu):
    """The assembly of a program, or why there is none."""
    clang = next(filter(None, map(shutil.which, CLANGS)), None)
    if clang is None:
        pytest.skip("clang is not installed")
    command = [clang, standard(text), *FLAGS, f"-mcpu={gpu}", *HEADER]
    return subprocess.run(command, input=LIBRARY + text, capture_output=True, text=True, timeout=100)


@pytest.fixture(params=GPUS)
def gpu(request):
    """A GPU that this clang builds for."""
    if compiled("kernel void none() {}", request.param).returncode:
        pytest.skip(f"this clang does not know {request.param}")
    return request.param


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_kernel_builds_and_fits_the_registers(gpu):
    for program in PROGRAMS:
        fits(gpu, Tuning(), program)


def fits(gpu, tuning, program):
    """The assembly of a program, which must not spill."""
    done = compiled(text_of("opencl", tuning, *program), gpu)
    assert done.returncode == 0, (program, done.stderr[:500])
    spilled = [int(n) for n in re.findall(r"\.vgpr_spill_count:\s+(\d+)", done.stdout)]
    assert spilled, program
    assert max(spilled) == 0, (program, spilled)
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_optional_parts_build_and_become_the_instructions_they_are_for(gpu):
    dot = Tuning(dot=DOTS[gpu])
    for fmt in ("Q4_K", "Q6_K", "Q8_0"):
        assert re.search(r"v_dot4c?_i32_i(u)?8", fits(gpu, dot, ("product", fmt, False))), fmt
    assert "v_cvt_f16_f32" in fits(gpu, Tuning(halves=1), ("product", "F16", False))
    assert "sub_group_reduce_add" in fits(gpu, Tuning(subgroups=1), ("qkv", "Q4_K", "Q4_K", "Q6_K", False))


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS)
def test_the_proofs_build_where_the_gpu_has_the_part(gpu):
    for way in WAYS:
        done = compiled(proof_of(way), gpu)
        has = {"cl_khr_fp16": True, "cl_khr_subgroups": True, "amd": way.value == DOTS[gpu]}
        if way.needs in has:
            assert (done.returncode == 0) == has[way.needs], (way, done.stderr[:500])
