"""The native library as an Arm CPU runs it: cross-compiled, under an emulator, against float64."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from native_cases import every_check
from native_driver import Driver, DriverBackend, build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMPILER, SYSTEM = "aarch64-linux-gnu-g++", "/usr/aarch64-linux-gnu"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if not shutil.which(COMPILER) or not emulator:
        pytest.skip(f"{COMPILER} or {EMULATORS[0]} is not installed")
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    driver = build(tmp_path_factory.mktemp("neon"), *system, "-DCMAKE_CXX_FLAGS=-Werror")
    return [emulator, "-cpu", "max", "-L", SYSTEM, str(driver)]


@pytest.fixture(params=["i8mm", "neon", "generic"])
def backend(program, request):
    with Driver(program, 3, request.param) as driver:
        yield DriverBackend(driver)


@every_check
def test_an_arm_cpu_computes_as_float64(backend, check):
    check(backend)


def test_the_best_set_is_chosen_by_the_cpus_features(program):
    for cpu, expected in (("max", "i8mm"), ("neoverse-n1", "neon"), ("cortex-a53", "generic")):
        with Driver([program[0], "-cpu", cpu, *program[3:]], 1, "") as driver:
            assert driver.call("isa", arrays=[np.frombuffer(expected.encode(), np.uint8)]), f"{cpu}: not {expected}"
