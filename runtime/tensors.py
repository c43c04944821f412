"""Hands a model's tensors to a backend, checking names and shapes. Knows nothing of architectures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, Backend, Linear, Norm, Weight
from ..backends.formats import BY_NAME
from ..backends.numpy_decode import DECODABLE, decode_rows
from .errors import ModelError
from .gguf import GGUF, TensorInfo


class Tensors:
    """The tensors of one file, loaded to one backend."""

    def __init__(self, gguf: GGUF, backend: Backend):
        self.gguf, self.backend = gguf, backend
        self.matrices: list[Weight] = []  # loaded so far

    def __contains__(self, name: str) -> bool:
        return name in self.gguf.tensors

    def weight(self, name: str, rows: int, columns: int) -> Weight:
        """The matrix `name` [rows, columns] on the backend."""
        info = find(self.gguf, name, (rows, columns))
        weight = self.backend.load(self.gguf.raw(name), info.fmt, (rows, columns), name)
        self.gguf.release(name)
        self.matrices.append(weight)
        return weight

    def linear(self, name: str, rows: int, columns: int, *, norm: Norm | None = None) -> Linear:
        """`name`.weight [rows, columns] with `name`.bias [rows] where the file has one."""
        bias = self.vector(f"{name}.bias", rows) if f"{name}.bias" in self else None
        return Linear(self.weight(f"{name}.weight", rows, columns), bias, norm)

    def norm(self, name: str, size: int, eps: float) -> Norm:
        """`name`.weight [size] as an RMS norm."""
        return Norm(self.vector(f"{name}.weight", size), eps)

    def vector(self, name: str, size: int) -> Array:
        """A small float vector [size], decoded to float32 on the backend."""
        return self.backend.upload(host_vector(self.gguf, name, size))


def host_vector(gguf: GGUF, name: str, size: int) -> NDArray[np.float32]:
    """The small float vector `name` [size], decoded to float32 on the host."""
    info = find(gguf, name, (size,))
    if info.fmt not in DECODABLE or BY_NAME[info.fmt].block > 1:
        raise ModelError(f"gguf: {gguf.path}: tensor {name} is {info.fmt}; a vector must be F32, F16 or BF16")
    return decode_rows(gguf.raw(name)[None], info.fmt, size)[0]


def find(gguf: GGUF, name: str, shape: tuple[int, ...]) -> TensorInfo:
    """The entry of tensor `name`, which must have the shape that the model's settings ask for."""
    info = gguf.tensors.get(name)
    if info is None:
        raise ModelError(f"gguf: tensor {name} missing in {gguf.path}")
    if info.shape != shape:
        found, wanted = list(info.shape), list(shape)
        raise ModelError(f"gguf: {gguf.path}: tensor {name} is {found}, the model's settings ask for {wanted}")
    return info
