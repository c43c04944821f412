"""What the driver of native tests must notice."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from native_driver import Driver, build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    return str(build(tmp_path_factory.mktemp("driver"), "-DCMAKE_CXX_FLAGS=-Werror", "-DCMAKE_BUILD_TYPE=Debug"))


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
