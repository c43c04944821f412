"""How one token is drawn from logits, in the words of runtime/samplers.py, and the tokens that came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUT = np.dtype(
    [
        ("temperature", np.float32),
        ("top_k", np.int32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("seed", np.uint64),
        ("number", np.int64),
    ]
)  # Draw of kernels/cuda/sample.h


@dataclass(frozen=True)
class Draw:
    """top-k, top-p, min-p and temperature, in this order, then one draw; the likeliest at temperature 0 or below.

    `number` counts the draws of a seed: the same two give the same token from the same logits.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0 or less: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    seed: int = 0
    number: int = 0


@dataclass(frozen=True)
class Picked:
    """Tokens chosen by a backend. `wait` gives them, [n] int32, once; one is -1 where logits were no numbers.

    `ids` is what the backend's `embed` takes in their place before they are waited for; None where it cannot.
    """

    wait: Callable[[], NDArray[np.int32]]
    ids: Any = None


def packed(draws: Sequence[Draw]) -> NDArray[np.uint8]:
    """Draws as their bytes, in LAYOUT."""
    rows = [(d.temperature, max(d.top_k, 0), d.top_p, d.min_p, d.seed, d.number) for d in draws]
    return np.array(rows, LAYOUT).view(np.uint8)
