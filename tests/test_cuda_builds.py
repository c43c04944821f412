"""What the compiler for the device says of kernels/cuda: they build for every architecture, within their registers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from layerlift.backends.cuda_kernels import (
    MATVEC_FORMATS,
    MMA_FORMATS,
    AttendFew,
    AttendMany,
    MatmulMma,
    MatmulWgmma,
    Matvec,
    sample_text,
)
from nvrtc import ARCHITECTURES, nvrtc, registers, spills


@dataclass(frozen=True)
class Build:
    """A text, and the most registers of a thread that leave room for the blocks a multiprocessor must hold."""

    name: str
    text: str
    registers: int


def matvec(*arguments) -> Build:
    program = Matvec(*arguments)
    return Build(f"{program.kind}-{program.formats[0]}", program.text(), program.registers)


def few(head_dim, dtype=0) -> Build:
    return Build(f"attend_few-{head_dim}-{dtype}", AttendFew(head_dim, 32, 8, dtype).text(), 192)


def many(head_dim) -> Build:
    return Build(f"attend_many-{head_dim}", AttendMany(head_dim).text(), 255)


def mma(fmt, tokens) -> Build:
    program = MatmulMma(fmt, tokens)
    return Build(f"mma-{fmt}-{tokens}", program.text(), 255 if program.tile_tokens == 128 else 128)


def wgmma(fmt) -> Build:
    return Build(f"wgmma-{fmt}", MatmulWgmma(fmt, 512).text(), 128)


def half(fmt) -> Build:
    return Build(f"rows_half-{fmt}", MatmulMma(fmt, 32).rows_half_text(), 128)


COMMON = (  # each file of kernels/cuda, as a 1B model's answers need it
    matvec("qkv", 2048, 1, ("Q4_K", "Q4_K", "Q6_K"), 2048),
    matvec("gated", 2048, 1, ("Q6_K",), 8192),
    matvec("project", 8192, 1, ("Q8_0",), 2048),
    few(64),
    many(64),
    mma("Q4_0", 32),
    half("Q4_0"),
    Build("sample", sample_text(), 64),
)


@pytest.fixture(scope="module")
def compiler():
    return nvrtc()


def check(compiler, arch, build):
    log = compiler.compile(build.text, arch)
    assert "serialized" not in log, log  # ptxas says so of wgmma whose sums it must wait for
    assert spills(log), log
    assert max(spills(log).values()) == 0, f"{build.name} on {arch} spills: {spills(log)}"
    assert max(registers(log).values()) <= build.registers, f"{build.name} on {arch}: {registers(log)}"


@pytest.mark.parametrize("build", COMMON, ids=lambda build: build.name)
def test_every_file_builds_within_its_registers_and_without_spills(compiler, build):
    check(compiler, "sm_90", build)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["Q6_K", "BF16"])
def test_products_by_warp_groups_build_for_hopper_alone(compiler, fmt):
    check(compiler, "sm_90a", wgmma(fmt))
    ptx = compiler.ptx(wgmma(fmt).text, "compute_90a")
    kind = "bf16.bf16" if fmt == "BF16" else "f16.f16"
    assert ptx.count(f"wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}") == 4, "64 columns of a stage"


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", MMA_FORMATS)
def test_so_do_all_formats(compiler, fmt):
    check(compiler, "sm_90a", wgmma(fmt))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "sm_90"])
def test_so_it_does_on_other_architectures(compiler, arch):
    """The oldest and the newest build all of them, those in between take turns."""
    between = ARCHITECTURES.index(arch) % 2
    for build in COMMON if arch in (ARCHITECTURES[0], ARCHITECTURES[-1]) else COMMON[between::2]:
        check(compiler, arch, build)


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_builds_every_format_and_size(compiler, arch):
    capability = int(arch[3:])
    for fmt in MATVEC_FORMATS:
        check(compiler, arch, matvec("project", 8192, 1, (fmt,), 2048))
        check(compiler, arch, matvec("project", 2048, 1, (fmt,), 128256))
        check(compiler, arch, matvec("gated", 2048, 1, (fmt,), 8192))
        check(compiler, arch, matvec("qkv", 2048, 4, (fmt,) * 3, 2048))
    for fmt in (fmt for fmt in MMA_FORMATS if MatmulMma.ready(fmt, 2048, capability)):
        check(compiler, arch, half(fmt))
        for tokens in (16, 64, 512):
            check(compiler, arch, mma(fmt, tokens))
    for head_dim in (64, 80, 128, 256):
        for dtype in (0, 1, 2):
            check(compiler, arch, few(head_dim, dtype))
        if AttendMany.ready(head_dim, 0, capability):
            check(compiler, arch, many(head_dim))


def test_tiles_fit_the_shared_memory_of_the_oldest():
    for tokens in (9, 32, 64, 512):
        assert MatmulMma("Q6_K", tokens).shared_nbytes <= 64 << 10
    assert all(AttendMany(head_dim).shared_nbytes <= 64 << 10 for head_dim in (16, 64, 128))
