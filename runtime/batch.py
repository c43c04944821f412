"""Chooses the tokens of the next step among the tasks that are running. Pure: counts in, counts out.

Generating sequences take steps of their own, one token of each, which alternate with steps that read prompts, in order
of arrival and in chunks. So nobody's answer stalls behind another's prompt (the chunked prefill of Sarathi,
arXiv:2308.16369), steps of one token each stay alike, which recorded programs and graphs need, and a sequence's next
token comes from the same kernels whoever else is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FEW = 8  # tokens that kernels treat unlike many: a prompt's last ones are not left alone
LEAST = 24  # prompt tokens of a chunk; a whole number of every kernel's tiles


@dataclass(frozen=True)
class Share:
    """Task number `task` gets `count` tokens of the step."""

    task: int
    count: int


def choose(pending: Sequence[int], *, batch: int, chunk: int, reading: bool) -> list[Share]:
    """Splits a step over tasks with `pending` tokens each (1 for a generating one, more for a prompt).

    `batch` is the most tokens of a step. While some task generates, `reading` says whose turn it is, and prompts get
    about `chunk` tokens.
    """
    generating = [Share(i, 1) for i, count in enumerate(pending) if count == 1][:batch]
    prompts = [i for i, count in enumerate(pending) if count > 1]
    if generating and not (prompts and reading):
        return generating
    room, left = (min(batch, chunk) if generating else batch), batch
    shares: list[Share] = []
    for i in prompts:
        if room <= 0:
            break
        count = pending[i] if pending[i] <= min(room + FEW, left) else min(room, left)
        if not shares or count == pending[i] or count > FEW:
            shares.append(Share(i, count))
            room, left = room - count, left - count
    return shares


class Pace:
    """Whose turn it is, and how many prompt tokens to read between two tokens of an answer.

    As many as take about `pause` seconds, learned from the pauses there were.
    """

    def __init__(self, pause: float):
        self.pause, self.chunk = pause, 4 * LEAST
        self._read = 0  # prompt tokens since the last step of answers
        self._answered: float | None = None  # when that step ended, if answers have waited since

    @property
    def reading(self) -> bool:
        """Whether it is the prompts' turn."""
        return not self._read

    def read(self, tokens: int, *, waiting: bool) -> None:
        """A step of prompts begins; `waiting`: some task would have had its next token instead."""
        self._read += tokens
        if not waiting:
            self._answered = None

    def answered(self, now: float) -> None:
        """A step of answers has ended at `now` seconds."""
        if self._read and self._answered is not None:
            seconds = now - self._answered
            if seconds > self.pause:
                self.chunk = max(LEAST, self.chunk // 2)
            elif seconds < self.pause / 2 and self._read >= self.chunk:
                self.chunk *= 2
        self._read, self._answered = 0, now
