"""What the host gives a step of a whole model, in one piece of device memory that one copy fills. Knows no kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuda_arena import CudaBuffer
from .draw import LAYOUT, Draw, packed
from .gpu_memory import GpuArray
from .gpu_step import StepLayout


class StepInputs:
    """Of a step of t tokens, as parts of `memory`.

    tokens    [t] int32; the step's choice puts the next ones there
    settings  [t] draws, as `packed` gives them
    words     the step's data (gpu_step.py)
    """

    def __init__(self, memory: GpuArray, t: int):
        self._t, self._settings_at, words_at = t, *_places(t)
        self.memory = memory
        self.tokens = _part(memory, 0, (t,), np.int32)
        self.settings = _part(memory, self._settings_at, (t, LAYOUT.itemsize), np.uint8)
        self.words = _part(memory, words_at, ((memory.nbytes - words_at) // 4,), np.int32)

    @staticmethod
    def nbytes(t: int, words: int) -> int:
        return _places(t)[1] + 4 * words

    def first(self, n: int) -> GpuArray:
        """The first n tokens."""
        return _part(self.memory, 0, (n,), np.int32)

    def update(
        self, tokens: NDArray[np.int32] | None, draws: Sequence[Draw], layout: StepLayout
    ) -> tuple[CudaBuffer, NDArray[np.uint8]]:
        """Where to copy what for the next step; without tokens, those that are there stay.

        There may be fewer tokens and draws than t: then the first ones come again. No draws: the likeliest.
        """
        settings = packed([draws[i % len(draws)] if draws else Draw() for i in range(self._t)])
        parts = [settings, layout.words.view(np.uint8)]
        if tokens is None:
            at = self._settings_at
        else:
            at, first = 0, np.zeros(self._settings_at // 4, np.int32)
            first[: self._t] = np.resize(tokens, self._t)
            parts.insert(0, first.view(np.uint8))
        sent = np.concatenate(parts)
        return self.memory.handle.part(at, sent.nbytes), sent


def _places(t: int) -> tuple[int, int]:
    """Where settings and words begin, in bytes."""
    settings_at = 16 * -(-t // 4)
    return settings_at, settings_at + LAYOUT.itemsize * t


def _part(memory: GpuArray, at: int, shape: tuple[int, ...], dtype: Any) -> GpuArray:
    part = GpuArray(memory.block, shape, dtype)
    part.handle = memory.handle.part(at, part.nbytes)
    return part
