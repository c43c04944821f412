"""Where layers go, as tables. Sizes are in units of 1 GiB / 1024."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layerlift.backends.base import DeviceInfo
from layerlift.backends.errors import DeviceOutOfMemory
from layerlift.runtime.errors import UserError
from layerlift.runtime.scheduler import GIB, ModelSizes, plan_layers

MIB = 1 << 20
HOST = DeviceInfo("cpu", 0, "Zen 4", "cpu", False)


def gpu(index: int = 0, free: float = 0, total: float = 0) -> DeviceInfo:
    """A GPU with this many MiB."""
    return DeviceInfo("cuda", index, f"card {index}", "nvidia", True, total=int(total * MIB), free=int(free * MIB))


def sizes(n=16, block=100, embedding=300, head=250, tied=False, kv=0.0, work=0) -> ModelSizes:
    """A model of n equal blocks; `kv` is MiB a token."""
    mib = [int(x * MIB) for x in (block, embedding, head, kv, work)]
    return ModelSizes((mib[0],) * n, mib[1], mib[2], tied, (mib[3],) * n, mib[4])


def places(plan) -> str:
    """`0-11 cuda:0 | 12-15 cpu:0 | embed cpu:0, head cpu:0`"""
    stages = [f"{s.first}-{s.last - 1} {s.device}" for s in plan.stages]
    return " | ".join([*stages, f"embed {plan.embed_on}, head {plan.head_on}"])


def check(plan, n: int) -> None:
    """Whatever the plan, it covers every block once, GPU blocks first."""
    at = 0
    for stage in plan.stages:
        assert stage.first == at < stage.last
        at = stage.last
    assert at == n
    assert all(a.device != b.device for a, b in zip(plan.stages, plan.stages[1:], strict=False))
    on_gpu = [s.last - s.first for s in plan.stages if s.device != HOST]
    assert sum(on_gpu) == plan.layers_gpu
    assert [s.device == HOST for s in plan.stages] == sorted(s.device == HOST for s in plan.stages)
    assert (plan.embed_on == HOST) == (plan.head_on == HOST)


CPU = "embed cpu:0, head cpu:0"
BIG = gpu(free=80 * 1024)


@pytest.mark.parametrize(
    ("ngl", "expected"),
    [
        (0, f"0-15 cpu:0 | {CPU}"),
        (1, f"0-0 cuda:0 | 1-15 cpu:0 | {CPU}"),
        (12, f"0-11 cuda:0 | 12-15 cpu:0 | {CPU}"),
        (15, f"0-14 cuda:0 | 15-15 cpu:0 | {CPU}"),
        (16, f"0-15 cuda:0 | {CPU}"),
        (17, "0-15 cuda:0 | embed cuda:0, head cuda:0"),
        (999, "0-15 cuda:0 | embed cuda:0, head cuda:0"),
        ("all", "0-15 cuda:0 | embed cuda:0, head cuda:0"),
        ("auto", "0-15 cuda:0 | embed cuda:0, head cuda:0"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_first_layers_go_to_the_gpu(ngl, expected, tied):
    plan = plan_layers(sizes(tied=tied), ngl, 8192, [BIG], host=HOST)
    check(plan, 16)
    assert places(plan) == expected
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("free", "model", "context", "layers", "head"),
    [
        # 16 blocks of 100, embedding 300, head 250: 2150 in all; a tenth stays free
        (2400, sizes(), 0, 16, True),
        (2380, sizes(), 0, 16, False),  # 2142 to use: one short of everything
        (1780, sizes(), 0, 16, False),
        (1770, sizes(), 0, 15, False),
        (112, sizes(), 0, 1, False),
        (111, sizes(), 0, 0, False),
        # tied: the embedding counts once
        (2120, sizes(tied=True), 0, 16, True),
        (2110, sizes(tied=True), 0, 16, False),
        # the cache of the whole context counts, with its layers
        (2400, sizes(kv=0.1), 1000, 10, False),
        (2400, sizes(kv=0.1), 0, 16, True),
        # so do work buffers
        (2400, sizes(work=300), 0, 16, False),
        (2400, sizes(work=2100), 0, 0, False),
        # above 10 GiB the margin is 1 GiB
        (1024 * 20, sizes(block=1190), 0, 16, False),
        (1024 * 20, sizes(block=1177), 0, 16, True),
        (1024 * 20, sizes(block=1220), 0, 15, False),
    ],
)
def test_auto_takes_what_fits(free, model, context, layers, head):
    plan = plan_layers(model, "auto", context, [gpu(free=free)], host=HOST)
    check(plan, 16)
    assert (plan.layers_gpu, plan.head_on != HOST) == (layers, head)


@pytest.mark.parametrize(
    ("margin", "layers"), [(0, 10), (100 * MIB, 9), (101 * MIB, 8), (900 * MIB, 1), (2000 * MIB, 0)]
)
def test_auto_leaves_the_margin_asked_for(margin, layers):
    plan = plan_layers(sizes(), "auto", 0, [gpu(free=1000)], host=HOST, margin=margin)
    assert plan.layers_gpu == layers


def test_blocks_of_different_sizes_are_counted_each():
    model = ModelSizes((500 * MIB, 100 * MIB, 100 * MIB, 900 * MIB), MIB, MIB, False, (0,) * 4)
    assert plan_layers(model, "auto", 0, [gpu(free=780)], host=HOST).layers_gpu == 3


@pytest.mark.parametrize(
    ("free", "total", "layers", "note"),
    [
        (0, 0, 0, "free memory of cuda:0 is unknown: give -ngl a number to use it"),
        (0, 2400, 16, ""),  # 80 % of the total taken as free, less a tenth of that: 1728
        (0, 1000, 7, ""),
        (50, 2400, 0, "no layer fits in the 0.0 GiB free on cuda:0"),
    ],
)
def test_auto_with_memory_that_is_not_told(free, total, layers, note):
    plan = plan_layers(sizes(), "auto", 0, [gpu(free=free, total=total)], host=HOST)
    assert plan.layers_gpu == layers
    assert "; ".join(plan.notes) == note


def test_a_number_of_layers_is_taken_at_its_word():
    plan = plan_layers(sizes(kv=0.1), 12, 1000, [gpu(free=1024, total=2048)], host=HOST)
    assert plan.layers_gpu == 12
    assert plan.notes == ("2.3 GiB may not fit in the 1.0 GiB free on cuda:0",)
    assert plan_layers(sizes(), 12, 0, [gpu()], host=HOST).notes == ()  # nothing is known


# -- several devices --

TWO = [gpu(0, free=8192), gpu(1, free=8192)]


@pytest.mark.parametrize(
    ("devices", "ngl", "options", "expected"),
    [
        (TWO, 16, {}, f"0-7 cuda:0 | 8-15 cuda:1 | {CPU}"),
        (TWO, 8, {}, f"0-3 cuda:0 | 4-7 cuda:1 | 8-15 cpu:0 | {CPU}"),
        (TWO, 1, {}, f"0-0 cuda:0 | 1-15 cpu:0 | {CPU}"),
        (TWO, 999, {}, "0-7 cuda:0 | 8-15 cuda:1 | embed cuda:0, head cuda:1"),
        (TWO, "auto", {}, "0-7 cuda:0 | 8-15 cuda:1 | embed cuda:0, head cuda:1"),
        (TWO, 16, {"tensor_split": (3, 1)}, f"0-11 cuda:0 | 12-15 cuda:1 | {CPU}"),
        (TWO, 16, {"tensor_split": (0, 1)}, f"0-15 cuda:1 | {CPU}"),
        (TWO, 16, {"tensor_split": (1,)}, f"0-15 cuda:0 | {CPU}"),
        (TWO, 16, {"tensor_split": (1, 0)}, f"0-15 cuda:0 | {CPU}"),
        (TWO, 16, {"tensor_split": (0, 0)}, f"0-7 cuda:0 | 8-15 cuda:1 | {CPU}"),
        (TWO, "auto", {"tensor_split": (3, 1)}, "0-12 cuda:0 | 13-15 cuda:1 | embed cuda:0, head cuda:1"),
        (TWO, 16, {"main_gpu": 1}, f"0-15 cuda:1 | {CPU}"),
        (TWO, 999, {"main_gpu": 0}, "0-15 cuda:0 | embed cuda:0, head cuda:0"),
        ([gpu(0, free=3000), gpu(1, free=9000)], 16, {}, f"0-3 cuda:0 | 4-15 cuda:1 | {CPU}"),
        ([gpu(0), gpu(1)], 16, {}, f"0-7 cuda:0 | 8-15 cuda:1 | {CPU}"),  # nothing is known: equal shares
        ([gpu(0), gpu(1, free=9000)], 16, {}, f"0-15 cuda:1 | {CPU}"),
        (
            [gpu(i, free=8192) for i in range(4)],
            4,
            {},
            f"0-0 cuda:0 | 1-1 cuda:1 | 2-2 cuda:2 | 3-3 cuda:3 | 4-15 cpu:0 | {CPU}",
        ),
        # by shares block 5 would not fit on the first; filling one after the other, all do
        ([gpu(0, free=990), gpu(1, free=1510)], "auto", {}, "0-4 cuda:0 | 5-15 cuda:1 | embed cuda:0, head cuda:1"),
        # each holds less than the model, both together less too
        ([gpu(0, free=600), gpu(1, free=600)], "auto", {}, f"0-4 cuda:0 | 5-9 cuda:1 | 10-15 cpu:0 | {CPU}"),
        ([gpu(0, free=600), gpu(1)], "auto", {}, f"0-4 cuda:0 | 5-15 cpu:0 | {CPU}"),
        ([], 0, {}, f"0-15 cpu:0 | {CPU}"),
        ([], 999, {}, f"0-15 cpu:0 | {CPU}"),
        ([], "auto", {"tensor_split": (1, 2), "main_gpu": 3}, f"0-15 cpu:0 | {CPU}"),
    ],
)
def test_layers_are_split_over_devices(devices, ngl, options, expected):
    plan = plan_layers(
        sizes(embedding=30, head=30) if ngl != "auto" else sizes(), ngl, 0, devices, host=HOST, **options
    )
    check(plan, 16)
    assert places(plan) == expected


def test_a_tied_embedding_counts_once_together_and_twice_apart():
    model = sizes(tied=True)
    together = plan_layers(model, 999, 0, [BIG], host=HOST)
    assert together.nbytes(BIG) == (1600 + 300) * MIB
    apart = plan_layers(model, 999, 0, TWO, host=HOST)
    assert [apart.nbytes(d) for d in TWO] == [(800 + 300) * MIB] * 2
    on_host = plan_layers(model, 8, 0, [BIG], host=HOST)
    assert on_host.nbytes(HOST) == (800 + 300) * MIB
    untied = plan_layers(sizes(), 999, 0, [BIG], host=HOST)
    assert untied.nbytes(BIG) == (1600 + 300 + 250) * MIB


@pytest.mark.parametrize(
    ("ngl", "options", "message"),
    [
        (-1, {}, "-ngl -1 is not a number of layers"),
        (1, {"main_gpu": 2}, "--main-gpu 2: 2 devices found, counted from 0"),
        (1, {"main_gpu": -1}, "--main-gpu -1"),
        (1, {"main_gpu": 1, "tensor_split": (1, 1)}, "--main-gpu takes one device, --tensor-split several"),
        (1, {"tensor_split": (1, 1, 1)}, "--tensor-split has 3 shares for 2 devices"),
        (1, {"tensor_split": (1, -1)}, "--tensor-split 1,-1: a share is a number from 0 up"),
        (1, {"tensor_split": (float("nan"), 1)}, "--tensor-split nan,1"),
        (1, {"tensor_split": (float("inf"), 1)}, "--tensor-split inf,1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(ngl, options, message):
    with pytest.raises(UserError, match=message):
        plan_layers(sizes(), ngl, 0, TWO, host=HOST, **options)


@given(
    n=st.integers(1, 40),
    ngl=st.one_of(st.integers(0, 50), st.just("auto")),
    free=st.lists(st.integers(0, 4000), max_size=4),
    tied=st.booleans(),
    context=st.sampled_from([0, 100, 8192]),
)
@settings(max_examples=200, deadline=None)
def test_any_plan_covers_the_model_and_auto_fits(n, ngl, free, tied, context):
    devices = [gpu(i, free=mib) for i, mib in enumerate(free)]
    plan = plan_layers(sizes(n, tied=tied, kv=0.01, work=20), ngl, context, devices, host=HOST)
    check(plan, n)
    if ngl == "auto":
        for device in devices:
            assert plan.nbytes(device) <= device.free
    elif devices:
        assert plan.layers_gpu == min(ngl, n)


# -- what the user reads --


@pytest.mark.parametrize(
    ("devices", "ngl", "expected"),
    [
        (
            [DeviceInfo("opencl", 0, "Radeon RX 580", "amd", True, total=4 * GIB, free=3 * GIB)],
            12,
            "layers 0–11 of 16 on opencl:0 Radeon RX 580, 1.2 of 4.0 GiB; the rest on the CPU",
        ),
        ([gpu(free=8192)], 1, "layer 0 of 16 on cuda:0 card 0, 0.1 of 8.0 GiB; the rest on the CPU"),
        ([gpu()], 16, "layers 0–15 of 16 on cuda:0 card 0, 1.6 GiB; embedding and output head on the CPU"),
        ([BIG], 17, "layers 0–15 of 16 and the output head on cuda:0 card 0, 2.1 of 80.0 GiB"),
        (
            TWO,
            12,
            "layers 0–5 of 16 on cuda:0 card 0, 0.6 of 8.0 GiB; layers 6–11 on cuda:1 card 1, 0.6 of 8.0 GiB; "
            "the rest on the CPU",
        ),
        ([], 0, "all 16 layers on the CPU"),
        ([], 5, "all 16 layers on the CPU; -ngl 5 has no effect without a GPU"),
    ],
)
def test_a_plan_describes_itself(devices, ngl, expected):
    assert plan_layers(sizes(), ngl, 0, devices, host=HOST).describe() == expected


# -- after an allocation failed --


@pytest.mark.parametrize("devices", [[BIG], TWO, [gpu(0, free=500), gpu(1, free=3000)]])
@pytest.mark.parametrize("ngl", ["auto", 999, 16, 3])
@pytest.mark.parametrize("nbytes", [0, MIB, 250 * MIB, 50 * GIB])
@pytest.mark.parametrize("known", [False, True])
def test_retries_end_on_the_cpu(devices, ngl, nbytes, known):
    plan = plan_layers(sizes(), ngl, 0, devices, host=HOST)
    error = DeviceOutOfMemory("no memory", nbytes=nbytes)
    tries = 0
    while plan.layers_gpu:
        failed = next(s.device for s in plan.stages if s.device != HOST) if known else None
        following = plan.fewer(error, failed)
        check(following, 16)
        if failed and len(devices) > 1:  # what it gives up may go to the other one
            assert following.nbytes(failed) < plan.nbytes(failed)
        else:
            assert (following.layers_gpu, following.head_on != HOST) < (plan.layers_gpu, plan.head_on != HOST)
        plan, tries = following, tries + 1
    assert tries <= 17 * len(devices)
    with pytest.raises(DeviceOutOfMemory):
        plan.fewer(error)


def layers_on(plan):
    return {s.device.index: s.last - s.first for s in plan.stages if s.device != HOST}


def test_only_the_device_that_failed_gives_layers_up():
    devices = [gpu(0, free=800), gpu(1, free=800)]  # neither has room for what the other gives up
    plan = plan_layers(sizes(), 12, 0, devices, host=HOST)
    assert layers_on(plan) == {0: 6, 1: 6}
    for failed in devices:
        after = plan.fewer(DeviceOutOfMemory("", nbytes=150 * MIB, device=failed), failed)
        check(after, 16)
        kept = next(d for d in devices if d != failed)
        assert layers_on(after)[failed.index] == 4
        assert layers_on(after)[kept.index] >= 6


def test_what_a_full_device_gives_up_goes_where_there_is_room_and_never_back():
    small, large = gpu(0, free=1000), gpu(1, free=9000)
    plan = plan_layers(sizes(), 999, 0, [small, large], host=HOST, tensor_split=[1, 1])
    before = layers_on(plan)
    plan = plan.fewer(DeviceOutOfMemory("", nbytes=150 * MIB), small)
    after = layers_on(plan)
    assert after[0] < before[0]
    assert sum(after.values()) == 16
    assert plan.head_on == large  # the head stays on the GPUs with all the layers
    last = plan.fewer(DeviceOutOfMemory("", nbytes=150 * MIB), large)
    check(last, 16)
    assert layers_on(last)[0] <= after[0]
    assert last.nbytes(large) <= plan.nbytes(large) - 150 * MIB


@pytest.mark.parametrize(
    ("ngl", "nbytes", "layers", "head"),
    [
        (999, 250, 16, False),  # embedding and head make the room
        (16, 1, 14, False),  # an eighth, at least
        (16, 450, 11, False),
        (8, 0, 7, False),
        (1, 0, 0, False),
        (16, 10_000, 0, False),
    ],
)
def test_a_retry_leaves_what_was_missing(ngl, nbytes, layers, head):
    plan = plan_layers(sizes(), ngl, 0, [BIG], host=HOST).fewer(DeviceOutOfMemory("", nbytes=nbytes * MIB))
    assert (plan.layers_gpu, plan.head_on != HOST) == (layers, head)
