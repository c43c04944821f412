"""All that is to be measured on a GPU, in one command: is it right, and how far from its memory's and cores' limits.

    python -m layerlift.bench.gpu [--backend cuda] [--shape 1b,3b] [--formats BF16,F16,Q8_0,Q6_K,Q4_K,Q4_0]
        [--contexts 128,4096,32768] [--batches 1,2,4,8,16,32,64] [--prefill 512] [--no-check] [--save NAME]

Models are random ones of the named shapes, whole on the device. Times are wall-clock, Python included; a step is queued
before the last one's tokens are there, as the engine does it. The floor of a step is the time that reading its weights
and cache once takes at the device's own copy speed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.base import DeviceInfo, DeviceOutOfMemory, KVStore, Picked, Span, Step, UnsupportedFormat, Weight
from ..backends.gpu import GpuBackend
from ..backends.opcases import all_cases, judge
from ..backends.random_blocks import random_rows
from ..backends.registry import backend_class, open_device
from ..runtime.model import Model
from .machine import describe_machine, save
from .synth import SHAPES, write_model
from .table import markdown

FORMATS = ("BF16", "F16", "Q8_0", "Q6_K", "Q4_K", "Q4_0")


@dataclass(frozen=True)
class Limits:
    """Bytes per second that a copy on the device reads and writes, operations per second of a large product."""

    copy: float
    product: float
    product_by: str


@dataclass(frozen=True)
class Line:
    """One figure. `floor` is in seconds, 0 where there is none; `seconds` 0 where there was no room."""

    model: str
    what: str
    seconds: float
    floor: float
    tokens: int = 0


def seconds_of(backend: GpuBackend, run: Callable[[], object], *, least: float = 0.2, queued: int = 1) -> float:
    """The median of several turns, each of `queued` runs and a wait, after one turn that does not count."""
    turns: list[float] = []
    spent = -1.0
    while spent < least or len(turns) < 3:
        start = time.perf_counter()
        for _ in range(queued):
            run()
        backend.synchronize()
        taken = time.perf_counter() - start
        if spent < 0:
            spent = 0.0
            continue
        turns.append(taken / queued)
        spent += taken
    return statistics.median(turns)


# ---------------------------------------------------------------------------------------------------------------
# Right, and the limits


def check(backend: GpuBackend, say: Callable[[str], None]) -> list[str]:
    """The cases of the op table whose answers are wrong, each with its error."""
    wrong, right, unsupported = [], 0, 0
    for case in all_cases():
        try:
            verdict = judge(case, backend, relaxed=True)
        except UnsupportedFormat:
            unsupported += 1
            continue
        right += verdict.ok
        if not verdict.ok:
            wrong.append(f"{case}: NMSE {verdict.nmse:.2e}, at most {verdict.bound:.0e} is right")
    say(f"{right} cases right, {len(wrong)} wrong, {unsupported} in formats without a kernel")
    return wrong


def limits(backend: GpuBackend, *, mib: int) -> Limits:
    words = 1 << 12
    n = max(1, (mib << 20) // (4 * words))
    source, target = backend.empty((n, words)), backend.empty((n, words))
    copy = seconds_of(backend, lambda: backend.move_rows(source, None, target, None, words, n))
    side = 32 * max(2, min(128, mib))  # 4096 with the usual memory
    fmt = "BF16"
    raw = random_rows(fmt, side, side, side**-0.5, np.random.default_rng(0)).reshape(-1)
    w, x = backend.load(raw, fmt, (side, side), "w"), backend.upload(np.ones((side, side), np.float32))
    blas = backend.by_vendor(w)
    product = seconds_of(backend, lambda: backend.matmul(x, w))
    return Limits(2 * source.nbytes / copy, 2 * side**3 / product, str(blas.found) if blas else "our own kernels")


# ---------------------------------------------------------------------------------------------------------------
# Models


def decode_step(kv: Sequence[KVStore], context: int, batch: int) -> Step:
    """One token more for each of `batch` sequences of `context` tokens."""
    rows = [np.arange(i * context, (i + 1) * context, dtype=np.int32) for i in range(batch)]
    own = np.array([r[-1] for r in rows], np.int32)
    spans = tuple(Span(i, 1, r) for i, r in enumerate(rows))
    ids = np.arange(batch, dtype=np.int32)
    return Step(ids, np.full(batch, context - 1, np.int32), own, spans, ids, kv)


def prompt_step(kv: Sequence[KVStore], tokens: int) -> Step:
    rows = np.arange(tokens, dtype=np.int32)
    return Step(rows % 100, rows, rows, (Span(0, tokens, rows),), rows[-1:], kv)


def stores(model: Model, capacity: int) -> list[KVStore]:
    c = model.config
    return [s.backend.kv_alloc(capacity, c.n_kv_heads, c.head_dim) for s in model.stages for _ in s.blocks]


class Turns:
    """Steps to the likeliest tokens as the engine makes them: one is queued before those of the last are waited for."""

    def __init__(self, model: Model, step: Step):
        self._model, self._step = model, step
        self._last: Picked | None = None

    def __call__(self) -> None:
        self._step.scratch.clear()
        last, (_, self._last) = self._last, self._model.answer(self._step, ())
        if last:
            last.wait()

    def seconds(self, backend: GpuBackend, *, queued: int) -> float:
        found = seconds_of(backend, self, queued=queued)
        if self._last:
            self._last.wait()
        return found


def weight_bytes(model: Model) -> int:
    """Bytes that a step of few tokens reads of the weights: the layers and the head."""
    return sum(w.nbytes for ws in model._matrices.values() for w in ws) + model.head[2].weight.nbytes


def decoding(model: Model, name: str, limit: Limits, contexts: Sequence[int], batches: Sequence[int]) -> Iterator[Line]:
    (backend,) = model.backends
    assert isinstance(backend, GpuBackend)
    for context in contexts:
        for batch in batches:
            what = f"decode, context {context}, batch {batch}"
            try:
                kv = stores(model, context * batch)
                step = decode_step(kv, context, batch)
                seconds = Turns(model, step).seconds(backend, queued=8)
            except DeviceOutOfMemory:
                yield Line(name, what, 0, 0, batch)
                continue
            cache = context * batch * sum(store.row_nbytes for store in kv)
            yield Line(name, what, seconds, (weight_bytes(model) + cache) / limit.copy, batch)
            del kv, step


def prefill(model: Model, name: str, limit: Limits, tokens: int) -> Line:
    (backend,) = model.backends
    assert isinstance(backend, GpuBackend)
    step = prompt_step(stores(model, tokens), tokens)
    seconds = Turns(model, step).seconds(backend, queued=1)
    weights = sum(w.shape[0] * w.shape[1] for ws in model._matrices.values() for w in ws)
    return Line(name, f"prompt of {tokens}", seconds, 2 * weights * tokens / limit.product, tokens)


def products(model: Model, name: str, limit: Limits) -> Iterator[Line]:
    """One token by each kind of matrix, all layers in turn, so that no cache holds them."""
    (backend,) = model.backends
    assert isinstance(backend, GpuBackend)
    kinds: dict[tuple[str, tuple[int, int]], list[Weight]] = {}
    for w in [*model._matrices[backend], model.head[2].weight]:
        kinds.setdefault((w.fmt, w.shape), []).append(w)
    for (fmt, (rows, columns)), weights in kinds.items():
        x = backend.upload(np.ones((1, columns), np.float32))

        def run(x: Any = x, weights: list[Weight] = weights) -> None:
            for w in weights:
                backend.matmul(x, w)

        seconds = seconds_of(backend, run) / len(weights)
        yield Line(name, f"product {fmt} {rows}x{columns}", seconds, weights[0].nbytes / limit.copy)


def measure_model(device: DeviceInfo, shape: str, fmt: str, limit: Limits, a: argparse.Namespace) -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="layerlift-bench-") as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, shape, fmt)
        with Model.load(path, ngl=999, gpu=str(device), context=256) as model:
            name = f"{shape} {fmt}"
            return [
                *products(model, name, limit),
                *decoding(model, name, limit, a.contexts, a.batches),
                prefill(model, name, limit, a.prefill),
            ]


# ---------------------------------------------------------------------------------------------------------------
# The command


def table(lines: Sequence[Line]) -> str:
    columns = ["model", "what", "µs", "floor µs", "of floor", "t/s"]
    cells = [
        [
            x.model,
            x.what,
            f"{1e6 * x.seconds:.1f}" if x.seconds else "no room",
            f"{1e6 * x.floor:.1f}" if x.floor else "",
            f"{x.seconds / x.floor:.2f}" if x.floor and x.seconds else "",
            f"{x.tokens / x.seconds:.0f}" if x.tokens and x.seconds else "",
        ]
        for x in lines
    ]
    return markdown(columns, cells, right=columns[2:])


def main(argv: Sequence[str] | None = None) -> int:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    p = argparse.ArgumentParser(prog="layerlift.bench.gpu", description="a GPU's answers and limits")
    p.add_argument("--backend", default="cuda", choices=("cuda", "opencl"))
    p.add_argument("--device", type=int, default=0, help="its number, as `layerlift devices` shows it")
    p.add_argument("--shape", default="1b,3b", help=f"some of {', '.join(SHAPES)}")
    p.add_argument("--formats", default=",".join(FORMATS))
    p.add_argument("--contexts", type=numbers, default=[128, 4096, 32768])
    p.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32, 64])
    p.add_argument("--prefill", type=int, default=512, help="tokens of the prompt")
    p.add_argument("--mib", type=int, default=128, help="of memory for the limits; rows of 16 KiB, 32768 at most")
    p.add_argument("--no-check", dest="check", action="store_false", help="measure without looking whether it is right")
    p.add_argument("--save", metavar="NAME", help="keep the lines with commit, device and driver in bench/results/")
    a = p.parse_args(argv)
    if unknown := [s for s in a.shape.split(",") if s not in SHAPES]:
        p.error(f"--shape {unknown[0]} is unknown: {', '.join(SHAPES)}")
    probe = backend_class(a.backend).probe()
    found = [device for device in probe.devices if device.index == a.device]
    if not found:
        print(f"error: {a.backend}:{a.device}: {probe.reason or 'no such device'}", file=sys.stderr)
        return 1
    (device,), machine = found, describe_machine()
    print(f"{device} {device.name} ({device.detail}), commit {machine.commit or 'unknown'}", file=sys.stderr)
    backend = open_device(device)
    assert isinstance(backend, GpuBackend)
    wrong = check(backend, lambda line: print(line, file=sys.stderr)) if a.check else []
    for case in wrong:
        print(f"wrong: {case}", file=sys.stderr)
    limit = limits(backend, mib=a.mib)
    backend.close()
    lines: list[Line] = []
    for shape in a.shape.split(","):
        for fmt in a.formats.split(","):
            print(f"{shape} {fmt} …", file=sys.stderr)
            lines += measure_model(device, shape, fmt, limit, a)
    print(f"copy {limit.copy / 1e9:.1f} GB/s, product {limit.product / 1e12:.3g} Top/s by {limit.product_by}\n")
    print(table(lines))
    if a.save:
        rows = [{"device": asdict(device), "limits": asdict(limit), "wrong": wrong}, *map(asdict, lines)]
        print(f"\nsaved in {save(a.save, rows, machine=machine)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
