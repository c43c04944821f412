"""A step under way: who takes part, and how its logits become tokens.

The device chooses them where it can, else each task's sampler does. Knows nothing of how steps are made.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, Backend, Draw
from .errors import BackendError
from .kv import Sequence
from .sampler import Sampled
from .task import Task


class Outputs:
    """Logits [n_out, vocab] of `backend`, from a step's launch to its tokens. Row i belongs to the task owners[i].

    What the device does is queued here; `receive` waits for it. `ahead` counts the tokens that are still unknown. A
    task's tokens are all chosen in one of the two places, whatever else is in its steps, so that a seed repeats them.
    """

    def __init__(self, backend: Backend, logits: Array, owners: Rows[Task], *, ahead: int = 0):
        self._backend, self._logits, self._owners = backend, logits, owners
        draws = [Draw() if task.is_embedding else task.draw(ahead) for task in owners]
        self._drawn = [draw is not None and backend.can_draw(draw) for draw in draws]
        own = [draw if drawn and draw else Draw() for draw, drawn in zip(draws, self._drawn, strict=True)]
        some = any(draw.temperature > 0 for draw in own)
        self._picked = backend.pick(logits, own if some else ()) if any(self._drawn) else None
        self.host: NDArray[np.float32] = np.empty((0, 0), np.float32)  # the logits, where a task needs all of them
        self._best: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None  # ids and logits, likeliest first

    @property
    def ids(self) -> Array | None:
        """The tokens on the device, where all are chosen there and it can go on with them."""
        return self._picked.ids if self._picked and all(self._drawn) else None

    def receive(self) -> None:
        """Waits for the device."""
        if self._picked:
            self._tokens = self._picked.wait()
        rest = [task for task, drawn in zip(self._owners, self._drawn, strict=True) if not drawn]
        if rest and all(task.top_k for task in rest):
            self._best = self._backend.topk(self._logits, max(task.top_k for task in rest))
        elif rest:
            self.host = self._backend.download(self._logits)

    def sampled(self, row: int) -> Sampled:
        """The token that follows row `row`. Raises what `Sampler.sample` raises."""
        sampler = self._owners[row].sampler
        if self._drawn[row]:
            token = int(self._tokens[row])
            if token < 0:
                raise BackendError(
                    "the model computed logits that are no numbers; the next token cannot be chosen",
                    hint="check the device with 'layerlift devices --check', and the model file's checksum",
                )
            return Sampled(token)
        if self._best is not None:
            ids, values = self._best
            return sampler.sample_among(ids[row], values[row])
        return sampler.sample(self.host[row])


@dataclass(frozen=True)
class Part:
    """A task's share of a step: its sequence had `before` tokens, and outputs [first, end) are its."""

    task: Task
    sequence: Sequence
    before: int
    first: int
    end: int


@dataclass
class Flight:
    """A step under way, with its last layer's output x [n_out, d]."""

    parts: list[Part]
    origin: Backend
    x: Array
    outputs: Outputs | None
    reads_prompts: bool = False
