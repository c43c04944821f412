"""What the kernels must know of a step, laid out in one int32 array so that it goes up in one copy. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .base import RopeSpec, Step


class StepLayout:
    """Where in `words` things lie, as offsets in words.

    rows_at   [T] the cache row each token writes
    first_at  [T] where the cache rows of the token's span begin in `words`
    seen_at   [T] how many of them the token sees
    tiles_at  [n_tiles, 2] the first token of a tile and how many it has, `tile` at most, all of one span
    ropes     id of a rope → where its cosines and sines [T, n_dims/2] begin, float32 by their bits

    There are tiles only in steps where one can be full.
    """

    def __init__(self, step: Step, ropes: Sequence[RopeSpec], tile: int = 0):
        t, spans = len(step.tokens), step.spans
        self.n_tokens = t
        self.rows_at, self.first_at, self.seen_at = 0, t, 2 * t
        tables = [table for rope in ropes for table in rope.table(step.positions)]
        self.ropes: dict[int, tuple[int, int]] = {}
        at = 3 * t
        for i, rope in enumerate(ropes):
            size = tables[2 * i].size
            self.ropes[id(rope)] = (at, at + size)
            at += 2 * size
        first, seen = np.empty(t, np.int32), np.empty(t, np.int32)
        for span in spans:
            part, n = slice(span.start, span.start + span.length), len(span.rows)
            first[part] = at
            seen[part] = n if span.length == 1 else np.arange(n - span.length + 1, n + 1)
            at += n
        tiles = _tiles(step, tile)
        self.tiles_at, self.n_tiles = at, len(tiles) // 2
        self.longest = max((len(span.rows) for span in spans), default=0)
        self.words: NDArray[np.int32] = np.concatenate(
            [
                step.rows,
                first,
                seen,
                *(table.reshape(-1).view(np.int32) for table in tables),
                *(s.rows for s in spans),
                tiles,
            ],
            dtype=np.int32,
        )


def _tiles(step: Step, tile: int) -> NDArray[np.int32]:
    if not tile or all(span.length < tile for span in step.spans):
        return np.empty(0, np.int32)
    tiles = []
    for span in step.spans:
        for first in range(0, span.length, tile):
            tiles += [span.start + first, min(tile, span.length - first)]
    return np.array(tiles, np.int32)
