"""Decoding as CUDA graphs: the launches of a stage are recorded once and replayed by one call.

A graph is of one stage, cache, and bucket of tokens and context lengths: a step of three sequences replays the graph of
four, with one of its sequences twice. It reads what changes from step to
step, positions, cache rows and lengths, from memory of its own, which each step fills with one copy. Recorded kernels
hold addresses, so everything in between lies in a pool that only graphs use. Knows no kernels.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from .base import BackendError, DeviceInfo, DeviceOutOfMemory, KVStore, Stage, Step, Weight
from .blas import VendorBlas
from .cuda_api import Api
from .cuda_launch import Launcher
from .cuda_ops import CudaOps
from .gpu_memory import GpuArray, Pool
from .gpu_programs import Tuning
from .gpu_step import StepLayout
from .kernel_settings import KernelSettings

T = TypeVar("T")
MOST_TOKENS = 64  # of a step that is worth a graph
SHORTEST = 256  # cache rows of the first bucket; each further one is twice as long
GRAPHS = 48  # kept for one cache: the least recently used goes first


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


class CannotRecord(BackendError):
    """A step's launches cannot become a graph."""


@dataclass
class DecodeGraph:
    """`words`, `x`: what each step fills in; `y`: what it leaves. Without a recording it has only been rehearsed."""

    stage: Stage
    words: GpuArray
    x: GpuArray
    y: GpuArray
    recording: Recording | None = None


class CudaGraphs(CudaOps):
    """The part of the CUDA backend that replays. A subclass supplies CuPy's modules, the stream and `_guarded`."""

    _api: Api
    _stream: int
    _launcher: Launcher
    recording = False  # what is launched now goes into a graph
    use_graphs = True

    def __init__(self, device: DeviceInfo, tuning: Tuning, kernels: KernelSettings | None = None):
        super().__init__(device, tuning, kernels)
        self._graph_pool = Pool(self._alloc)
        self._in_graph = False  # also during a rehearsal
        self._graphs: weakref.WeakKeyDictionary[KVStore, OrderedDict[Any, DecodeGraph]] = weakref.WeakKeyDictionary()

    @abstractmethod
    def _guarded(self, doing: str, call: Callable[[], T], nbytes: int = 0) -> T:
        """What `call` returns on this device, CUDA's failures as ours."""

    def run(self, stage: Stage, x: GpuArray, step: Step) -> GpuArray:
        if not self.use_graphs or not stage.blocks or not is_decode(step):
            return super().run(stage, x, step)
        filled = filled_up(step, bucket(len(x), 1))
        layout = StepLayout(filled, self._ropes)
        layout.longest = bucket(layout.longest, SHORTEST)
        graphs = self._graphs.setdefault(step.kv[stage.first_layer], OrderedDict())
        key = (id(stage), len(filled.rows), layout.longest, tuple(map(id, self._ropes)))
        decode = graphs.get(key)
        try:
            if decode is None:
                return self._rehearse(graphs, key, stage, x, filled, layout)
            graphs.move_to_end(key)
            return self._replay(decode, x, filled, layout)
        except CannotRecord:
            del graphs[key]
        except DeviceOutOfMemory:
            graphs.clear()
            self.use_graphs = False  # what one launch after the other needs may still fit
        step.scratch.pop(self, None)  # it is of the graph's memory
        return super().run(stage, x, step)

    def close(self) -> None:
        if self._graphs:
            with suppress(BackendError):  # a device that is gone has no graph that runs
                self._sync()
        self._graphs.clear()
        self._graph_pool.close()
        super().close()

    def _rehearse(
        self, graphs: OrderedDict[Any, DecodeGraph], key: Any, stage: Stage, x: GpuArray, step: Step, layout: StepLayout
    ) -> GpuArray:
        """Runs the step launch by launch, in the memory its graph will use: kernels are built, memory is taken."""
        ropes, t = self._ropes, len(step.rows)
        words = self.empty((layout.words.size + t * layout.longest,), np.int32)
        own = self.empty((t, x.shape[1]))
        self._fill(words, own, x, step, layout)
        with self._graph_memory():
            y = super().run(stage, own, step)
        if self._ropes is ropes:  # else the layout is another from now on
            graphs[key] = DecodeGraph(stage, words, own, y)
            while len(graphs) > GRAPHS:
                self._sync()  # the one that goes may still run
                graphs.popitem(last=False)
        return self._kept(y, len(x))

    def _replay(self, decode: DecodeGraph, x: GpuArray, step: Step, layout: StepLayout) -> GpuArray:
        self._fill(decode.words, decode.x, x, step, layout)
        recording = decode.recording or self._capture(decode, step)
        self._guarded("a graph", lambda: self._api.runtime.graphLaunch(recording.handle, self._stream))
        self.launches += 1
        return self._kept(decode.y, len(x))

    def _capture(self, decode: DecodeGraph, step: Step) -> Recording:
        """Raises CannotRecord; the step's launches have then not been made."""
        runtime, launches = self._api.runtime, self.launches
        del decode.y  # the recording takes its memory again
        with self._graph_memory():
            self._guarded("recording", lambda: runtime.streamBeginCapture(self._stream))
            self.recording = True
            failed: BackendError | None = None
            try:
                decode.y = super().run(decode.stage, decode.x, step)
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
            decode.recording = self._guarded("recording", lambda: Recording(runtime, graph))
        except DeviceOutOfMemory:
            raise
        except BackendError as error:
            raise self._without_recording(error) from None
        return decode.recording

    def _without_recording(self, error: BackendError) -> CannotRecord:
        """Where the driver refused what was recorded, the next try is without early starts, and the last one."""
        if isinstance(error, CannotRecord):
            return error
        self.use_graphs, self._launcher.dependent = self._launcher.dependent, False
        return CannotRecord(str(error))

    def _fill(self, words: GpuArray, own: GpuArray, x: GpuArray, step: Step, layout: StepLayout) -> None:
        self._copy_in(words.handle, layout.words)
        self._copy_rows(x, own, len(x))
        if len(own) > len(x):
            self._copy_rows(x, own, len(own) - len(x), to=len(x))
        step.scratch[self] = (layout, words)

    def _kept(self, y: GpuArray, t: int) -> GpuArray:
        """A copy of the first rows that the next replay does not touch."""
        kept = self.empty((t, y.shape[1]))
        self._copy_rows(y, kept, t)
        return kept

    def _copy_rows(self, source: GpuArray, target: GpuArray, n: int, *, to: int = 0) -> None:
        """The first n rows of `source` to rows `to` … of `target`."""
        runtime, nbytes = self._api.runtime, source.nbytes // len(source)
        at, kind = target.handle.ptr + to * nbytes, runtime.memcpyDeviceToDevice
        self._guarded(
            "copying on the device",
            lambda: runtime.memcpyAsync(at, source.handle.ptr, n * nbytes, kind, self._stream),
        )

    def _refuse_while_recording(self, what: str) -> None:
        """Called before what a graph cannot hold. A rehearsal has done it, so a recording does not come here."""
        if self.recording:
            raise CannotRecord(f"{self.device}: {what} while a graph is recorded")

    @contextmanager
    def _graph_memory(self) -> Iterator[None]:
        usual, self.pool, self._in_graph = self.pool, self._graph_pool, True
        try:
            yield
        finally:
            self.pool, self._in_graph = usual, False

    def by_vendor(self, w: Weight) -> VendorBlas | None:
        """A vendor's library works in memory of its own, which a graph must not hold."""
        return None if self._in_graph else super().by_vendor(w)


def is_decode(step: Step) -> bool:
    """Whether each sequence has one token in the step and wants its logits."""
    t = len(step.tokens)
    return 0 < t <= MOST_TOKENS and len(step.spans) == t and len(step.outputs) == t


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
