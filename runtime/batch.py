"""Chooses the tokens of the next step among the tasks that are running. Pure: counts in, counts out.

Every generating sequence gets its one token first, so that nobody's answer stalls behind another's prompt; what is
left of the batch goes to the prompts in order of arrival, in chunks. While others generate, prompts get a smaller
share, which bounds the time between two of their tokens (the chunked prefill of Sarathi, arXiv:2308.16369).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Task number `task` gets `count` tokens of the step."""

    task: int
    count: int


def choose(pending: Sequence[int], *, batch: int, busy_batch: int) -> list[Share]:
    """Splits a step over tasks with `pending` tokens each (1 for a generating one, more for a prompt).

    `batch` is the most tokens of a step, `busy_batch` the most prompt tokens when some task generates.
    """
    shares = [Share(i, 1) for i, count in enumerate(pending) if count == 1][:batch]
    room = batch - len(shares)
    if shares:
        room = min(room, busy_batch)
    for i, count in enumerate(pending):
        if count > 1 and room > 0:
            shares.append(Share(i, min(count, room)))
            room -= shares[-1].count
    return sorted(shares, key=lambda share: share.task)
