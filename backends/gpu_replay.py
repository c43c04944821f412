"""Decoding steps that a GPU runs again: what was launched for one is kept, and made again in little host time.

What is kept is of one stage, or of a whole model from its tokens to its logits, of one cache, and of one bucket of
tokens and context lengths. It reads what changes from step to step, positions, cache rows and lengths, from memory of
its own, which each step fills with one copy. Kept launches hold addresses, so everything in between lies in a pool that
only they use. Knows no driver.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .base import BackendError, DeviceInfo, DeviceOutOfMemory, KVStore, Stage, Step, Weight
from .blas import VendorBlas
from .gpu import GpuBackend
from .gpu_memory import GpuArray, Pool
from .gpu_programs import Tuning
from .gpu_step import StepLayout
from .kernel_settings import KernelSettings

SHORTEST = 256  # cache rows of the first bucket; each further one is twice as long
KEPT = 48  # steps kept for one cache: the least recently used goes first


class CannotReplay(BackendError):
    """A step's launches cannot be kept."""


@dataclass
class KeptStep:
    """`work` launches a step in memory that stays, and gives its output `y`; `launches`: as the driver replays them.

    It reads `words`, the step's data, and `given`, the rest of what each step fills in.
    """

    work: Callable[[Step], GpuArray]
    words: GpuArray
    given: Any
    y: GpuArray = field(init=False)
    launches: Any = None


class GpuReplay(GpuBackend):
    """A subclass sets `replays` where its driver can, and says how."""

    replays = False

    def __init__(self, device: DeviceInfo, tuning: Tuning, kernels: KernelSettings | None = None):
        super().__init__(device, tuning, kernels)
        self._kept_pool = Pool(self._alloc)
        self._for_keeping = False  # what is launched now lies in that pool
        self._kept: weakref.WeakKeyDictionary[KVStore, OrderedDict[Any, KeptStep]] = weakref.WeakKeyDictionary()

    # -- for the driver --

    @abstractmethod
    def kept_tokens(self, t: int) -> int:
        """How many tokens the kept step has that serves a step of t; 0 where none does."""

    @abstractmethod
    def first_run(self, kept: KeptStep, step: Step) -> None:
        """Runs a step's work launch by launch; sets `kept.y`, and `kept.launches` where they are known already."""

    @abstractmethod
    def next_run(self, kept: KeptStep, step: Step) -> None:
        """Runs a step whose input lies in `kept`; makes `kept.launches` where there are none. Raises CannotReplay."""

    @abstractmethod
    def copy_rows(self, source: GpuArray, target: GpuArray, n: int, *, to: int = 0) -> None:
        """Queues a copy of the first n rows of `source` to rows `to` … of `target`."""

    # -- running --

    def run(self, stage: Stage, x: GpuArray, step: Step) -> GpuArray:
        t = self.replayed_tokens(stage, step)

        def begin(layout: StepLayout) -> KeptStep:
            own = self.empty((t, x.shape[1]))
            words = self.empty((most_words(layout),), np.int32)
            return KeptStep(lambda step: self.run_plainly(stage, own, step), words, own)

        def fill(kept: KeptStep, layout: StepLayout) -> None:
            self._copy_in(kept.words.handle, layout.words)
            self.copy_filled_up(x, kept.given)

        kept = self.replayed("stage", stage, step, t, begin, fill) if t else None
        return self._copy_of(kept.y, len(x)) if kept else self.run_plainly(stage, x, step)

    def replayed_tokens(self, stage: Stage, step: Step) -> int:
        """How many tokens the kept step has that serves this one; 0 where none does."""
        return self.kept_tokens(len(step.tokens)) if self.replays and stage.blocks and is_decode(step) else 0

    def replayed(
        self,
        kind: Hashable,
        stage: Stage,
        step: Step,
        t: int,
        begin: Callable[[StepLayout], KeptStep],
        fill: Callable[[KeptStep, StepLayout], None],
    ) -> KeptStep | None:
        """Runs a step by the kept one of t tokens, which `begin` makes and `fill` brings up to date.

        None: it cannot be kept, and has not run.
        """
        filled = filled_up(step, t)
        layout = StepLayout(filled, self._ropes)
        layout.longest = bucket(layout.longest, SHORTEST)
        steps = self._kept.setdefault(step.kv[stage.first_layer], OrderedDict())
        key = (id(stage), t, layout.longest, tuple(map(id, self._ropes)), kind)
        try:
            kept = steps.get(key)
            if kept is None:
                return self._first(steps, key, begin(layout), fill, filled, layout)
            steps.move_to_end(key)
            fill(kept, layout)
            filled.scratch[self] = (layout, kept.words)
            self.next_run(kept, filled)
            return kept
        except CannotReplay:
            steps.pop(key, None)
        except DeviceOutOfMemory:
            steps.clear()
            self.replays = False  # what one launch after the other needs may still fit
        step.scratch.pop(self, None)  # it is of the kept step's memory
        return None

    def run_plainly(self, stage: Stage, x: GpuArray, step: Step) -> GpuArray:
        """One launch after the other, none of them kept."""
        return super().run(stage, x, step)

    def close(self) -> None:
        self._kept.clear()
        self._kept_pool.close()
        super().close()

    def _first(
        self,
        steps: OrderedDict[Any, KeptStep],
        key: Hashable,
        kept: KeptStep,
        fill: Callable[[KeptStep, StepLayout], None],
        step: Step,
        layout: StepLayout,
    ) -> KeptStep:
        """Runs the step in the memory that it will be replayed in: kernels are built, memory is taken."""
        ropes = self._ropes
        fill(kept, layout)
        step.scratch[self] = (layout, kept.words)
        with self.kept_memory():
            self.first_run(kept, step)
        if self._ropes is ropes:  # else the layout is another from now on
            steps[key] = kept
            if len(steps) > KEPT:
                self._sync()  # the one that goes may still run
                steps.popitem(last=False)
        return kept

    def copy_filled_up(self, source: GpuArray, target: GpuArray) -> None:
        """All rows of `source`, then its first ones again, to the rows of `target`."""
        self.copy_rows(source, target, len(source))
        if len(target) > len(source):
            self.copy_rows(source, target, len(target) - len(source), to=len(source))

    def _copy_of(self, y: GpuArray, t: int) -> GpuArray:
        """The first rows, where the next replay does not touch them."""
        copy = self.empty((t, y.shape[1]))
        self.copy_rows(y, copy, t)
        return copy

    @contextmanager
    def kept_memory(self) -> Iterator[None]:
        """While this holds, memory comes from the pool of what is kept."""
        usual, self.pool, self._for_keeping = self.pool, self._kept_pool, True
        try:
            yield
        finally:
            self.pool, self._for_keeping = usual, False

    def by_vendor(self, w: Weight) -> VendorBlas | None:
        """A vendor's library works in memory of its own, which a kept step must not hold."""
        return None if self._for_keeping else super().by_vendor(w)


def most_words(layout: StepLayout) -> int:
    """Of the steps of a layout's bucket."""
    return layout.words.size + layout.n_tokens * layout.longest


def is_decode(step: Step) -> bool:
    """Whether each sequence has one token in the step and wants its logits."""
    t = len(step.tokens)
    return t > 0 and len(step.spans) == t and len(step.outputs) == t


def filled_up(step: Step, t: int) -> Step:
    """A decoding step of t tokens: those of `step`, then its first ones again, which write what they wrote before."""
    if t == len(step.rows):
        return step
    chosen = np.arange(t) % len(step.rows)
    spans = tuple(replace(step.spans[i], start=at) for at, i in enumerate(chosen))
    everywhere = np.arange(t, dtype=np.int32)
    return Step(everywhere, step.positions[chosen], step.rows[chosen], spans, everywhere, step.kv)


def bucket(n: int, smallest: int) -> int:
    """The largest number of n's bucket: the smallest one's doubles."""
    while smallest < n:
        smallest *= 2
    return smallest
