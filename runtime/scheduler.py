"""Decides which layers live on which device. Pure: sizes and devices in, a plan out; loads and opens nothing.

The first `ngl` blocks go to the GPUs in device order, the rest stay on the host. One more than there are blocks adds
the output head and the token embedding, so that only token ids go up and only logits come down. With "auto" as many
go as fit, after the cache of the whole context, work buffers and a margin.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

from ..backends.base import DeviceInfo
from ..backends.errors import DeviceOutOfMemory
from .errors import UserError

GIB = 1 << 30


@dataclass(frozen=True)
class ModelSizes:
    """Bytes of a model's parts. When `tied`, `embedding` is the head's matrix too and `head` is not counted."""

    blocks: tuple[int, ...]
    embedding: int
    head: int
    tied: bool
    kv_per_token: tuple[int, ...]  # of each block
    work: int = 0  # activations and buffers of one step, on each device that has layers


@dataclass(frozen=True)
class PlannedStage:
    """Blocks [first, last) on one device."""

    device: DeviceInfo
    first: int
    last: int


@dataclass(frozen=True)
class PlanInputs:
    """What a plan was made from, so that it can be made again with less."""

    sizes: ModelSizes
    context: int  # tokens
    devices: tuple[DeviceInfo, ...]  # GPUs that take layers
    shares: tuple[float, ...]  # of the layers, for each device
    host: DeviceInfo
    full: tuple[DeviceInfo, ...] = ()  # an allocation failed there: they take no more than they have


@dataclass(frozen=True)
class Plan:
    """Where every layer goes. `stages` cover all blocks in order; no two neighbours are on the same device."""

    stages: tuple[PlannedStage, ...]
    embed_on: DeviceInfo
    head_on: DeviceInfo
    layers_gpu: int
    inputs: PlanInputs = field(repr=False)
    notes: tuple[str, ...] = ()  # one line each: what the user should know beside the placement

    @property
    def n_layers(self) -> int:
        return len(self.inputs.sizes.blocks)

    def nbytes(self, device: DeviceInfo) -> int:
        """Bytes planned on a device: weights, cache of the whole context and work buffers."""
        sizes, context = self.inputs.sizes, self.inputs.context
        total = sum(_block_nbytes(sizes, context, s.first, s.last) for s in self.stages if s.device == device)
        if total or device in (self.embed_on, self.head_on):
            total += sizes.work
        if device == self.embed_on:
            total += sizes.embedding
        if device == self.head_on and not (sizes.tied and device == self.embed_on):
            total += sizes.embedding if sizes.tied else sizes.head
        return total

    def describe(self) -> str:
        """One line: `layers 0–11 of 16 on opencl:0 Radeon RX 580, 0.8 of 4.0 GiB; the rest on the CPU`."""
        n, host = self.n_layers, self.inputs.host
        parts = []
        for stage in self.stages:
            device = stage.device
            if device == host:
                continue
            what = _layers(stage) + (f" of {n}" if not parts else "")
            if device == self.head_on and stage.last == n:
                what += " and the output head"
            size = f"{self.nbytes(device) / GIB:.1f}"
            memory = device.total or device.free
            size += f" of {memory / GIB:.1f} GiB" if memory else " GiB"
            parts.append(f"{what} on {device} {device.name}, {size}")
        if not parts:
            parts.append(f"all {n} layers on the CPU")
        elif self.layers_gpu < n:
            parts.append("the rest on the CPU")
        elif self.head_on == host:
            parts.append("embedding and output head on the CPU")
        return "; ".join([*parts, *self.notes])

    def fewer(self, error: DeviceOutOfMemory, failed: DeviceInfo | None = None) -> Plan:
        """The next plan to try after an allocation failed on device `failed` (None: on one of them).

        Each try takes at least one layer off, and enough to leave the bytes asked for or an eighth of what was
        planned there unused, so that a few tries find the limit. Ends with everything on the host; when that is this
        plan already, `error` is raised.
        """
        if not self.layers_gpu:
            raise error
        if failed and len(self.inputs.devices) > 1:
            return self._relieved(error, failed)
        watched = [failed] if failed else [stage.device for stage in self.stages if stage.device != self.inputs.host]
        units = self.layers_gpu + (self.head_on != self.inputs.host)
        for fewer in range(units - 1, -1, -1):
            plan = _place(self.inputs, fewer, _by_shares(self.inputs, fewer))
            if all(plan.nbytes(d) <= self.nbytes(d) - max(error.nbytes, self.nbytes(d) // 8) for d in watched):
                return plan
        return _place(self.inputs, 0, [])

    def _relieved(self, error: DeviceOutOfMemory, failed: DeviceInfo) -> Plan:
        """The plan with layers taken off `failed` only: to other devices where they fit, the rest to the host."""
        inputs = replace(self.inputs, full=(*self.inputs.full, failed))
        counts = {d: sum(s.last - s.first for s in self.stages if s.device == d) for d in inputs.devices}
        limit = self.nbytes(failed) - max(error.nbytes, self.nbytes(failed) // 8)
        with_head = self.head_on != inputs.host
        some = range(counts[failed] + 1)
        tries = [(taken, taken, True) for taken in some if with_head]  # everything stays on GPUs
        tries += [(taken, moved, False) for taken in some for moved in range(taken, -1, -1)]
        for taken, moved, head in tries:
            plan = _spread(inputs, {**counts, failed: counts[failed] - taken}, moved, head)
            if plan is not None and plan.nbytes(failed) <= limit:
                return plan
        return _place(inputs, 0, [])


def plan_layers(
    sizes: ModelSizes,
    ngl: int | Literal["auto", "all"],
    context: int,
    devices: Sequence[DeviceInfo],
    *,
    host: DeviceInfo,
    tensor_split: Sequence[float] | None = None,
    main_gpu: int | None = None,
    margin: int | None = None,
) -> Plan:
    """Places the blocks of a model.

    `context` is the number of cache rows; `tensor_split` gives each device's share of the layers (default: by free
    memory), `main_gpu` takes one device only. `margin` is what stays free on each device with "auto": by default a
    tenth of what is free, but no more than 1 GiB. A device that tells its total memory only is taken to have 80 % of
    it free; one that tells neither gets no layers from "auto". A number of layers is taken at its word, whether it
    seems to fit or not; `notes` then says so. Raises UserError for numbers that make no sense.
    """
    n = len(sizes.blocks)
    assert len(sizes.kv_per_token) == n > 0
    if isinstance(ngl, int) and ngl < 0:
        raise UserError(f"-ngl {ngl} is not a number of layers", hint="give 0 or more, auto or all")
    inputs = _inputs(sizes, context, devices, host, tensor_split, main_gpu)
    budgets = [_free(d) - _margin(_free(d), margin) for d in inputs.devices]
    if ngl != "auto":
        units = n + 1 if ngl == "all" else min(ngl, n + 1)
        plan = _place(inputs, units, _by_shares(inputs, units))
        return replace(plan, notes=_warnings(plan, ngl))
    for units in range(n + 1, 0, -1):
        tries = [_by_shares(inputs, units)]
        if tensor_split is None or not any(tensor_split):
            tries.append(_by_filling(inputs, units, budgets))
        for homes in tries:
            plan = _place(inputs, units, homes)
            fits = all(plan.nbytes(d) <= b for d, b in zip(inputs.devices, budgets, strict=True) if d in homes)
            if len(homes) == min(units, n) and fits:
                return replace(plan, notes=_left_out(plan))
    plan = _place(inputs, 0, [])
    return replace(plan, notes=_left_out(plan))


# ---------------------------------------------------------------------------------------------------------------
# Inputs


def _inputs(
    sizes: ModelSizes,
    context: int,
    devices: Sequence[DeviceInfo],
    host: DeviceInfo,
    tensor_split: Sequence[float] | None,
    main_gpu: int | None,
) -> PlanInputs:
    found = f"{len(devices)} device{'s' * (len(devices) != 1)}"
    split = tuple(tensor_split or ())
    if not devices:
        return PlanInputs(sizes, context, (), (), host)
    if len(split) > len(devices):
        raise UserError(f"--tensor-split has {len(split)} shares for {found}")
    if not all(share >= 0 and math.isfinite(share) for share in split):
        raise UserError(f"--tensor-split {','.join(f'{s:g}' for s in split)}: a share is a number from 0 up")
    if main_gpu is not None:
        if not 0 <= main_gpu < len(devices):
            raise UserError(f"--main-gpu {main_gpu}: {found} found, counted from 0")
        if any(split):
            raise UserError("--main-gpu takes one device, --tensor-split several", hint="give one of them")
        return PlanInputs(sizes, context, (devices[main_gpu],), (1.0,), host)
    if any(split):
        shares = split + (0.0,) * (len(devices) - len(split))
    else:
        shares = tuple(float(_free(d)) for d in devices)
        if not any(shares):
            shares = (1.0,) * len(devices)
    return PlanInputs(sizes, context, tuple(devices), shares, host)


def _free(device: DeviceInfo) -> int:
    """Bytes taken to be free on a device; 0 when it tells nothing."""
    return device.free or device.total * 4 // 5


def _margin(free: int, margin: int | None) -> int:
    return min(GIB, free // 10) if margin is None else margin


def _left_out(plan: Plan) -> tuple[str, ...]:
    """Why "auto" gave devices nothing."""
    used = {stage.device for stage in plan.stages}
    left_out = [device for device in plan.inputs.devices if device not in used]
    notes = [f"free memory of {d} is unknown: give -ngl a number to use it" for d in left_out if not _free(d)]
    if not plan.layers_gpu:
        notes += [f"no layer fits in the {_free(d) / GIB:.1f} GiB free on {d}" for d in left_out if _free(d)]
    return tuple(notes)


def _warnings(plan: Plan, ngl: int | str) -> tuple[str, ...]:
    """What to say about a number of layers that was asked for."""
    inputs = plan.inputs
    if not inputs.devices:
        return (f"-ngl {ngl} has no effect without a GPU",) if ngl else ()
    used = {stage.device for stage in plan.stages}
    return tuple(
        f"{plan.nbytes(d) / GIB:.1f} GiB may not fit in the {_free(d) / GIB:.1f} GiB free on {d}"
        for d in inputs.devices
        if d in used and 0 < _free(d) < plan.nbytes(d)
    )


# ---------------------------------------------------------------------------------------------------------------
# Placement. `units` counts blocks from the first on, and embedding with head as one more behind the last;
# `homes` [min(units, n)] is the device of each of these blocks.


def _block_nbytes(sizes: ModelSizes, context: int, first: int, last: int) -> int:
    return sum(sizes.blocks[first:last]) + context * sum(sizes.kv_per_token[first:last])


def _loads(inputs: PlanInputs, units: int) -> list[int]:
    """Bytes each GPU block brings to its device: the first carries the embedding, the last the head."""
    sizes, n = inputs.sizes, len(inputs.sizes.blocks)
    loads = [_block_nbytes(sizes, inputs.context, i, i + 1) for i in range(min(units, n))]
    if units > n:
        loads[0] += sizes.embedding
        loads[-1] += sizes.embedding if sizes.tied else sizes.head
    return loads


def _by_shares(inputs: PlanInputs, units: int) -> list[DeviceInfo]:
    """Splits the bytes of the blocks by the devices' shares; a block goes where its middle falls."""
    devices = [device for device, share in zip(inputs.devices, inputs.shares, strict=True) if share]
    loads, whole = _loads(inputs, units), sum(inputs.shares)
    ends = [end / whole for end in accumulate(share for share in inputs.shares if share)]
    homes, before, total = [], 0, sum(loads) or 1
    for load in loads if devices else ():
        middle = (before + load / 2) / total
        homes.append(devices[min(bisect_left(ends, middle), len(devices) - 1)])  # rounding: the last end may be 0.99…
        before += load
    return homes


def _by_filling(inputs: PlanInputs, units: int, budgets: Sequence[int]) -> list[DeviceInfo]:
    """Fills one device after the other; fewer homes than blocks when they do not fit."""
    homes: list[DeviceInfo] = []
    sizes, loads = inputs.sizes, _loads(inputs, units)
    twice = sizes.embedding if sizes.tied and units > len(sizes.blocks) else 0  # the embedding, as head again
    for i, (device, budget) in enumerate(zip(inputs.devices, budgets, strict=True)):
        if i == 0 and sum(loads) - twice + sizes.work <= budget:
            return [device] * len(loads)
        room = budget - sizes.work
        while len(homes) < len(loads) and loads[len(homes)] <= room:
            room -= loads[len(homes)]
            homes.append(device)
    return homes


def _spread(inputs: PlanInputs, counts: dict[DeviceInfo, int], extra: int, with_head: bool) -> Plan | None:
    """So many blocks on each device, and `extra` more on those with the most room; None where they do not fit."""

    def placed(each: dict[DeviceInfo, int]) -> Plan:
        homes = [device for device in inputs.devices for _ in range(each[device])]
        return _place(inputs, len(homes) + with_head, homes)

    for _ in range(extra):
        room = {}
        for device in inputs.devices:
            more = {**counts, device: counts[device] + 1}
            room[device] = _free(device) - _margin(_free(device), None) - placed(more).nbytes(device)
        open_to_more = [d for d in inputs.devices if d not in inputs.full and counts[d] and room[d] >= 0]
        if not open_to_more:
            return None
        best = max(open_to_more, key=lambda device: room[device])
        counts = {**counts, best: counts[best] + 1}
    return placed(counts)


def _place(inputs: PlanInputs, units: int, homes: Sequence[DeviceInfo]) -> Plan:
    n, host = len(inputs.sizes.blocks), inputs.host
    everywhere = [*homes, *[host] * (n - len(homes))]
    stages: list[PlannedStage] = []
    for i, device in enumerate(everywhere):
        if stages and stages[-1].device == device:
            stages[-1] = replace(stages[-1], last=i + 1)
        else:
            stages.append(PlannedStage(device, i, i + 1))
    on_device = units > n and bool(homes)
    embed_on, head_on = (everywhere[0], everywhere[-1]) if on_device else (host, host)
    return Plan(tuple(stages), embed_on, head_on, len(homes), inputs)


def _layers(stage: PlannedStage) -> str:
    if stage.last - stage.first == 1:
        return f"layer {stage.first}"
    return f"layers {stage.first}–{stage.last - 1}"
