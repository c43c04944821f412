"""A card that another program holds, or that no program may use: passed over where any card would do, else an error."""

from __future__ import annotations

import fake_cuda
import pytest
from layerlift.backends.base import BackendUnavailable
from layerlift.runtime.model import Model
from test_cuda_backend import SMALL

EXCLUSIVE, PROHIBITED = 3, 2  # cudaComputeMode


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path))
    monkeypatch.setattr("layerlift.backends.cuda._tuning", lambda properties: SMALL)


def placed(path, **options):
    """Where a model's layers are, and what was said."""
    said: list[str] = []
    with Model.load(path, ngl=999, context=100, notify=said.append, **options) as model:
        return {stage.device.backend + f":{stage.device.index}" for stage in model.plan.stages}, said


def test_a_card_held_by_another_program_leaves_the_cpu_and_a_line_that_says_why(tiny):
    with fake_cuda.installed(modes={0: EXCLUSIVE}, held=frozenset({0})):
        devices, said = placed(tiny("F32"))
    assert devices == {"cpu:0"}
    (line,) = [line for line in said if "cuda:0" in line]
    assert line.startswith("no GPU in use, all layers on the CPU (CUDA: cuda:0: cannot be opened: the device is in exc")
    assert "`nvidia-smi -c DEFAULT` lets both use it" in line


def test_of_two_cards_the_one_that_is_free_is_used(tiny):
    with fake_cuda.installed(devices=2, modes={0: EXCLUSIVE}, held=frozenset({0})):
        devices, said = placed(tiny("F32"))
    assert devices == {"cuda:1"}
    assert [line[:62] for line in said if "exclusive" in line] == [
        "not used: cuda:0: cannot be opened: the device is in exclusive"
    ]


@pytest.mark.parametrize("gpu", ["auto", "nvidia"])
def test_a_prohibited_card_beside_a_free_one_is_named(tiny, gpu):
    with fake_cuda.installed(devices=2, modes={1: PROHIBITED}):
        devices, said = placed(tiny("F32"), gpu=gpu)
    assert devices == {"cuda:0"}
    assert any(line.startswith("not used: cuda:1: the device's compute mode is prohibited") for line in said)


def test_a_prohibited_card_alone_leaves_the_cpu(tiny):
    with fake_cuda.installed(modes={0: PROHIBITED}):
        devices, said = placed(tiny("F32"))
    assert devices == {"cpu:0"}
    assert any("(CUDA: cuda:0: the device's compute mode is prohibited" in line for line in said)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modes": {0: EXCLUSIVE}, "held": frozenset({0})}, "exclusive mode .*nvidia-smi -c DEFAULT"),
        ({"modes": {0: PROHIBITED}}, "--gpu nvidia cannot be used: CUDA: .*prohibited; `nvidia-smi -c DEFAULT"),
    ],
    ids=["exclusive", "prohibited"],
)
def test_asked_for_by_name_it_is_an_error_of_one_line_with_the_next_step(tiny, settings, words):
    with (
        fake_cuda.installed(**settings),
        pytest.raises(BackendUnavailable, match=words) as caught,
        Model.load(tiny("F32"), ngl=999, gpu="nvidia", context=100),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
