"""The thread pool of the native library: right under any load, silent when idle, fast beside a busy neighbour."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from layerlift.backends.cpu import CpuBackend
from layerlift.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.reason() or "native library")


def open_cpu(threads: int) -> CpuBackend:
    return CpuBackend.open(CpuBackend.probe().devices[0], threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_jobs_of_all_sizes_in_any_order_are_whole(threads):
    backend, rng = open_cpu(threads), np.random.default_rng(threads)
    numbers = rng.standard_normal(400_000, np.float32)
    for i in range(300):
        rows, columns = int(rng.integers(1, 200)), int(rng.integers(1, 2000))
        a = numbers[: rows * columns].reshape(rows, columns)
        np.testing.assert_array_equal(backend.add(a, a), a + a)
        if i % 50 == 0:
            time.sleep(0.001)  # the workers fall asleep


IDLE = """
import time
import numpy as np
from layerlift.backends.cpu import CpuBackend
backend, x = CpuBackend.open(CpuBackend.probe().devices[0], threads=4), np.ones((100, 1000), np.float32)
backend.add(x, x)
time.sleep(0.01)
before = time.process_time()
time.sleep(1)
print(time.process_time() - before)
"""


def test_idle_workers_use_no_processor_time():
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's own threads spin for 30 ms when they are made
    done = subprocess.run([sys.executable, "-c", IDLE], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stdout) < 0.02


FORKED = """
import os, warnings
import numpy as np
from layerlift.backends.cpu import CpuBackend
warnings.simplefilter("ignore", DeprecationWarning)
backend, x = CpuBackend.open(CpuBackend.probe().devices[0], threads=3), np.ones((100, 1000), np.float32)
backend.add(x, x)
child = os.fork()
assert backend.add(x, x).sum() == 200_000
backend.close()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_computes_and_closes():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# What a small model's decoding asks of the pool: products of a few microseconds with Python between them.
DECODING = """
import os, sys, time
import numpy as np
from layerlift.backends.cpu import CpuBackend
threads, seconds, core = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
if core >= 0:
    os.sched_setaffinity(0, {core})
backend, rng = CpuBackend.open(CpuBackend.probe().devices[0], threads=threads), np.random.default_rng(0)
raw = rng.standard_normal((1536, 576), np.float32)
w = backend.load(raw.view(np.uint8).reshape(-1), "F32", raw.shape, "w")
x = np.ones((1, 576), np.float32)
backend.matmul(x, w)
count, start = 0, time.perf_counter()
while time.perf_counter() - start < seconds:
    backend.matmul(x, w)
    count += 1
print(count / (time.perf_counter() - start))
"""


def speed(threads: int, core: int = -1) -> float:
    command = [sys.executable, "-c", DECODING, str(threads), "1.5", str(core)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot keep a process on one core here")
def test_two_threads_beside_a_busy_process_are_as_fast_as_one_on_a_quiet_core():
    before = sorted(os.sched_getaffinity(0))
    if len(before) < 2:
        pytest.skip("needs two cores")
    quiet, shared, both = [], [], []
    try:
        os.sched_setaffinity(0, before[:2])
        for _ in range(5):
            quiet.append(speed(1, before[0]))
            both.append(speed(2))
            spin = f"import os\nos.sched_setaffinity(0, {{{before[1]}}})\nwhile True: pass"
            neighbour = subprocess.Popen([sys.executable, "-c", spin])
            try:
                shared.append(speed(2))
            finally:
                neighbour.kill()
                neighbour.wait()
    finally:
        os.sched_setaffinity(0, before)
    one, two, beside = (statistics.median(x) for x in (quiet, both, shared))
    print(f"one quiet core {one:.0f}, two {two:.0f}, two with one shared {beside:.0f} products a second")
    if two < 1.4 * one or max(quiet) > 1.2 * min(quiet):
        pytest.skip(f"this machine is not quiet enough to tell: {one:.0f} on one core, {two:.0f} on two")
    assert beside > 0.9 * one
