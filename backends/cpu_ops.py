"""The native ops that are not products: attention, cache rows, norms, rope, gates, picking. A mixin of CpuBackend.

Knows the C ABI of kernels/cpu/ops/api.h. Calls pass addresses, and what a whole step shares (spans, rope tables) is
made once per step: at a hundred calls a token, Python's part must stay small beside the arithmetic.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.cpu import native
from .base import (
    Activation,
    Array,
    AttnSpec,
    DeviceOutOfMemory,
    Draw,
    KVDtype,
    KVStore,
    Norm,
    Picked,
    RopeSpec,
    Stage,
    Step,
)
from .cpu_kv import CpuKVStore
from .cpu_memory import address
from .cpu_program import Programs
from .numpy_ import NumpyBackend

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_quick": 2, "relu2": 3}  # kernels/cpu/ops/api.h

P = c_void_p
SIGNATURES: native.Signatures = {
    "ll_attend": (c_int, [P, P, P, P, P, c_int, P]),
    "ll_rope_append": (None, [P, P, P, P, c_int, c_int, P, P, P]),
    "ll_kv_append": (None, [P, P, P, c_int, P, P]),
    "ll_kv_shift": (c_int, [P, P, P, c_int, P]),
    "ll_kv_copy": (None, [P, P, P, P, c_int]),
    "ll_rope": (None, [P, P, P, c_int, c_int, c_int, P]),
    "ll_rms_norm": (None, [P, P, P, c_float, c_int64, c_int, P]),
    "ll_gate": (None, [P, P, P, c_int64, c_int, P]),
    "ll_add": (None, [P, P, P, c_int64, P]),
    "ll_add_row": (None, [P, P, P, c_int64, c_int64, P]),
    "ll_argmax": (None, [P, P, c_int, c_int64, P]),
    "ll_top_k": (c_int, [P, P, c_int64, c_int, P]),
    "ll_program_run": (c_int, [P, P, c_int]),
    "ll_probe_read": (c_int64, [P, P, c_int64]),
    "ll_probe_peak": (c_int64, [P, c_int, c_int64]),
}


class SpanStruct(ctypes.Structure):
    """`ll_span`."""

    _fields_ = (
        ("rows", c_void_p),
        ("start", c_int32),
        ("length", c_int32),
        ("n_rows", c_int32),
        ("unused", c_int32),
    )


class RotationStruct(ctypes.Structure):
    """`ll_rotation`."""

    _fields_ = (("cos", c_void_p), ("sin", c_void_p), ("n_dims", c_int32), ("neox", c_int32))


class AttentionStruct(ctypes.Structure):
    """`ll_attention`."""

    _fields_ = (("n_heads", c_int32), ("window", c_int32), ("scale", c_float), ("softcap", c_float))


class Rotation:
    """A rope's cos and sin at some positions, at an address."""

    def __init__(self, rope: RopeSpec, positions: NDArray[np.int32]):
        self.tables = [np.ascontiguousarray(table) for table in rope.table(positions)]  # kept alive
        cos, sin = (address(table) for table in self.tables)
        self.struct = RotationStruct(cos, sin, rope.n_dims, int(rope.style == "neox"))
        self.address = ctypes.addressof(self.struct)


class StepArrays:
    """What native calls need of a step, at addresses."""

    def __init__(self, step: Step):
        self.n_tokens = len(step.tokens)
        self.rows = np.ascontiguousarray(step.rows, np.int32)
        self.rows_address = address(self.rows)
        self.span_rows = [np.ascontiguousarray(span.rows, np.int32) for span in step.spans]
        self.n_spans = len(step.spans)
        self.spans = (SpanStruct * self.n_spans)(
            *(
                SpanStruct(address(rows), span.start, span.length, len(rows), 0)
                for span, rows in zip(step.spans, self.span_rows, strict=True)
            )
        )
        self.spans_address = ctypes.addressof(self.spans)
        self.rotations: dict[int, Rotation] = {}

    def rotation(self, rope: RopeSpec, step: Step) -> int:
        """The address of the rope's tables at the step's positions."""
        found = self.rotations.get(id(rope))
        if found is None:
            found = self.rotations[id(rope)] = Rotation(rope, step.positions)
        return found.address


class NativeOps(NumpyBackend):
    """CpuBackend's ops beside its products; needs `_lib` and `_ctx`."""

    _lib: Any  # ctypes.CDLL
    _ctx: int  # ll_context*

    def bind_ops(self) -> None:
        """Declares the functions; to be called once `_lib` and `_ctx` are set."""
        native.declare(self._lib, SIGNATURES)
        self._specs: dict[int, tuple[AttnSpec, AttentionStruct, int]] = {}
        self._programs = Programs()

    def kv_alloc(self, capacity: int, n_kv_heads: int, head_dim: int, dtype: KVDtype = "f16") -> KVStore:
        try:
            return CpuKVStore(capacity, n_kv_heads, head_dim, dtype)
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            nbytes = 2 * capacity * n_kv_heads * head_dim * (4 if dtype == "f32" else 2)
            raise DeviceOutOfMemory(f"no memory for a cache of {capacity} rows ({error})", nbytes=nbytes) from None

    # -- whole stages --

    def run(self, stage: Stage, x: Array, step: Step) -> Array:
        """All layers of a stage; for a few tokens through a recorded program (see cpu_program.py)."""
        program = self._programs.find(self, stage, x, step)
        if program is None:
            return super().run(stage, x, step)
        y = program.run(self, x, step)
        if y is None:
            raise DeviceOutOfMemory("no memory for a layer's scratch", nbytes=0)
        return y

    def run_program(self, calls: int, count: int) -> bool:
        """Makes `count` recorded calls at an address; true when there was no memory."""
        return bool(self._lib.ll_program_run(self._ctx, calls, count))

    def _constant(self, x: Array | None) -> int | None:
        """The address of an array that lives as long as the model: a bias, a norm."""
        return None if x is None else address(x)

    # -- attention and its cache --

    def attend(self, q: Array, kv: KVStore, step: Step, spec: AttnSpec) -> Array:
        assert isinstance(kv, CpuKVStore)
        arrays, out = _arrays(step), np.empty(q.shape, np.float32)
        failed = self._lib.ll_attend(
            self._ctx,
            address(q),
            address(out),
            kv.address,
            arrays.spans_address,
            arrays.n_spans,
            self.spec_address(spec),
        )
        if failed:
            raise DeviceOutOfMemory("no memory for the scratch of attention", nbytes=0)
        return out

    def rope_append(self, q: Array, k: Array, v: Array, kv: KVStore, rope: RopeSpec | None, step: Step) -> Array:
        """Rotates q and k in place, writes k and v to the step's rows; returns q."""
        assert isinstance(kv, CpuKVStore)
        arrays = _arrays(step)
        self._lib.ll_rope_append(
            self._ctx,
            address(q),
            address(k),
            address(v),
            arrays.n_tokens,
            q.shape[1] // kv.head_dim,
            kv.address,
            arrays.rows_address,
            arrays.rotation(rope, step) if rope else None,
        )
        return q

    def rope(self, x: Array, head_dim: int, rope: RopeSpec, step: Step) -> Array:
        y, table = np.empty_like(x), _arrays(step).rotation(rope, step)
        self._lib.ll_rope(self._ctx, address(x), address(y), len(x), x.shape[1] // head_dim, head_dim, table)
        return y

    def kv_append(self, kv: KVStore, k: Array, v: Array, step: Step) -> None:
        assert isinstance(kv, CpuKVStore)
        arrays = _arrays(step)
        self._lib.ll_kv_append(self._ctx, address(k), address(v), arrays.n_tokens, kv.address, arrays.rows_address)

    def kv_shift(self, kv: KVStore, rows: NDArray[np.int32], delta: NDArray[np.int32], rope: RopeSpec) -> None:
        assert isinstance(kv, CpuKVStore)
        if not len(rows):
            return
        # The magnitude is in the stored keys already: turn by the angle alone.
        turn = Rotation(RopeSpec(rope.n_dims, rope.style, rope.inv_freq), delta)
        rows = np.ascontiguousarray(rows, np.int32)
        if self._lib.ll_kv_shift(self._ctx, kv.address, address(rows), len(rows), turn.address):
            raise DeviceOutOfMemory("no memory for the scratch of a cache shift", nbytes=0)

    def kv_copy(self, kv: KVStore, source: NDArray[np.int32], target: NDArray[np.int32]) -> None:
        assert isinstance(kv, CpuKVStore)
        if len(source):
            source, target = np.ascontiguousarray(source, np.int32), np.ascontiguousarray(target, np.int32)
            self._lib.ll_kv_copy(self._ctx, kv.address, address(source), address(target), len(source))

    # -- rows --

    def rms_norm(self, x: Array, norm: Norm, width: int = 0) -> Array:
        width, y = width or x.shape[1], np.empty_like(x)
        self._lib.ll_rms_norm(self._ctx, address(x), address(norm.weight), norm.eps, x.size // width, width, address(y))
        return y

    def gate(self, a: Array, b: Array, activation: Activation) -> Array:
        y = np.empty_like(a)
        self._lib.ll_gate(self._ctx, address(a), address(b), a.size, ACTIVATIONS[activation], address(y))
        return y

    def add(self, a: Array, b: Array) -> Array:
        y = np.empty_like(a)
        if a.size == b.size:
            self._lib.ll_add(self._ctx, address(a), address(b), a.size, address(y))
        else:
            self._lib.ll_add_row(self._ctx, address(a), address(b), len(a), b.size, address(y))
        return y

    def select(self, x: Array, rows: NDArray[np.int32]) -> Array:
        # One token, or the logits of all: no copy.
        same = len(rows) == len(x) and (len(x) == 1 or np.array_equal(rows, np.arange(len(x))))
        return x if same else x[rows]

    def pick(self, logits: Array, draws: Sequence[Draw] = ()) -> Picked:
        best = np.empty(len(logits), np.int32)
        if len(logits):
            self._lib.ll_argmax(self._ctx, address(logits), len(logits), logits.shape[1], address(best))
        return Picked(lambda: best)

    def top_k(self, logits: NDArray[np.float32], k: int) -> NDArray[np.int32]:
        """The ids of the k highest of one row of logits, in falling order; ties by rising id."""
        k = min(k, len(logits))
        ids = np.empty(k, np.int32)
        if k:
            self._lib.ll_top_k(self._ctx, address(logits), len(logits), k, address(ids))
        return ids

    # -- limits --

    def probe_read(self, x: NDArray[Any]) -> None:
        """Reads all of x, in whole MiB, with all threads."""
        self._lib.ll_probe_read(self._ctx, address(x), x.nbytes >> 20 << 20)

    def probe_peak(self, kind: str, loops: int) -> int:
        """Multiplies in registers with all threads: "f32" or "int8"; the operations done."""
        return self._lib.ll_probe_peak(self._ctx, int(kind == "int8"), loops)

    def spec_address(self, spec: AttnSpec) -> int:
        """The address of a spec's struct; specs live as long as their model, so their identity is the key."""
        found = self._specs.get(id(spec))
        if found is None:
            struct = AttentionStruct(spec.n_heads, spec.window, spec.scale, spec.softcap)
            found = self._specs[id(spec)] = (spec, struct, ctypes.addressof(struct))
        return found[2]


def _arrays(step: Step) -> StepArrays:
    found = step.scratch.get("cpu")
    if found is None:
        found = step.scratch["cpu"] = StepArrays(step)
    return found
