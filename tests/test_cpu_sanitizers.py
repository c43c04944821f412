"""The native library under the sanitizers of memory, undefined behaviour and threads, with the op table's calls."""

from __future__ import annotations

import platform
import subprocess

import numpy as np
import pytest
from layerlift.kernels.cpu import native
from native_cases import CHECKS, check_products
from native_driver import Driver, DriverBackend, build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SANITIZERS = {"memory": "address,undefined", "threads": "thread"}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory):
    flag = f"-fsanitize={SANITIZERS[request.param]}"
    probe = ["c++", flag, "-x", "c++", "-", "-o", "/dev/null"]
    try:
        works = subprocess.run(probe, input=b"int main() {}", capture_output=True).returncode == 0
    except OSError:
        works = False
    if not works:
        pytest.skip(f"no C++ compiler that knows {flag}")
    options = [f"-DCMAKE_CXX_FLAGS={flag} -fno-omit-frame-pointer -Wno-tsan", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    options += ["-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1"]
    options += [f"-DUNUSED={';'.join({'avx2', 'avx512'} - set(native.isa_names()))}"]
    if request.param == "memory":
        options[0] += " -fno-sanitize-recover=all"
    return str(build(tmp_path_factory.mktemp(request.param), *options))


@pytest.fixture(params=native.isa_names() or ["generic"])
def backend(program, request):
    wrapped = ["setarch", platform.machine(), "-R", program]  # ThreadSanitizer wants its addresses free
    with Driver(wrapped, 4, request.param, ENVIRONMENT) as driver:
        yield DriverBackend(driver)


def test_the_op_table_runs_clean(backend):
    for check in CHECKS:
        if check is not check_products:  # in a test of its own, with fewer sizes
            check(backend)


def test_products_at_the_edges_of_tiles_run_clean(backend):
    check_products(backend, tokens=(1, 3, 8, 9, 33), rows=(1, 37))


def test_many_jobs_of_all_sizes_run_clean(backend):
    rng = np.random.default_rng(1)
    for _ in range(150):
        shape = int(rng.integers(1, 40)), int(rng.integers(1, 4000))
        a, b = rng.standard_normal((2, *shape), np.float32)
        np.testing.assert_array_equal(backend.add(a, b), a + b)
