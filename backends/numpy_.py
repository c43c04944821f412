"""The reference backend: every primitive in plain NumPy, every format the `gguf` package can decode.

Always there, and the oracle of every test. Arrays are float32 ndarrays; products accumulate in float32 through BLAS.
Decoded weights are kept while they fit a budget, so that a small model is decoded once, and otherwise decoded in
tiles of rows, so that a large one never needs its float32 size in memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import (
    Activation,
    Array,
    AttnSpec,
    Backend,
    BackendError,
    DeviceInfo,
    KVDtype,
    KVStore,
    Norm,
    Probe,
    RopeSpec,
    Span,
    Step,
    UnsupportedFormat,
    Weight,
)
from .formats import BY_NAME
from .numpy_decode import DECODABLE, decode_rows

TILE_NBYTES = 16 << 20  # float32 bytes decoded at a time when a weight is not kept decoded
SCORES = 1 << 23  # attention scores in memory at once


@dataclass
class Matrix:
    """A weight as this backend keeps it: the GGUF rows, and the decoded matrix once it has been kept."""

    raw: NDArray[np.uint8]  # [rows, row_nbytes]
    decoded: NDArray[np.float32] | None = None


class NumpyKVStore(KVStore):
    """Keys and values in host memory, committed by the system as rows are written."""

    def __init__(self, capacity: int, n_kv_heads: int, head_dim: int, dtype: KVDtype):
        self.capacity, self.n_kv_heads, self.head_dim, self.dtype = capacity, n_kv_heads, head_dim, dtype
        storage = {"f16": np.float16, "bf16": np.uint16, "f32": np.float32}[dtype]
        self.k = np.zeros((capacity, n_kv_heads, head_dim), storage)  # calloc: untouched pages cost nothing
        self.v = np.zeros((capacity, n_kv_heads, head_dim), storage)

    def read(self, rows: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.k[rows], self.v[rows]

    def write(self, rows: NDArray[np.int32], k: NDArray[Any], v: NDArray[Any]) -> None:
        self.k[rows], self.v[rows] = k, v


class NumpyBackend(Backend):
    name = "numpy"

    def __init__(self, device: DeviceInfo, *, cache_nbytes: int | None = None):
        self.device = device
        self._cache_left = _default_cache() if cache_nbytes is None else cache_nbytes

    @classmethod
    def probe(cls) -> Probe:
        return Probe("numpy", (DeviceInfo("numpy", 0, "NumPy", "cpu", False, detail=f"numpy {np.__version__}"),))

    @classmethod
    def open(cls, device: DeviceInfo, **options: Any) -> Backend:
        return cls(device, cache_nbytes=options.get("cache_nbytes"))

    # -- memory --

    def load(self, raw: NDArray[np.uint8], fmt: str, shape: tuple[int, int], name: str) -> Weight:
        if fmt not in DECODABLE:
            raise UnsupportedFormat(f"{name}: format {fmt} has no decoder; known: {', '.join(DECODABLE)}")
        rows = raw.reshape(shape[0], BY_NAME[fmt].row_nbytes(shape[1]))
        return Weight(name, fmt, shape, raw.nbytes, Matrix(rows))

    def upload(self, host: NDArray[Any]) -> Array:
        return np.ascontiguousarray(host)

    def download(self, x: Array) -> NDArray[Any]:
        return x

    def kv_alloc(self, capacity: int, n_kv_heads: int, head_dim: int, dtype: KVDtype = "f16") -> KVStore:
        return NumpyKVStore(capacity, n_kv_heads, head_dim, dtype)

    # -- primitives --

    def embed(self, table: Weight, tokens: NDArray[np.int32]) -> Array:
        matrix: Matrix = table.data
        if matrix.decoded is not None:
            return matrix.decoded[tokens]
        return decode_rows(matrix.raw[tokens], table.fmt, table.shape[1])

    def rms_norm(self, x: Array, norm: Norm, width: int = 0) -> Array:
        parts = x.reshape(len(x), -1, width or x.shape[1])  # [T, parts, width]
        mean_square = np.einsum("tpw,tpw->tp", parts, parts, dtype=np.float32)[..., None] / parts.shape[-1]
        return (parts / np.sqrt(mean_square + np.float32(norm.eps)) * norm.weight).reshape(x.shape)

    def matmul(self, x: Array, w: Weight) -> Array:
        if x.shape[1] != w.shape[1]:
            raise BackendError(
                f"matmul: weight {w.name} is {w.fmt} {list(w.shape)}, input is {list(x.shape)}; inner sizes differ"
            )
        matrix: Matrix = w.data
        if matrix.decoded is None and 4 * w.shape[0] * w.shape[1] <= self._cache_left:
            matrix.decoded = decode_rows(matrix.raw, w.fmt, w.shape[1])
            self._cache_left -= matrix.decoded.nbytes
        if matrix.decoded is not None:
            return x @ matrix.decoded.T
        y = np.empty((len(x), w.shape[0]), np.float32)
        tile = max(1, TILE_NBYTES // (4 * w.shape[1]))
        for first in range(0, w.shape[0], tile):
            y[:, first : first + tile] = x @ decode_rows(matrix.raw[first : first + tile], w.fmt, w.shape[1]).T
        return y

    def rope(self, x: Array, head_dim: int, rope: RopeSpec, step: Step) -> Array:
        cos, sin = step.once(("rope", id(rope)), lambda: rope.table(step.positions))
        return rotate(x.reshape(len(x), -1, head_dim), cos, sin, rope).reshape(x.shape)

    def kv_append(self, kv: KVStore, k: Array, v: Array, step: Step) -> None:
        assert isinstance(kv, NumpyKVStore)
        shape = (len(step.rows), kv.n_kv_heads, kv.head_dim)
        kv.k[step.rows] = _to_storage(k.reshape(shape), kv.dtype)
        kv.v[step.rows] = _to_storage(v.reshape(shape), kv.dtype)

    def attend(self, q: Array, kv: KVStore, step: Step, spec: AttnSpec) -> Array:
        assert isinstance(kv, NumpyKVStore)
        out = np.empty_like(q)
        for span in step.spans:
            tile = max(1, SCORES // (spec.n_heads * len(span.rows)))
            for first in range(0, span.length, tile):
                count = min(tile, span.length - first)
                rows = span.rows[: len(span.rows) - span.length + first + count]
                part = slice(span.start + first, span.start + first + count)
                out[part] = _attend_one(q[part], kv, Span(0, count, rows), spec)
        return out

    def gate(self, a: Array, b: Array, activation: Activation) -> Array:
        return ACTIVATIONS[activation](a) * b

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def kv_shift(self, kv: KVStore, rows: NDArray[np.int32], delta: NDArray[np.int32], rope: RopeSpec) -> None:
        assert isinstance(kv, NumpyKVStore)
        # The magnitude is in the stored keys already: turn by the angle alone.
        cos, sin = RopeSpec(rope.n_dims, rope.style, rope.inv_freq).table(delta)
        kv.k[rows] = _to_storage(rotate(_from_storage(kv.k[rows], kv.dtype), cos, sin, rope), kv.dtype)

    def kv_copy(self, kv: KVStore, source: NDArray[np.int32], target: NDArray[np.int32]) -> None:
        assert isinstance(kv, NumpyKVStore)
        kv.k[target], kv.v[target] = kv.k[source], kv.v[source]

    def select(self, x: Array, rows: NDArray[np.int32]) -> Array:
        return x[rows]


def rotate(
    x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32], rope: RopeSpec
) -> NDArray[np.float32]:
    """x [T, heads, head_dim] with the first n_dims of each head turned by cos, sin [T, n_dims/2]; a new array."""
    half, y = rope.n_dims // 2, x.copy()
    if rope.style == "norm":
        first, second = slice(0, rope.n_dims, 2), slice(1, rope.n_dims, 2)
    else:
        first, second = slice(0, half), slice(half, rope.n_dims)
    a, b, cos, sin = x[..., first], x[..., second], cos[:, None], sin[:, None]
    y[..., first], y[..., second] = a * cos - b * sin, a * sin + b * cos
    return y


def _attend_one(q: NDArray[np.float32], kv: NumpyKVStore, span: Span, spec: AttnSpec) -> NDArray[np.float32]:
    """Attention of one span's queries q [t, heads * head_dim]; heads of a group share their keys and values."""
    t, n, groups = span.length, len(span.rows), spec.n_heads // kv.n_kv_heads
    where = _as_slice(span.rows)
    k = _from_storage(kv.k[where], kv.dtype).transpose(1, 2, 0)  # [kv_heads, head_dim, n]
    v = _from_storage(kv.v[where], kv.dtype).transpose(1, 0, 2)  # [kv_heads, n, head_dim]
    heads = q.reshape(t, kv.n_kv_heads, groups, kv.head_dim).transpose(1, 2, 0, 3)  # [kv_heads, groups, t, head_dim]
    heads = heads.reshape(kv.n_kv_heads, groups * t, kv.head_dim) * np.float32(spec.scale)
    scores = (heads @ k).reshape(kv.n_kv_heads, groups, t, n)
    if spec.softcap:
        scores = np.float32(spec.softcap) * np.tanh(scores / np.float32(spec.softcap))
    if t > 1 or spec.window:
        age = (np.arange(n - t, n)[:, None] - np.arange(n)).astype(np.int64)  # [t, n]: 0 is the query's own row
        hidden = (age < 0) | (age >= spec.window) if spec.window else age < 0
        scores = np.where(hidden, np.float32(-np.inf), scores)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    out = scores.reshape(kv.n_kv_heads, groups * t, n) @ v  # [kv_heads, groups * t, head_dim]
    return out.reshape(kv.n_kv_heads, groups, t, kv.head_dim).transpose(2, 0, 1, 3).reshape(t, -1)


def _as_slice(rows: NDArray[np.int32]) -> slice | NDArray[np.int32]:
    """Neighbouring rows as a slice, which NumPy reads without a copy."""
    if int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _to_storage(x: NDArray[np.float32], dtype: KVDtype) -> NDArray[Any]:
    if dtype == "bf16":
        bits = np.ascontiguousarray(x).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # round to nearest even
    return x.astype(np.float16 if dtype == "f16" else np.float32)


def _from_storage(x: NDArray[Any], dtype: KVDtype) -> NDArray[np.float32]:
    if dtype == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1.0))  # no overflow at either end


def _gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1.0) + np.tanh(inner))


ACTIVATIONS = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,  # the tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415)
    "gelu_quick": lambda x: x * _sigmoid(np.float32(1.702) * x),
    "relu2": lambda x: np.square(np.maximum(x, np.float32(0.0))),
}


def _default_cache() -> int:
    """Bytes of decoded weights to keep: a third of the memory the system says is available."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 3
    except (AttributeError, ValueError, OSError):
        return 1 << 30
