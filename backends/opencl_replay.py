"""Decoding on OpenCL: the launches of a stage are kept while its first step runs, and made again for later ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray

from .base import BackendError, Step
from .gpu_memory import GpuArray
from .gpu_replay import CannotReplay, GpuReplay, KeptStep
from .opencl_launch import Enqueue, KeptLaunches, driver_error

T = TypeVar("T")


class OpenCLReplay(GpuReplay):
    """The part of the OpenCL backend that replays. A subclass supplies PyOpenCL, the queue and `_guarded`."""

    _cl: Any
    _queue: Any
    _enqueue: Enqueue | None  # without it every step is launched by PyOpenCL
    _keeping: KeptLaunches | None = None  # what is launched now goes into it too

    @abstractmethod
    def _guarded(self, doing: str, call: Callable[[], T], nbytes: int = 0) -> T:
        """What `call` returns, the driver's failures as ours."""

    @abstractmethod
    def _not_launched(self, name: str, error: Exception) -> BackendError:
        """What to raise where the driver refused to launch a kernel."""

    def kept_tokens(self, t: int) -> int:
        """Steps of many tokens multiply in tiles: the time to launch them is small beside that."""
        return t if t <= self.tuning.few else 0

    def first_run(self, kept: KeptStep, step: Step) -> None:
        ropes, kept.launches = self._ropes, KeptLaunches(self._queue)
        self._keeping = kept.launches
        try:
            kept.y = kept.work(step)
        except CannotReplay:
            self.replays = self._ropes is not ropes  # the table of a new rope goes up by itself, once
            raise
        finally:
            self._keeping = None

    def next_run(self, kept: KeptStep, step: Step) -> None:
        enqueue, calls = self._enqueue, kept.launches.calls
        assert enqueue is not None, "steps are kept where it is there"
        for name, call in calls:
            if code := enqueue(*call):
                raise self._not_launched(name, driver_error(self._cl, code))
        self.launches += len(calls)

    def copy_rows(self, source: GpuArray, target: GpuArray, n: int, *, to: int = 0) -> None:
        nbytes = source.nbytes // len(source)
        self._guarded(
            "copying on the device",
            lambda: self._cl.enqueue_copy(
                self._queue, target.handle, source.handle, byte_count=n * nbytes, dst_offset=to * nbytes
            ),
        )

    def upload(self, host: NDArray[Any]) -> GpuArray:
        self._refuse_while_keeping("something goes up")
        return super().upload(host)

    def download(self, x: GpuArray) -> NDArray[Any]:
        self._refuse_while_keeping("something comes down")
        return super().download(x)

    def _refuse_while_keeping(self, what: str) -> None:
        """Called before what a replay would not do again."""
        if self._keeping:
            raise CannotReplay(f"{self.device}: {what} in the middle of a step")
