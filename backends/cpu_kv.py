"""One layer's cache rows in host memory, with the address that native kernels want. Knows nothing of sequences."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import KVDtype
from .cpu_memory import address
from .numpy_ import NumpyKVStore

STORAGE = {"f16": 0, "bf16": 1, "f32": 2}  # kernels/cpu/ops/api.h


class CacheStruct(ctypes.Structure):
    """`ll_cache` of kernels/cpu/ops/api.h."""

    _fields_ = (
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("storage", ctypes.c_int32),
        ("n_kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
    )


class CpuKVStore(NumpyKVStore):
    """Keys and values whose pages the system commits when a row of them is first written."""

    def __init__(self, capacity: int, n_kv_heads: int, head_dim: int, dtype: KVDtype):
        self.capacity, self.n_kv_heads, self.head_dim, self.dtype = capacity, n_kv_heads, head_dim, dtype
        storage = {"f16": np.float16, "bf16": np.uint16, "f32": np.float32}[dtype]
        self.k = _lazy_array((capacity, n_kv_heads, head_dim), storage)
        self.v = _lazy_array((capacity, n_kv_heads, head_dim), storage)
        self.struct = CacheStruct(address(self.k), address(self.v), STORAGE[dtype], n_kv_heads, head_dim)
        self.address = ctypes.addressof(self.struct)


def _lazy_array(shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    """Zeros in small pages of their own: NumPy asks for huge ones, and a few rows would commit 2 MiB."""
    if sys.platform == "win32":
        return np.zeros(shape, dtype)
    nbytes = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = mmap.mmap(-1, nbytes, flags=flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype, int(np.prod(shape))).reshape(shape)
