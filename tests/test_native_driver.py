"""The native library built by each compiler; and what the driver of native tests must notice."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from native_cases import check_op_table
from native_driver import Driver, DriverBackend, build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["g++", "clang++"])
def program(request, tmp_path_factory):
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    options = [f"-DCMAKE_CXX_COMPILER={request.param}", "-DCMAKE_BUILD_TYPE=Debug"]
    if request.param == "clang++":  # GCC warns where it unrolls nothing of a loop, and of its own headers
        options.append("-DCMAKE_CXX_FLAGS=-Werror")
    return str(build(tmp_path_factory.mktemp(request.param), *options))


def test_a_build_of_any_compiler_answers_the_op_table(program):
    with Driver([program], 2, "") as driver:
        check_op_table(DriverBackend(driver))


def add(program, length, asked):
    a, b, y = np.ones(length, np.float32), np.ones(length, np.float32), np.zeros(length, np.float32)
    with Driver([program], 1, "generic") as driver:
        driver.call("add", [1, asked, 0], arrays=[a, b, y], wanted=[y])
    return y


def test_a_call_answers(program):
    assert add(program, 100, 100).tolist() == [2.0] * 100


def test_an_access_beyond_the_end_ends_the_driver(program):
    with pytest.raises(AssertionError, match="driver died in add"):
        add(program, 100, 101)


def test_an_unknown_instruction_set_ends_the_driver(program):
    with pytest.raises(AssertionError, match="cannot open z80"), Driver([program], 1, "z80") as driver:
        driver.call("isa", arrays=[np.zeros(1, np.uint8)])
