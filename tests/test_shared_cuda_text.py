"""The kernels that OpenCL runs in these tests are CUDA C++ too: they build for every architecture in use."""

from __future__ import annotations

import pytest
from layerlift.backends.gpu_programs import Tuning, text_of
from layerlift.backends.gpu_repack import supported
from nvrtc import nvrtc, spills

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
PROGRAMS = (
    ("rows",),
    ("qkv", "Q4_K", "Q4_K", "Q6_K", False),
    ("gated", "Q8_0", "Q8_0", False),
    ("attend", 64, 4, 0),
    ("attend", 128, 1, 1),
    *(("product", fmt, False) for fmt in supported()),
    ("product", "F32", True),
)


@pytest.fixture(scope="module")
def compiler():
    return nvrtc()


def check(compiler, arch, program, *, most=0):
    log = compiler.compile(text_of("cuda", Tuning(), *program), arch)
    found = spills(log)
    assert found, log
    assert max(found.values()) <= most, f"{program} on {arch} spills: {found}"


@pytest.mark.parametrize("program", [*PROGRAMS[:5], ("product", "Q6_K", False)], ids=lambda p: "-".join(map(str, p)))
def test_shared_kernels_build_without_spills(compiler, program):
    check(compiler, "sm_90", program)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_builds_them(compiler, arch):
    for program in PROGRAMS:
        check(compiler, arch, program, most=32)  # bytes: sm_120 spills two words of Q3_K's product
