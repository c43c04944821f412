"""The CPU backend: NumPy's, with native kernels for what the library has. Knows nothing of models.

Matrices are repacked at load for full-width reads (kernels/cpu/matmul/layout.h) and stay quantised; formats without a
native kernel stay with NumPy. Inputs of up to 8 tokens, and of the head, count with 16 bits; of more tokens with 8
bits and a scale for each 32 values, and with 16 in the blocks that need it (kernels/cpu/matmul/product.cpp).
"""

from __future__ import annotations

import weakref
from ctypes import byref, c_int
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.cpu import native
from .base import (
    Activation,
    Array,
    BackendError,
    BackendUnavailable,
    DeviceInfo,
    DeviceOutOfMemory,
    KVStore,
    Linear,
    Norm,
    Probe,
    RopeSpec,
    Step,
    Weight,
)
from .cpu_memory import address, give_back, ready
from .cpu_ops import ACTIVATIONS, NativeOps
from .cpu_threads import default_threads, most_threads
from .formats import BY_NAME


@dataclass(frozen=True, eq=False)
class Packed:
    """A repacked matrix in the library's memory; `handle` is its ll_matrix."""

    handle: int


class CpuBackend(NativeOps):
    name = "cpu"

    def __init__(self, device: DeviceInfo, *, threads: int | None = None):
        super().__init__(device)
        lib = native.library()
        if lib is None:
            raise BackendUnavailable(f"cpu: {native.reason()}")
        isa = native.forced_isa()
        self.threads = min(threads or default_threads(), most_threads())
        self._lib = lib
        self._ctx: int = lib.ll_open(self.threads, isa.encode()) or 0
        if not self._ctx:
            names = ", ".join(native.isa_names())
            raise BackendUnavailable(f"cpu: cannot open {isa or 'any'} instruction set; this CPU runs {names}")
        self.isa: str = lib.ll_isa(self._ctx).decode()
        self.bind_ops()
        self._close = weakref.finalize(self, lib.ll_close, self._ctx)
        self._constants: dict[int, tuple[NDArray[Any], int]] = {}
        self._matmul, self._matmul_add, self._matmul3 = lib.ll_matmul, lib.ll_matmul_add, lib.ll_matmul3
        self._gated = lib.ll_gated

    @classmethod
    def probe(cls) -> Probe:
        if native.library() is None:
            return Probe("cpu", reason=native.reason())
        forced, names = native.forced_isa(), native.isa_names()
        if forced == "numpy":
            return Probe("cpu", reason="LAYERLIFT_ISA=numpy asks for it")
        if forced and forced not in names:
            return Probe("cpu", reason=f"LAYERLIFT_ISA={forced} cannot run here; this CPU runs {', '.join(names)}")
        return Probe("cpu", (DeviceInfo("cpu", 0, "CPU", "cpu", False, detail=forced or names[0]),))

    @classmethod
    def open(cls, device: DeviceInfo, **options: Any) -> CpuBackend:
        return cls(device, threads=options.get("threads"))

    def close(self) -> None:
        self._programs.clear()
        self._close()
        self._ctx = 0

    # -- memory --

    def load(self, raw: NDArray[np.uint8], fmt: str, shape: tuple[int, int], name: str) -> Weight:
        raw = np.ascontiguousarray(raw)
        expected = shape[0] * BY_NAME[fmt].row_nbytes(shape[1]) if fmt in BY_NAME else raw.nbytes
        if raw.nbytes != expected:
            raise BackendError(f"load: {name} is {fmt} {list(shape)}, {expected} bytes; {raw.nbytes} were given")
        error = c_int(0)
        gguf_id = BY_NAME[fmt].id if fmt in BY_NAME else -1
        handle = self._lib.ll_matrix_new(self._ctx, gguf_id, *shape, address(raw), byref(error))
        if error.value:
            raise DeviceOutOfMemory(f"cpu: no memory for {name}, {raw.nbytes} bytes", nbytes=raw.nbytes)
        if not handle:
            return super().load(raw, fmt, shape, name)
        give_back(raw)
        packed = Packed(handle)
        weakref.finalize(packed, self._lib.ll_matrix_free, handle)
        return Weight(name, fmt, shape, self._lib.ll_matrix_nbytes(handle), packed)

    def _constant(self, x: NDArray[Any] | None) -> int | None:
        """The address of an array that lives as long as the model: a bias, a norm."""
        if x is None:
            return None
        found = self._constants.get(id(x))
        if found is None or found[0] is not x:
            x = np.asarray(x)
            kept = ready(x)
            found = self._constants[id(x)] = (x, address(kept))
            if kept is not x:
                self._constants[-id(x)] = (kept, 0)  # keeps the copy alive
        return found[1]

    # -- products --

    def embed(self, table: Weight, tokens: NDArray[np.int32]) -> Array:
        if type(table.data) is not Packed:
            return super().embed(table, tokens)
        tokens = np.ascontiguousarray(tokens, np.int32)
        out = np.empty((len(tokens), table.shape[1]), np.float32)
        self._lib.ll_rows(self._ctx, table.data.handle, address(tokens), len(tokens), address(out))
        return out

    def matmul(self, x: Array, w: Weight) -> Array:
        if type(w.data) is not Packed:
            return super().matmul(x, w)
        return self._product(x, None, w, None)

    def linear(self, x: Array, w: Linear) -> Array:
        if type(w.weight.data) is not Packed:
            return super().linear(x, w)
        return self._product(x, None, w.weight, w.bias)

    def _product(
        self, x: Array, norm: Norm | None, w: Weight, bias: Array | None, *, exact: bool = False
    ) -> NDArray[np.float32]:
        x = ready(x)
        _check_inner(x, w)
        y = np.empty((len(x), w.shape[0]), np.float32)
        weight, eps = (self._constant(norm.weight), norm.eps) if norm else (None, 0.0)
        failed = self._matmul(
            self._ctx, address(x), len(x), weight, eps, exact, w.data.handle, self._constant(bias), address(y)
        )
        if failed:
            raise _no_memory()
        return y

    def qkv(
        self, x: Array, norm: Norm, wq: Linear, wk: Linear, wv: Linear, rope: RopeSpec | None, kv: KVStore, step: Step
    ) -> Array:
        if not _native(wq, wk, wv):
            return super().qkv(x, norm, wq, wk, wv, rope, kv, step)
        x = ready(x)
        q, k, v = (np.empty((len(x), w.weight.shape[0]), np.float32) for w in (wq, wk, wv))
        _check_inner(x, wq.weight, wk.weight, wv.weight)
        failed = self._matmul3(
            self._ctx, address(x), len(x), self._constant(norm.weight), norm.eps,
            wq.weight.data.handle, self._constant(wq.bias), address(q),
            wk.weight.data.handle, self._constant(wk.bias), address(k),
            wv.weight.data.handle, self._constant(wv.bias), address(v),
        )  # fmt: skip
        if failed:
            raise _no_memory()
        if wq.norm:
            q = self.rms_norm(q, wq.norm, kv.head_dim)
        if wk.norm:
            k = self.rms_norm(k, wk.norm, kv.head_dim)
        return self.rope_append(q, k, v, kv, rope, step)

    def project_add(self, h: Array, w: Linear, x: Array) -> Array:
        if w.norm or not _native(w) or not _writable(x):
            return super().project_add(h, w, x)
        h = ready(h)
        _check_inner(h, w.weight)
        if self._matmul_add(self._ctx, address(h), len(h), w.weight.data.handle, self._constant(w.bias), address(x)):
            raise _no_memory()
        return x

    def gated(self, x: Array, norm: Norm, w_gate: Linear, w_up: Linear, activation: Activation) -> Array:
        if not _native(w_gate, w_up) or w_gate.weight.shape != w_up.weight.shape:
            return super().gated(x, norm, w_gate, w_up, activation)
        x = ready(x)
        _check_inner(x, w_gate.weight)
        y = np.empty((len(x), w_up.weight.shape[0]), np.float32)
        failed = self._gated(
            self._ctx, address(x), len(x), self._constant(norm.weight), norm.eps,
            w_gate.weight.data.handle, self._constant(w_gate.bias),
            w_up.weight.data.handle, self._constant(w_up.bias), ACTIVATIONS[activation], address(y),
        )  # fmt: skip
        if failed:
            raise _no_memory()
        return y

    def head(self, x: Array, norm: Norm, w: Linear) -> Array:
        # Logits are few but for scoring a text, which wants them exact.
        return self._product(x, norm, w.weight, w.bias, exact=True) if _native(w) else super().head(x, norm, w)


def _native(*linears: Linear) -> bool:
    return all(type(w.weight.data) is Packed for w in linears)


def _writable(x: Array) -> bool:
    return x.dtype == np.float32 and x.flags.c_contiguous and x.flags.writeable


def _check_inner(x: Array, *weights: Weight) -> None:
    for w in weights:
        if x.shape[1] != w.shape[1]:
            raise BackendError(
                f"matmul: weight {w.name} is {w.fmt} {list(w.shape)}, input is {list(x.shape)}; inner sizes differ"
            )


def _no_memory() -> DeviceOutOfMemory:
    return DeviceOutOfMemory("cpu: no memory for a product's scratch", nbytes=0)
