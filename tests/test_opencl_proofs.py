"""Optional parts of OpenCL are used where a small kernel proves them, and give the same answers then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from emulated_opencl import EVERYTHING, EmulatedOpenCL
from layerlift.backends import opencl_proofs
from layerlift.backends.gpu_programs import Tuning
from layerlift.backends.gpu_repack import FLOATS, supported
from layerlift.backends.opcases import HALF, all_cases, judge, matrix, normal
from layerlift.backends.opencl import OpenCLBackend
from opencl_here import opencl_device

SMALL = Tuning(
    group=16, lanes=8, tile_tokens=16, tile_rows=16, thread_tokens=2, thread_rows=4, few=1, compact=True, units=2
)


@pytest.fixture
def offer(monkeypatch, tmp_path):
    """offer(things, broken): a backend opened on a device that says it has these things."""
    device = opencl_device()
    opened = []

    def open_with(offered, *, broken=(), kind=EmulatedOpenCL):
        monkeypatch.setattr("layerlift.backends.opencl._offered", lambda device: set(offered))
        monkeypatch.setattr(EmulatedOpenCL, "broken", frozenset(broken))
        opened.append(kind(device, cache_folder=tmp_path))
        return opened[-1]

    yield open_with
    for backend in opened:
        backend.close()


def test_what_works_is_used(offer):
    tuning = offer(EVERYTHING).tuning
    assert (tuning.halves, tuning.subgroups, tuning.dot) == (1, 1, 1)


@pytest.mark.parametrize(
    ("offered", "expected"),
    [({"cl_intel_subgroups"}, (0, 2, 0)), ({"amd"}, (0, 0, 2)), ({"cl_khr_3d_image_writes"}, (0, 0, 0))],
)
def test_each_vendors_way_is_tried_where_it_is_offered(offer, offered, expected):
    tuning = offer(offered).tuning
    assert (tuning.halves, tuning.subgroups, tuning.dot) == expected


@pytest.mark.parametrize("part", opencl_proofs.NAMES)
def test_a_part_with_wrong_numbers_is_not_used(offer, part):
    backend = offer(EVERYTHING, broken=[part])
    assert {name for name, value in backend.proofs().parts.items() if value} == set(opencl_proofs.NAMES) - {part}
    assert f"{opencl_proofs.NAMES[part]} not used (wrong numbers)" in backend.proofs().describe()


def test_what_is_offered_and_does_not_build_is_not_used(offer):
    backend = offer([*EVERYTHING, "amd"], kind=OpenCLBackend)  # PoCL knows none of it
    assert not any(backend.proofs().parts.values())
    assert all("cannot be built" in reason for reason in backend.proofs().reasons.values())
    assert len(backend.proofs().reasons) == len(opencl_proofs.NAMES)
    assert len(backend.download(backend.upload(np.ones((2, 3), np.float32)))) == 2  # the backend lives


def test_a_device_is_tried_once(offer, monkeypatch):
    offer(EVERYTHING)
    monkeypatch.setattr(opencl_proofs, "CHECKS", {})
    assert offer([]).tuning.dot == 1


def test_a_damaged_record_is_made_again(offer, tmp_path):
    first = offer(EVERYTHING)
    first.cache.write(opencl_proofs._key(first.cache, first.identity), b'{"parts": 3')
    assert offer(EVERYTHING).proofs() == first.proofs()


def test_devices_shows_what_was_proved(offer, monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path))
    monkeypatch.setattr("layerlift.backends.opencl._offered", lambda device: {"cl_khr_fp16"})
    line = OpenCLBackend.choices(opencl_device())[0]
    assert line.startswith("fp16 not used (")
    assert line.endswith("; subgroups not offered; integer dot products not offered")


def cases(ops, formats):
    return [case for case in all_cases() if case.op in ops and case.fmt in formats]


@pytest.fixture(scope="module")
def with_parts():
    """with_parts(**parts): an emulated device that uses them."""
    opened = {}

    def get(**parts):
        key = tuple(sorted(parts.items()))
        if key not in opened:
            opened[key] = EmulatedOpenCL(opencl_device(), tuning=replace(SMALL, **parts))
        return opened[key]

    yield get
    for backend in opened.values():
        backend.close()


COMPOSITES = ("qkv", "gated", "project_add", "head", "rms_norm")


@pytest.mark.parametrize("case", cases(COMPOSITES, ("", "Q4_1")), ids=str)
def test_teams_that_sum_by_subgroups_are_exact(with_parts, case):
    verdict = judge(case, with_parts(subgroups=1, few=8))
    assert verdict.ok, verdict


DOT_FORMATS = [fmt for fmt in supported() if fmt not in FLOATS]
QUICK = ("Q4_1", "Q6_K", "F16")


def by_format(formats):
    matmuls = cases(("matmul",), formats)
    return [pytest.param(c, id=str(c), marks=() if c.fmt in QUICK else pytest.mark.slow) for c in matmuls]


@pytest.mark.parametrize("case", by_format(DOT_FORMATS))
def test_products_in_integers_are_nearly_exact(with_parts, case):
    verdict = judge(case, with_parts(dot=1))
    assert verdict.nmse < 1e-7, verdict  # outliers of 40 make a unit's step 40 times as long


@pytest.mark.parametrize("case", by_format(FLOATS))
def test_tiles_of_halves_are_as_exact_as_halves(with_parts, case):
    verdict = judge(case, with_parts(halves=1))
    assert verdict.nmse < HALF, verdict


def test_products_of_rows_that_no_unit_divides_in_integers(with_parts):
    backend = with_parts(dot=1)
    raw, values = matrix("Q8_0", 21, 96)
    w, x = backend.load(raw, "Q8_0", (21, 96), "w"), normal(19, 96)
    x[3] = 0  # a unit without a largest value
    got = backend.download(backend.matmul(backend.upload(x), w))
    np.testing.assert_allclose(got, x @ values.T, atol=1e-3)
