"""The tensors of a checkpoint, read some rows at a time, so that none has to fit in memory.

Knows where bytes lie and how parts make a whole; knows nothing of models, names or file formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError

# BF16 has no NumPy type: its bits travel as uint16.
DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class Tensor(Protocol):
    """Rows of numbers. A vector's rows are its elements."""

    @property
    def fmt(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self, first: int, last: int) -> NDArray[Any]:
        """Rows `first` to `last` [last - first, …] in the type of DTYPES. Raises ConvertError."""
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor that lies row after row in a file, from byte `offset` on. `fmt` may be a type that has no DTYPES."""

    name: str
    file: Path
    offset: int
    fmt: str
    shape: tuple[int, ...]

    def read(self, first: int, last: int) -> NDArray[Any]:
        dtype, row = DTYPES[self.fmt], prod(self.shape[1:])
        start, count = self.offset + first * row * dtype.itemsize, (last - first) * row
        try:
            values = np.fromfile(self.file, dtype, count, offset=start)
        except OSError as error:
            raise ConvertError(f"{self.file}: {error.strerror or error}") from None
        if len(values) != count:
            raise ConvertError(f"{self.file}: tensor {self.name!r} ends early; the file was changed while it was read")
        return values.reshape(last - first, *self.shape[1:])


@dataclass(frozen=True)
class Joined:
    """Parts side by side along `axis`, 0 or 1."""

    parts: Sequence[Tensor]
    axis: int

    @property
    def fmt(self) -> str:
        return self.parts[0].fmt

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    def read(self, first: int, last: int) -> NDArray[Any]:
        if self.axis:
            return np.concatenate([part.read(first, last) for part in self.parts], axis=self.axis)
        pieces, at = [], 0
        for part in self.parts:
            begin, end = max(first - at, 0), min(last - at, part.shape[0])
            if begin < end:
                pieces.append(part.read(begin, end))
            at += part.shape[0]
        return np.concatenate(pieces)


@dataclass(frozen=True)
class Paired:
    """Rows of q or k whose rotated pairs, the halves of a head, become neighbours.

    Hugging Face keeps them as halves (Su et al. 2021, "neox"); GGUF's llama wants them side by side ("norm").
    """

    inner: Tensor
    head_dim: int

    @property
    def fmt(self) -> str:
        return self.inner.fmt

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def read(self, first: int, last: int) -> NDArray[Any]:
        start, end = first // self.head_dim, -(-last // self.head_dim)  # whole heads
        rows = self.inner.read(start * self.head_dim, end * self.head_dim)
        halves = rows.reshape(end - start, 2, self.head_dim // 2, *rows.shape[1:])
        paired = halves.swapaxes(1, 2).reshape(rows.shape)
        return paired[first - start * self.head_dim : last - start * self.head_dim]


@dataclass(frozen=True)
class Given:
    """A small tensor made here, float32."""

    values: NDArray[np.float32]
    fmt: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, first: int, last: int) -> NDArray[Any]:
        return self.values[first:last]


def same(a: Tensor, b: Tensor, *, nbytes: int = 16 << 20) -> bool:
    """Whether two tensors hold the same bits."""
    if a.fmt != b.fmt or a.shape != b.shape:
        return False
    step = max(1, nbytes // max(1, prod(a.shape[1:]) * DTYPES[a.fmt].itemsize))
    ranges = ((first, min(first + step, a.shape[0])) for first in range(0, a.shape[0], step))
    return all(a.read(*each).tobytes() == b.read(*each).tobytes() for each in ranges)
