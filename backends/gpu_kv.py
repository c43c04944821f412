"""One layer's keys and values on a GPU, and how the host reads and writes rows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .base import KVDtype, KVStore
from .gpu_memory import GpuArray

if TYPE_CHECKING:
    from .gpu_device import GpuDevice

STORAGE: dict[str, Any] = {"f16": np.float16, "bf16": np.uint16, "f32": np.float32}
DTYPES = {"f16": 0, "bf16": 1, "f32": 2}  # kernels/shared/team.h
ROWS_AT_ONCE = 4096  # rows that pass through device memory of their own on their way


class GpuKVStore(KVStore):
    """`k` and `v` [capacity, n_kv_heads, head_dim] on the device."""

    def __init__(self, backend: GpuDevice, capacity: int, n_kv_heads: int, head_dim: int, dtype: KVDtype):
        self.capacity, self.n_kv_heads, self.head_dim, self.dtype = capacity, n_kv_heads, head_dim, dtype
        self.code = DTYPES[dtype]
        self._backend = backend
        shape = (capacity, n_kv_heads, head_dim)
        self.k, self.v = backend.empty(shape, STORAGE[dtype]), backend.empty(shape, STORAGE[dtype])
        self.words = self.row_nbytes // 2 // 4  # 32-bit words of one key

    def read(self, rows: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any]]:
        b, shape = self._backend, (self.n_kv_heads, self.head_dim)
        host = [np.empty((len(rows), *shape), STORAGE[self.dtype]) for _ in "kv"]
        for first in range(0, len(rows), ROWS_AT_ONCE):
            chosen = b.upload(np.ascontiguousarray(rows[first : first + ROWS_AT_ONCE], np.int32))
            for array, out in zip((self.k, self.v), host, strict=True):
                staged = b.empty((len(chosen), *shape), STORAGE[self.dtype])
                b.move_rows(array, chosen, staged, None, self.words, len(chosen))
                out[first : first + ROWS_AT_ONCE] = b.download(staged)
        return host[0], host[1]

    def write(self, rows: NDArray[np.int32], k: NDArray[Any], v: NDArray[Any]) -> None:
        b = self._backend
        for first in range(0, len(rows), ROWS_AT_ONCE):
            chosen = b.upload(np.ascontiguousarray(rows[first : first + ROWS_AT_ONCE], np.int32))
            for array, values in ((self.k, k), (self.v, v)):
                part = np.ascontiguousarray(values[first : first + ROWS_AT_ONCE], STORAGE[self.dtype])
                b.move_rows(b.upload(part), None, array, chosen, self.words, len(chosen))

    def copy(self, source: GpuArray, target: GpuArray) -> None:
        """Rows `source` to rows `target`, by way of memory of their own: either list may hold any rows."""
        b, n = self._backend, len(source)
        for array in (self.k, self.v):
            staged = b.empty((n, self.words), np.int32)
            b.move_rows(array, source, staged, None, self.words, n)
            b.move_rows(staged, None, array, target, self.words, n)
