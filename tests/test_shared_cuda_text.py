"""The kernels that OpenCL runs in these tests are CUDA C++ too: they build for every architecture in use."""

from __future__ import annotations

import pytest
from layerlift.backends.gpu_programs import Tuning, text_of
from layerlift.backends.gpu_repack import supported
from nvrtc import ARCHITECTURES, nvrtc, spills

PROGRAMS = (
    ("rows",),
    ("qkv", "Q4_K", "Q4_K", "Q6_K", False),
    ("gated", "Q8_0", "Q8_0", False),
    ("attend", 64, 4, 1, 0),
    ("attend", 64, 2, 8, 0),
    ("attend", 128, 1, 1, 1),
    ("attend", 128, 3, 8, 0),
    *(("product", fmt, False) for fmt in supported()),
    ("product", "F32", True),
)
KINDS = (*PROGRAMS[:7], ("product", "Q6_K", False))
SOME = 32  # bytes: sm_120 spills two words of Q3_K's product


@pytest.fixture(scope="module")
def compiler():
    return nvrtc()


def check(compiler, arch, program, *, most=0):
    log = compiler.compile(text_of("cuda", Tuning(), *program), arch)
    found = spills(log)
    assert found, log
    assert max(found.values()) <= most, f"{program} on {arch} spills: {found}"


@pytest.mark.parametrize("program", KINDS, ids=lambda p: "-".join(map(str, p)))
def test_shared_kernels_build_without_spills(compiler, program):
    check(compiler, "sm_90", program)


def rotated(arch):
    """Every program is built for one architecture at least, and of each kind one for the oldest and the newest."""
    at, ends = ARCHITECTURES.index(arch), (ARCHITECTURES[0], ARCHITECTURES[-1])
    turns = PROGRAMS[at :: len(ARCHITECTURES)]
    return {*turns, *(KINDS if arch in ends else ())}


def test_every_program_has_its_turn():
    assert {program for arch in ARCHITECTURES for program in rotated(arch)} == set(PROGRAMS)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_other_architectures_build_them_in_turns(compiler, arch):
    for program in rotated(arch):
        check(compiler, arch, program, most=SOME)


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_builds_all_of_them(compiler, arch):
    for program in PROGRAMS:
        check(compiler, arch, program, most=SOME)
