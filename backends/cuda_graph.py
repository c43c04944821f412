"""Decoding as CUDA graphs: the launches of a kept step are recorded once and replayed by one call.

Where the model is whole on the device, a graph goes from the tokens to the choice of the next ones.

A step of three sequences replays the graph of four, with one of its sequences twice. Knows no kernels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from .base import BackendError, DeviceOutOfMemory, Draw, Picked, Step, Whole
from .cuda_api import Api
from .cuda_inputs import StepInputs
from .cuda_launch import Launcher
from .cuda_ops import CudaOps
from .gpu_memory import GpuArray, lent
from .gpu_replay import CannotReplay, GpuReplay, KeptStep, bucket, most_words
from .gpu_step import StepLayout

T = TypeVar("T")
MOST_TOKENS = 64  # of a step that is worth a graph


class Recording:
    """A graph of the driver's, ready to be replayed; gone when nothing refers to it."""

    def __init__(self, runtime: Any, graph: int):
        self._runtime, self.handle = runtime, 0
        try:
            self.handle = runtime.graphInstantiate(graph)
        finally:
            runtime.graphDestroy(graph)

    def __del__(self) -> None:
        if self.handle:
            try:
                self._runtime.graphExecDestroy(self.handle)
            except Exception:  # the process ends, or the device is gone
                pass


class CudaGraphs(CudaOps, GpuReplay):
    """The part of the CUDA backend that replays. A subclass supplies CuPy's modules, the stream and `_guarded`."""

    _api: Api
    _stream: int
    _launcher: Launcher
    recording = False  # what is launched now goes into a graph
    replays = True

    @abstractmethod
    def _guarded(self, doing: str, call: Callable[[], T], nbytes: int = 0) -> T:
        """What `call` returns on this device, CUDA's failures as ours."""

    def close(self) -> None:
        if self._kept:
            with suppress(BackendError):  # a device that is gone has no graph that runs
                self._sync()
        super().close()

    def kept_tokens(self, t: int) -> int:
        return bucket(t, 1) if t <= MOST_TOKENS else 0

    def first_run(self, kept: KeptStep, step: Step) -> None:
        """Not recorded yet: a graph cannot hold what a first run does beside launching."""
        kept.y = kept.work(step)

    def next_run(self, kept: KeptStep, step: Step) -> None:
        recording = kept.launches or self._capture(kept, step)
        self._guarded("a graph", lambda: self._api.runtime.graphLaunch(recording.handle, self._stream))
        self.launches += 1

    def answer(self, whole: Whole, step: Step, draws: Sequence[Draw] | None) -> tuple[GpuArray, Picked | None]:
        """A replayed step is one copy up, one launch, and the tokens' copy down. The device keeps them for the next."""
        t, n = self.replayed_tokens(whole.stage, step), len(step.tokens)
        tokens: Any = step.tokens

        def begin(layout: StepLayout) -> KeptStep:
            inputs = StepInputs(self.empty((StepInputs.nbytes(t, most_words(layout)),), np.uint8), t)

            def work(step: Step) -> GpuArray:
                logits = self._logits(whole, inputs.tokens, step)
                if draws is not None:
                    self.draw_tokens(logits, inputs.settings, inputs.tokens)
                return lent(logits)  # so that all kept steps have theirs in the same memory

            return KeptStep(work, inputs.words, inputs)

        def fill(kept: KeptStep, layout: StepLayout) -> None:
            inputs: StepInputs = kept.given
            there = isinstance(tokens, GpuArray)
            if there and tokens.block is not inputs.memory.block:
                self.copy_filled_up(tokens, inputs.tokens)
            self._copy_in(*inputs.update(None if there else tokens, draws or (), layout))

        kept = self.replayed(("whole", draws is None), whole.stage, step, t, begin, fill) if t else None
        if kept is None:
            logits = self._logits(whole, tokens, step)
            return logits, None if draws is None else self.pick(logits, draws)
        logits = GpuArray(kept.y.block, (n, kept.y.shape[1]))
        if draws is None:
            return logits, None
        picked = kept.given.first(n)
        return logits, Picked(self.fetch(picked), picked)

    def _logits(self, whole: Whole, tokens: Any, step: Step) -> GpuArray:
        x = self.run_plainly(whole.stage, self.embed(whole.table, tokens), step)
        return self.head(x, whole.norm, whole.output)

    def _capture(self, kept: KeptStep, step: Step) -> Recording:
        """Raises CannotReplay; the step's launches have then not been made."""
        runtime, launches = self._api.runtime, self.launches
        del kept.y  # the recording takes its memory again
        with self.kept_memory():
            self._guarded("recording", lambda: runtime.streamBeginCapture(self._stream))
            self.recording = True
            failed: BackendError | None = None
            try:
                kept.y = kept.work(step)
            except BackendError as error:
                failed = error
            finally:
                self.recording, self.launches = False, launches
                try:
                    graph = self._guarded("recording", lambda: runtime.streamEndCapture(self._stream))
                except BackendError as error:
                    graph, failed = 0, failed or error
        if failed:
            if graph:
                runtime.graphDestroy(graph)
            raise self._without_recording(failed)
        try:
            kept.launches = self._guarded("recording", lambda: Recording(runtime, graph))
        except DeviceOutOfMemory:
            raise
        except BackendError as error:
            raise self._without_recording(error) from None
        return kept.launches

    def _without_recording(self, error: BackendError) -> CannotReplay:
        """Where the driver refused what was recorded, the next try is without early starts, and the last one."""
        if isinstance(error, CannotReplay):
            return error
        self.replays, self._launcher.dependent = self._launcher.dependent, False
        return CannotReplay(str(error))

    def copy_rows(self, source: GpuArray, target: GpuArray, n: int, *, to: int = 0) -> None:
        runtime, nbytes = self._api.runtime, source.nbytes // len(source)
        at, kind = target.handle.ptr + to * nbytes, runtime.memcpyDeviceToDevice
        self._guarded(
            "copying on the device",
            lambda: runtime.memcpyAsync(at, source.handle.ptr, n * nbytes, kind, self._stream),
        )

    def _refuse_while_recording(self, what: str) -> None:
        """Called before what a graph cannot hold. A first run has done it, so a recording does not come here."""
        if self.recording:
            raise CannotReplay(f"{self.device}: {what} while a graph is recorded")
