"""Records the native calls of a stage once, and makes them again for every token with one call.

A stage of a small model spends as long in Python as in arithmetic when it decodes one token. Recording runs the same
blocks with a backend that computes nothing: it writes down each composite with the addresses of fixed buffers. A block
that does anything else with its values (another primitive, NumPy arithmetic) is not recordable and runs as it is
written. What a block does may depend on the number of tokens and spans of a step, not on what they are.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_float, c_int32, c_void_p
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .base import Activation, AttnSpec, Backend, KVStore, Linear, Norm, RopeSpec, Stage, Step
from .cpu_kv import CpuKVStore
from .cpu_memory import address

if TYPE_CHECKING:
    from .cpu_ops import NativeOps

MAX_TOKENS = 8  # of a recorded step: with more, Python's part is small
QKV, ROPE_APPEND, ATTEND, MATMUL_ADD, GATED, RMS_NORM = range(6)  # ll_call_op of kernels/cpu/ops/program.h


class NotRecordable(Exception):
    """A block does what a program cannot hold."""


class CallStruct(ctypes.Structure):
    """`ll_call`."""

    _fields_ = (
        ("op", c_int32),
        ("tokens", c_int32),
        ("count", c_int32),
        ("eps", c_float),
        ("p", c_void_p * 11),
    )


class Slot:
    """A value while recording: a buffer, as long as nothing newer was put there."""

    def __init__(self, name: str, version: int):
        self.name, self.version = name, version


class Recorder:
    """The backend that blocks are recorded with; has the composites alone."""

    def __init__(self, backend: NativeOps, step: Step, d: int):
        from .cpu_ops import StepArrays

        self._backend, self._step, self._tokens = backend, step, len(step.tokens)
        self.arrays = StepArrays(step)
        self.ropes: dict[int, RopeSpec] = {}
        self.buffers: dict[str, NDArray[np.float32]] = {}
        self.calls: list[CallStruct] = []
        self._versions: dict[str, int] = {}
        self.x = self._new("x", d)

    def __getattr__(self, name: str) -> Any:
        raise NotRecordable(name)

    # -- composites --

    def qkv(
        self, x: Slot, norm: Norm, wq: Linear, wk: Linear, wv: Linear, rope: RopeSpec | None, kv: KVStore, step: Step
    ) -> Slot:
        if not isinstance(kv, CpuKVStore):
            raise NotRecordable("cache")
        source, parts = self._address(x), [self._weight(w) for w in (wq, wk, wv)]
        slots = [self._new(name, w.weight.shape[0]) for name, w in (("q", wq), ("k", wk), ("v", wv))]
        q, k, v = (self._address(slot) for slot in slots)
        outputs = [p for (matrix, bias), y in zip(parts, (q, k, v), strict=True) for p in (matrix, bias, y)]
        self._call(QKV, source, self._constant(norm.weight), *outputs, eps=norm.eps)
        for normed, y, w in ((wq.norm, q, wq), (wk.norm, k, wk)):
            if normed:
                rows = self._tokens * w.weight.shape[0] // kv.head_dim
                weight = self._constant(normed.weight)
                self._call(RMS_NORM, y, weight, y, eps=normed.eps, count=kv.head_dim, tokens=rows)
        rotation = self.arrays.rotation(rope, self._step) if rope else None
        if rope:
            self.ropes[id(rope)] = rope
        heads = wq.weight.shape[0] // kv.head_dim
        self._call(ROPE_APPEND, q, k, v, kv.address, self.arrays.rows_address, rotation, count=heads)
        return slots[0]

    def attend(self, q: Slot, kv: KVStore, step: Step, spec: AttnSpec) -> Slot:
        assert isinstance(kv, CpuKVStore)
        source = self._address(q)
        out = self._new("o", self.buffers[q.name].shape[1])
        spans, attention = self.arrays.spans_address, self._backend.spec_address(spec)
        self._call(ATTEND, source, self._address(out), kv.address, spans, attention, count=self.arrays.n_spans)
        return out

    def project_add(self, h: Slot, w: Linear, x: Slot) -> Slot:
        if w.norm:
            raise NotRecordable("norm of a projection")
        self._call(MATMUL_ADD, self._address(h), *self._weight(w), self._address(x))
        return self._renew(x.name)

    def gated(self, x: Slot, norm: Norm, w_gate: Linear, w_up: Linear, activation: Activation) -> Slot:
        from .cpu_ops import ACTIVATIONS

        if w_gate.weight.shape != w_up.weight.shape:
            raise NotRecordable("gate and up of different shapes")
        source = self._address(x)
        y = self._new("h", w_up.weight.shape[0])
        self._call(
            GATED,
            source,
            self._constant(norm.weight),
            *self._weight(w_gate),
            *self._weight(w_up),
            self._address(y),
            eps=norm.eps,
            count=ACTIVATIONS[activation],
        )
        return y

    def select(self, x: Slot, rows: NDArray[np.int32]) -> Slot:
        if not np.array_equal(rows, np.arange(self._tokens)):
            raise NotRecordable("select")
        return x

    # -- writing down --

    def _call(
        self, op: int, *pointers: int | None, eps: float = 0.0, count: int = 0, tokens: int | None = None
    ) -> None:
        self.calls.append(
            CallStruct(op, self._tokens if tokens is None else tokens, count, eps, (c_void_p * 11)(*pointers))
        )

    def _new(self, name: str, width: int) -> Slot:
        """A buffer for a new value; what was there is dead."""
        shape = (self._tokens, width)
        if name not in self.buffers:
            self.buffers[name] = np.zeros(shape, np.float32)
        elif self.buffers[name].shape != shape:
            raise NotRecordable(f"layers of different widths in {name}")
        return self._renew(name)

    def _renew(self, name: str) -> Slot:
        version = self._versions[name] = self._versions.get(name, 0) + 1
        return Slot(name, version)

    def _address(self, slot: Slot) -> int:
        if not isinstance(slot, Slot) or self._versions[slot.name] != slot.version:
            raise NotRecordable("a value used after another took its place")
        return address(self.buffers[slot.name])

    def _weight(self, w: Linear) -> tuple[int, int | None]:
        handle = getattr(w.weight.data, "handle", None)
        if handle is None:
            raise NotRecordable(f"{w.weight.name} is {w.weight.fmt}")
        return handle, self._constant(w.bias)

    def _constant(self, x: Any) -> int | None:
        return self._backend._constant(x)


class Program:
    """A recorded stage for steps of so many tokens in so many spans. Lives no longer than the stage and its caches."""

    def __init__(self, backend: NativeOps, stage: Stage, step: Step, d: int):
        recorder = Recorder(backend, step, d)
        self._arrays, self._x = recorder.arrays, recorder.buffers["x"]
        x: Any = recorder.x
        for block in stage.blocks:
            x = block(cast(Backend, recorder), x, step)
        if not isinstance(x, Slot) or x.name != "x":
            raise NotRecordable("the result is not the residual stream")
        self._buffers = recorder.buffers  # kept alive
        self._calls = (CallStruct * len(recorder.calls))(*recorder.calls)
        self._ropes = [(rope, self._arrays.rotations[id(rope)]) for rope in recorder.ropes.values()]
        first = stage.first_layer
        self._layers = slice(first, first + len(stage.blocks))
        self._stores = [weakref.ref(store) for store in step.kv[self._layers]]

    def fits(self, step: Step) -> bool:
        """Whether the step's cache is the one the program was recorded with."""
        return all(ref() is store for ref, store in zip(self._stores, step.kv[self._layers], strict=True))

    def run(self, backend: NativeOps, x: NDArray[np.float32], step: Step) -> NDArray[np.float32] | None:
        """The stage's output for x [T, d], or None when there was no memory."""
        arrays, kept = self._arrays, []
        arrays.rows[:] = step.rows
        for struct, span in zip(arrays.spans, step.spans, strict=True):
            rows = np.ascontiguousarray(span.rows, np.int32)
            kept.append(rows)
            struct.rows, struct.start, struct.length, struct.n_rows = address(rows), span.start, span.length, len(rows)
        for rope, rotation in self._ropes:
            for kept_table, table in zip(rotation.tables, rope.table(step.positions), strict=True):
                kept_table[:] = table
        self._x[:] = x
        if backend.run_program(ctypes.addressof(self._calls), len(self._calls)):
            return None
        return self._x.copy()


class Programs:
    """The programs of one backend, by stage and shape of step."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, int], Program | None] = {}
        self._stages: dict[int, weakref.ref[Stage]] = {}

    def find(self, backend: NativeOps, stage: Stage, x: NDArray[np.float32], step: Step) -> Program | None:
        """The program for a step, recorded now if it is the first of its kind; None where it must run as written."""
        tokens = len(step.tokens)
        if tokens > MAX_TOKENS or len(step.outputs) != tokens or x.shape[0] != tokens:
            return None
        key = (id(stage), tokens, len(step.spans))
        found = self._found.get(key, self)
        if found is None or (isinstance(found, Program) and found.fits(step)):
            return found
        self._watch(stage)
        try:
            program: Program | None = Program(backend, stage, step, x.shape[1])
        except (NotRecordable, TypeError, AttributeError):  # arithmetic on a Slot is a TypeError
            program = None
        self._found[key] = program
        return program

    def clear(self) -> None:
        self._found.clear()
        self._stages.clear()

    def _watch(self, stage: Stage) -> None:
        """Forgets the stage's programs when it goes, and with it the weights they point at."""
        number = id(stage)

        def forget(_: object) -> None:
            self._stages.pop(number, None)
            for key in [key for key in self._found if key[0] == number]:
                del self._found[key]

        if number not in self._stages:
            self._stages[number] = weakref.ref(stage, forget)
