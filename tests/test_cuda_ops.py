"""The CUDA backend's composites over the kernels of kernels/cuda answer as float64 NumPy does."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import fake_cuda
import numpy as np
import pytest
from layerlift.backends import cuda_ops
from layerlift.backends.base import Draw
from layerlift.backends.cuda import CudaBackend
from layerlift.backends.cuda_kernels import MatmulMma, MatmulWgmma
from layerlift.backends.opcases import all_cases, judge, matrix, normal
from test_cuda_backend import SMALL

CASES = {str(case): case for case in all_cases()}


@contextmanager
def opened(capability=(9, 0)):
    """A backend on a fake device, and the names of the kernels it ran."""
    with fake_cuda.installed(major=capability[0], minor=capability[1]) as fake:
        backend = CudaBackend.open(CudaBackend.probe().devices[0], tuning=SMALL)
        yield backend, fake.ran
        backend.close()


def check(name, backend, *, relaxed):
    verdict = judge(CASES[name], backend, relaxed=relaxed)
    assert verdict.ok, f"{name}: nmse {verdict.nmse:.2e}, largest error {verdict.max_error:.2e}"


@pytest.mark.slow
def test_a_layer_of_few_tokens_takes_one_kernel_for_each_composite(monkeypatch):
    monkeypatch.setattr(cuda_ops, "FEW", 8)
    with opened() as (backend, ran):
        for op in ("qkv", "gated", "project_add"):
            check(f"{op}[Q4_1 bias]", backend, relaxed=False)
        check("attend[ragged 6/2x64]", backend, relaxed=False)
        assert [name for name in ran if name != "move_rows"] == ["qkv", "gated", "project", "attend_few"]


@pytest.mark.slow
def test_more_tokens_are_multiplied_on_tensor_cores():
    with opened() as (backend, ran):
        for op in ("qkv", "gated", "project_add"):
            check(f"{op}[Q6_K]", backend, relaxed=True)
        check("attend[prefill 8/2x64]", backend, relaxed=True)
        assert ran.count("rows_half") == 3
        assert ran.count("matmul_mma") == 6
        assert ran[-1] == "attend_many"


@pytest.mark.parametrize(("capability", "kind"), [((9, 0), "MatmulWgmma"), ((10, 0), "MatmulMma")])
def test_warp_groups_multiply_where_they_are_switched_on_and_there(monkeypatch, capability, kind):
    built: list[str] = []
    for found in (MatmulMma, MatmulWgmma):
        text = found.text
        monkeypatch.setattr(found, "text", lambda self, text=text: (built.append(type(self).__name__), text(self))[1])
    with opened(capability) as (backend, _):
        backend.warp_groups = True
        raw, w = matrix("F16", 40, 64)
        weight, x = backend.load(raw, "F16", (40, 64), "w"), normal(70, 64)
        y = backend.download(backend.matmul(backend.upload(x), weight))
    want = x.astype(np.float64) @ w.reshape(40, 64).T
    assert ((y - want) ** 2).sum() < 2e-7 * (want**2).sum()
    assert built == [kind]


@pytest.mark.slow
@pytest.mark.parametrize("few", [4, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_every_composite_and_attention_of_the_op_table(monkeypatch, few):
    monkeypatch.setattr(cuda_ops, "FEW", few)
    for fmt in ("F32", "Q8_0", "Q4_1", "Q6_K"):
        with opened() as (backend, _):
            for name, case in CASES.items():
                if case.op in ("qkv", "gated", "project_add") and case.fmt == fmt:
                    check(name, backend, relaxed=few < 5)
    with opened() as (backend, _):
        for name, case in CASES.items():
            if case.op == "attend":
                check(name, backend, relaxed=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "formats"),
    [
        ((7, 5), ("BF16", "Q5_0")),  # no tensor core takes bf16 there
        pytest.param((7, 5), ("F16", "IQ4_NL", "Q2_K", "F32"), marks=pytest.mark.exhaustive),
        pytest.param((8, 6), ("BF16", "F16", "Q5_0", "IQ4_NL", "Q2_K", "F32"), marks=pytest.mark.exhaustive),
    ],
)
def test_products_of_the_op_table_on_older_devices(capability, formats):
    for fmt in formats:
        with opened(capability) as (backend, _):
            for name, case in CASES.items():
                if case.op == "matmul" and case.fmt == fmt:
                    check(name, backend, relaxed=True)


def test_tokens_are_picked_on_the_device_and_come_while_it_goes_on():
    logits = normal(3, 1500)
    with opened() as (backend, ran):
        x = backend.upload(logits)
        first = backend.pick(x)
        backend.add(x, x)
        np.testing.assert_array_equal(first.wait(), logits.argmax(-1))
        assert ran == ["sample_slices", "sample_pick"], "what came behind was waited for too"
        draw = Draw(0.9, top_k=2, seed=5)
        second = backend.pick(x, [draw, Draw(), replace(draw, number=1)]).wait()
        best = np.argsort(-logits, axis=-1)[:, :2]
        assert second[1] == best[1, 0]
        assert second[0] in best[0]
        assert second[2] in best[2]


def test_weights_are_not_kept_alive_by_their_order():
    with opened() as (backend, _):
        raw, _ = matrix("F16", 8, 32)
        before = len(backend._after)
        for name in ("a", "b"):
            backend._uses(backend.load(raw, "F16", (8, 32), name))
        assert len(backend._after) == before
