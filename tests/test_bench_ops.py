"""The op benchmark: every op has a case that runs, and the limits are what they say. Slow: each op's own time."""

from __future__ import annotations

import pytest
from layerlift.bench import ops
from layerlift.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.reason() or "built")


@pytest.fixture
def backend():
    from layerlift.backends.cpu import CpuBackend

    opened = CpuBackend(CpuBackend.probe().devices[0], threads=2)
    yield opened
    opened.close()


def test_limits_are_those_of_a_machine(backend):
    limit = ops.limits(backend, mib=8)
    assert limit.read > 1e8
    assert min(limit.peak.values()) > 1e8


def test_a_line_divides_what_must_be_done_by_the_time_it_took(backend):
    limit = ops.Limits(1e9, {"f32": 2e9, "int8": 4e9})
    case = ops.Timed("x", "y", lambda: None, nbytes=1000, ops=5000, kind="int8")
    line = ops.line(case, limit)
    assert line.gb_s == pytest.approx(1000 / line.seconds / 1e9)
    assert line.of_read == pytest.approx(line.gb_s)
    assert line.of_peak == pytest.approx(line.gop_s / 4)
    row = ops.table([line]).splitlines()[2]
    assert row.startswith("| x ")


def test_every_op_runs_and_counts_what_it_reads(backend):
    seen = []
    for case in ops.cases(backend, formats=["Q4_0"], mib=1):
        seen.append(case.op)
        if "512" not in case.label:
            case.run()
        assert case.nbytes > 0
        assert case.ops > 0 or case.op not in ("matmul", "attend")
    assert {"matmul", "attend", "rms_norm", "rope_append", "gate", "add", "argmax", "top_k"} == set(seen)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["attend", "rows"])
def test_time_of_ops(benchmark, backend, op):
    cases = list(ops.cases(backend, op=op, mib=32))
    benchmark.pedantic(lambda: [case.run() for case in cases], rounds=3, warmup_rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 4, 8, 512])
@pytest.mark.parametrize("fmt", ops.FORMATS)
def test_time_of_products(benchmark, backend, fmt, tokens):
    case = next(c for c in ops.cases(backend, op="matmul", formats=[fmt], mib=64) if f" {tokens}x" in c.label)
    benchmark.extra_info.update(nbytes=case.nbytes, ops=case.ops)
    benchmark.pedantic(case.run, rounds=5, warmup_rounds=1)
