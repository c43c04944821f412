"""Builds the native library with any compiler and drives it in a process of its own, as a backend for the op table."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest
from layerlift.backends.base import DeviceInfo, Picked, Weight
from layerlift.backends.cpu_kv import STORAGE
from layerlift.backends.cpu_ops import ACTIVATIONS
from layerlift.backends.formats import BY_NAME
from layerlift.backends.numpy_ import NumpyBackend

SOURCE = Path(__file__).parent / "native"


def build(folder: Path, *options: str, sources: Path = SOURCE) -> Path:
    """The driver's program, built in `folder` with CMake's `options`; skips the test where there is no CMake."""
    cmake, jobs = shutil.which("cmake"), os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")
    if not cmake:
        pytest.skip("cmake is not installed")
    generator = ["-GNinja"] if shutil.which("ninja") else []
    run([cmake, "-S", str(sources), "-B", str(folder), *generator, *options])
    run([cmake, "--build", str(folder), "-j", jobs])
    return folder / "driver"


def run(command: list[str]) -> str:
    """The output of a command; its failure is the test's, with all it said."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout


class Driver:
    """The process; `call` has the protocol of native/driver.cpp. Leaving it ends it, and fails if it complained."""

    def __init__(self, command: list[str], threads: int, isa: str, env: dict[str, str] | None = None):
        self.isa = isa
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self.process = subprocess.Popen(
            [*command, str(threads), isa],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env={**os.environ, **(env or {})},
        )
        self.unused: list[int] = []  # matrices to free before the next call

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        try:
            if kind is None:
                self.process.stdin.close()
                code, said = self.process.wait(60), self._said()
                assert (code, said) == (0, ""), f"driver ended with {code}\n{said}"
        finally:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout, self.said):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def call(self, name: str, integers=(), numbers=(), arrays=(), wanted=()) -> int:
        """Arrays in `wanted` (by identity) are written to; None is a null pointer."""
        while self.unused:
            self._call("matrix_free", [self.unused.pop()], (), (), ())
        return self._call(name, integers, numbers, arrays, wanted)

    def _call(self, name, integers, numbers, arrays, wanted):
        message = struct.pack("<16s3I", name.encode(), len(integers), len(numbers), len(arrays))
        message += struct.pack(f"<{len(integers)}q{len(numbers)}d", *map(int, integers), *numbers)
        for x in arrays:
            size = -1 if x is None else x.nbytes
            message += struct.pack("<qB", size, any(x is w for w in wanted))
            message += b"" if x is None else x.tobytes()
        try:
            self.process.stdin.write(message)
            self.process.stdin.flush()
            result = struct.unpack("<q", self._read(8))[0]
            for x in (x for x in arrays if any(x is w for w in wanted)):
                x[...] = np.frombuffer(self._read(x.nbytes), x.dtype).reshape(x.shape)
        except (EOFError, BrokenPipeError):
            code = self.process.wait()
            raise AssertionError(f"driver died in {name} {list(integers)}: exit {code}\n{self._said()}") from None
        return result

    def _read(self, nbytes: int) -> bytes:
        data = self.process.stdout.read(nbytes)
        if len(data) < nbytes:
            raise EOFError
        return data

    def _said(self) -> str:
        self.said.seek(0)
        return self.said.read().decode(errors="replace")[-6000:]


class DriverBackend(NumpyBackend):
    """The native ops and composites, each one call of a driver; formats without a kernel are NumPy's."""

    name = "driver"

    def __init__(self, driver: Driver):
        super().__init__(DeviceInfo("driver", 0, "", "cpu", False))
        self.driver, self.isa = driver, driver.isa

    def load(self, raw, fmt, shape, name):
        number = self.driver.call("matrix_new", [BY_NAME[fmt].id, *shape], arrays=[raw])
        if number < 0:
            return super().load(raw, fmt, shape, name)
        weight = Weight(name, fmt, shape, raw.nbytes, number)
        weakref.finalize(weight, self.driver.unused.append, number)
        return weight

    def _call(self, name, integers=(), numbers=(), arrays=(), wanted=()):
        assert self.driver.call(name, integers, numbers, arrays, wanted) == 0, f"{name}: no memory"

    def embed(self, table, tokens):
        if not isinstance(table.data, int):
            return super().embed(table, tokens)
        out = poisoned(len(tokens), table.shape[1])
        self._call("rows", [table.data, len(tokens)], arrays=[tokens, out], wanted=[out])
        return out

    def matmul(self, x, w):
        return self.product(x, w, None, None)

    def linear(self, x, w):
        return self.product(x, w.weight, None, w.bias)

    def head(self, x, norm, w):
        return self.product(x, w.weight, norm, w.bias, exact=True)

    def product(self, x, w, norm, bias, *, exact=False):
        """n(x) @ w.T + bias"""
        if not isinstance(w.data, int):
            y = super().matmul(self.rms_norm(x, norm) if norm else x, w)
            return y if bias is None else y + bias
        y, weight, eps = poisoned(len(x), w.shape[0]), norm and norm.weight, norm.eps if norm else 0.0
        self._call("matmul", [w.data, len(x), exact], [eps], [x, weight, bias, y], [y])
        return y

    def project_add(self, h, w, x):
        if not isinstance(w.weight.data, int):
            return super().project_add(h, w, x)
        x = x.copy()
        self._call("matmul_add", [w.weight.data, len(h)], arrays=[h, w.bias, x], wanted=[x])
        return x

    def qkv(self, x, norm, wq, wk, wv, rope, kv, step):
        ws = (wq, wk, wv)
        q, k, v = (poisoned(len(x), w.weight.shape[0]) for w in ws)
        arrays = [x, norm.weight, *(w.bias for w in ws), q, k, v]
        self._call("matmul3", [len(x), *(w.weight.data for w in ws)], [norm.eps], arrays, [q, k, v])
        cos, sin = tables(rope, step.positions)
        self._call(
            "rope_append",
            [*cache(kv), len(x), q.shape[1] // kv.head_dim, rope.n_dims, rope.style == "neox"],
            arrays=[q, k, v, kv.k, kv.v, step.rows, cos, sin],
            wanted=[q, k, kv.k, kv.v],
        )
        return q

    def gated(self, x, norm, w_gate, w_up, activation):
        y = poisoned(len(x), w_up.weight.shape[0])
        integers = [len(x), ACTIVATIONS[activation], w_gate.weight.data, w_up.weight.data]
        self._call("gated", integers, [norm.eps], [x, norm.weight, w_gate.bias, w_up.bias, y], [y])
        return y

    def attend(self, q, kv, step, spec):
        out, ends = poisoned(*q.shape), [n for span in step.spans for n in (span.start, span.length)]
        self._call(
            "attend",
            [*cache(kv), spec.n_heads, spec.window, *ends],
            [spec.scale, spec.softcap],
            [q, out, kv.k, kv.v, *(span.rows for span in step.spans)],
            [out],
        )
        return out

    def rope(self, x, head_dim, rope, step):
        y, (cos, sin) = poisoned(*x.shape), tables(rope, step.positions)
        integers = [len(x), x.shape[1] // head_dim, head_dim, rope.n_dims, rope.style == "neox"]
        self._call("rope", integers, arrays=[x, y, cos, sin], wanted=[y])
        return y

    def kv_append(self, kv, k, v, step):
        self._call("kv_append", [*cache(kv), len(k)], arrays=[k, v, kv.k, kv.v, step.rows], wanted=[kv.k, kv.v])

    def kv_shift(self, kv, rows, delta, rope):
        cos, sin = tables(type(rope)(rope.n_dims, rope.style, rope.inv_freq), delta)
        integers = [*cache(kv), len(rows), rope.n_dims, rope.style == "neox"]
        self._call("kv_shift", integers, arrays=[kv.k, kv.v, rows, cos, sin], wanted=[kv.k, kv.v])

    def kv_copy(self, kv, source, target):
        self._call("kv_copy", [*cache(kv), len(source)], arrays=[kv.k, kv.v, source, target], wanted=[kv.k, kv.v])

    def rms_norm(self, x, norm, width=0):
        width, y = width or x.shape[1], poisoned(*x.shape)
        self._call("rms_norm", [x.size // width, width], [norm.eps], [x, norm.weight, y], [y])
        return y

    def gate(self, a, b, activation):
        y = poisoned(*a.shape)
        self._call("gate", [a.size, ACTIVATIONS[activation]], arrays=[a, b, y], wanted=[y])
        return y

    def add(self, a, b):
        y = poisoned(*a.shape)
        self._call("add", [*a.shape, a.size != b.size], arrays=[a, b, y], wanted=[y])
        return y

    def pick(self, logits, draws=()):
        best = np.full(len(logits), -1, np.int32)
        self._call("argmax", [*logits.shape], arrays=[logits, best], wanted=[best])
        return Picked(lambda: best)

    def quantize(self, raw, source, columns, fmt, importance=None):
        """raw [rows, row_nbytes] of `source` to rows of `fmt`, and the row that holds what is no number, or -1."""
        out = np.full((len(raw), BY_NAME[fmt].row_nbytes(columns)), 0xA5, np.uint8)
        integers = [BY_NAME[source].id, len(raw), columns, BY_NAME[fmt].id]
        return out, self.driver.call("quantize", integers, arrays=[raw, importance, out], wanted=[out])

    def top_k(self, logits, k):
        best = np.full(min(k, len(logits)), -1, np.int32)
        assert self.driver.call("top_k", [len(logits), k], arrays=[logits, best], wanted=[best]) == len(best)
        return best


def poisoned(*shape):
    return np.full(shape, np.nan, np.float32)


def cache(kv):
    return STORAGE[kv.dtype], kv.n_kv_heads, kv.head_dim


def tables(rope, positions):
    return [np.ascontiguousarray(table, np.float32) for table in rope.table(positions)]
