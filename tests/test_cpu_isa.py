"""The CPU backend with an instruction set forced, over the op table: LAYERLIFT_ISA is read in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from layerlift.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.reason() or "native library")

CODE = """
import sys
from layerlift.backends.cpu import CpuBackend
from layerlift.backends.opcases import all_cases, judge
backend = CpuBackend.open(CpuBackend.probe().devices[0], threads=2)
assert backend.isa == sys.argv[1], backend.isa
verdicts = [judge(case, backend, relaxed=True) for case in list(all_cases())[::int(sys.argv[2])]]
print(len(verdicts), *[f"{v.case}: nmse {v.nmse:.3g}" for v in verdicts if not v.ok], sep="\\n")
"""


def answers(isa: str, every: int) -> list[str]:
    """How many cases ran, and those answered wrongly."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, isa, str(every)],
        env={**os.environ, "LAYERLIFT_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("isa", native.isa_names())
def test_a_forced_instruction_set_answers_a_sample_of_the_table(isa):
    ran, *wrong = answers(isa, 5)
    assert int(ran) > 30
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("isa", native.isa_names())
def test_a_forced_instruction_set_answers_the_whole_table(isa):
    ran, *wrong = answers(isa, 1)
    assert int(ran) > 200
    assert not wrong, "\n".join(wrong)
