"""A step under way: who takes part, and how its logits become tokens.

The device chooses them where it can, else each task's sampler does. Knows nothing of how steps are made.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, Backend, Draw, Picked
from .errors import BackendError
from .kv import Sequence
from .sampler import Sampled
from .task import Task


class Outputs:
    """The logits [n_out, vocab] of a step on `backend`, from before its launch to its tokens. Row i is of owners[i].

    `draws` says what the device chooses: None where it has nothing to, () for the likeliest everywhere. `receive` waits
    for it. `ahead` counts the tokens that are still unknown. A task's tokens are all chosen in one of the two places,
    whatever else is in its steps, so that a seed repeats them.
    """

    def __init__(self, backend: Backend, owners: Rows[Task], *, ahead: int = 0):
        self._backend, self._owners = backend, owners
        draws = [Draw() if task.is_embedding else task.draw(ahead) for task in owners]
        self._drawn = [draw is not None and backend.can_draw(draw) for draw in draws]
        own = [draw if drawn and draw else Draw() for draw, drawn in zip(draws, self._drawn, strict=True)]
        some = any(draw.temperature > 0 for draw in own)
        self.draws: Rows[Draw] | None = (own if some else ()) if any(self._drawn) else None
        self.host: NDArray[np.float32] = np.empty((0, 0), np.float32)  # the logits, where a task needs all of them
        self._best: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None  # ids and logits, likeliest first

    def launched(self, logits: Array, picked: Picked | None) -> Outputs:
        """Takes what the device is going to have: `logits`, and the tokens chosen by `draws`."""
        self._logits, self._picked = logits, picked
        return self

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
    """A step under way."""

    parts: list[Part]
    outputs: Outputs | None
    states: Callable[[], NDArray[np.float32]] | None = None  # hidden states [n_out, d] on the host, for embeddings
    reads_prompts: bool = False
