"""GB/s and Gop/s of each op of the CPU backend, beside what this machine can read and multiply at most.

    python -m layerlift.bench.ops [--backend opencl] [--op matmul] [--formats Q6_K,Q8_0] [-t 2] [--mib 512]

The shapes are those of Llama 3.2 1B. What one token reads is larger than any cache, so that it comes from memory; the
same table of limits says how far a kernel is from the wall it stands before. OpenCL is measured here where its device
is the processor, so that the limits are its own; bench/gpu.py has a GPU's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, AttnSpec, Backend, Norm, RopeSpec, Span, Step
from ..backends.cpu import CpuBackend
from ..backends.formats import BY_NAME
from ..backends.opencl import OpenCLBackend
from ..backends.random_blocks import random_rows
from .machine import describe_machine, save
from .synth import SHAPES
from .table import markdown

FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
FLOATS = ("F32", "F16", "BF16")
SHAPE = SHAPES["1b"]


@dataclass(frozen=True)
class Timed:
    """An op that is ready to run. `nbytes` must be read from memory, `ops` be done in arithmetic of `kind`."""

    op: str
    label: str
    run: Callable[[], Any]
    nbytes: int = 0
    ops: int = 0
    kind: str = "f32"


@dataclass(frozen=True)
class Limits:
    """Bytes per second read, and operations per second of each kind."""

    read: float
    peak: dict[str, float]


@dataclass(frozen=True)
class Line:
    op: str
    label: str
    seconds: float
    gb_s: float
    of_read: float
    gop_s: float
    of_peak: float


def best_seconds(run: Callable[[], Any], *, least: float = 0.3) -> float:
    """The shortest of several runs that together take `least` seconds: what other work on the machine left alone."""
    run()
    best, spent, count = np.inf, 0.0, 0
    while spent < least or count < 3:
        start = time.perf_counter()
        run()
        taken = time.perf_counter() - start
        best, spent, count = min(best, taken), spent + taken, count + 1
    return float(best)


def limits(backend: CpuBackend, *, mib: int = 512) -> Limits:
    """What the machine reads and multiplies at most, with the backend's threads and instruction set."""
    memory = np.ones(mib << 20, np.uint8)
    read = memory.nbytes / best_seconds(lambda: backend.probe_read(memory))
    peak = {}
    for kind in ("f32", "int8"):
        loops = 200_000
        peak[kind] = backend.probe_peak(kind, loops) / best_seconds(lambda k=kind, n=loops: backend.probe_peak(k, n))
    return Limits(read, peak)


def line(case: Timed, limit: Limits, wait: Callable[[], None] = lambda: None) -> Line:
    """One op's figures; `wait` returns when the device has done what was queued."""
    seconds = best_seconds(lambda: (case.run(), wait()))
    return Line(
        case.op,
        case.label,
        seconds,
        case.nbytes / seconds / 1e9,
        case.nbytes / seconds / limit.read,
        case.ops / seconds / 1e9,
        case.ops / seconds / limit.peak[case.kind],
    )


# ---------------------------------------------------------------------------------------------------------------
# The ops


def cases(backend: Backend, *, op: str = "", formats: Sequence[str] = FORMATS, mib: int = 512) -> Iterator[Timed]:
    """Every op, or the one named; each is made when it is its turn, and its memory is free after it."""
    makers = {
        "matmul": lambda: _matmuls(backend, formats, mib),
        "attend": lambda: _attention(backend, mib),
        "rows": lambda: _rows(backend),
    }
    for name, make in makers.items():
        if op in ("", name):
            yield from make()


def _normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _matmuls(backend: Backend, formats: Sequence[str], mib: int) -> Iterator[Timed]:
    rng = np.random.default_rng(0)
    for fmt in formats:
        row_nbytes = BY_NAME[fmt].row_nbytes(SHAPE.d)
        many = max(64, (mib << 20) // row_nbytes // 64 * 64)
        for tokens, rows in ((1, many), (4, many), (8, many), (512, SHAPE.d_ff)):
            raw = random_rows(fmt, rows, SHAPE.d, SHAPE.d**-0.5, rng).reshape(-1)
            w, x = backend.load(raw, fmt, (rows, SHAPE.d), fmt), backend.upload(_normal(tokens, SHAPE.d))
            yield Timed(
                "matmul",
                f"{fmt} {tokens}x{SHAPE.d}x{rows}",
                lambda x=x, w=w: backend.matmul(x, w),
                nbytes=raw.nbytes,
                ops=2 * tokens * rows * SHAPE.d,
                kind="f32" if fmt in FLOATS else "int8",
            )


def _step(before: int, tokens: int) -> Step:
    n = before + tokens
    rows = np.arange(n, dtype=np.int32)
    ids = np.zeros(tokens, np.int32)
    return Step(ids, rows[before:], rows[before:], (Span(0, tokens, rows),), np.arange(tokens, dtype=np.int32), ())


def _attention(backend: Backend, mib: int) -> Iterator[Timed]:
    spec = AttnSpec(SHAPE.n_heads, SHAPE.head_dim**-0.5)
    width = SHAPE.n_heads * SHAPE.head_dim
    for before, tokens in ((511, 1), (8191, 1), (0, 512), (3584, 512)):
        n = before + tokens
        row_nbytes = 2 * 2 * SHAPE.n_kv_heads * SHAPE.head_dim
        layers = max(1, (mib << 20) // (n * row_nbytes)) if tokens == 1 else 1
        stores = [backend.kv_alloc(n, SHAPE.n_kv_heads, SHAPE.head_dim) for _ in range(layers)]
        keys = _normal(n, SHAPE.n_kv_heads, SHAPE.head_dim).astype(np.float16)
        for store in stores:
            store.write(np.arange(n, dtype=np.int32), keys, keys)
        step, q = _step(before, tokens), backend.upload(_normal(tokens, width))

        def run(stores: list[Any] = stores, step: Step = step, q: Array = q) -> None:
            for store in stores:
                backend.attend(q, store, step, spec)

        seen = sum(range(before + 1, n + 1))  # rows, over all tokens
        yield Timed(
            "attend",
            f"{tokens} tokens, {n} rows, {layers} layers",
            run,
            nbytes=layers * n * row_nbytes,
            ops=layers * 4 * seen * width,
        )


def _rows(backend: Backend) -> Iterator[Timed]:
    d, d_ff, vocab = SHAPE.d, SHAPE.d_ff, SHAPE.vocab
    rope = RopeSpec(SHAPE.head_dim, "norm", SHAPE.rope_base ** (-np.arange(0, SHAPE.head_dim, 2) / SHAPE.head_dim))
    norm, host = Norm(backend.upload(np.ones(d, np.float32)), 1e-5), _normal(1, vocab)
    logits = backend.upload(host)
    yield Timed("argmax", f"{vocab}", lambda: backend.pick(logits).wait(), nbytes=host.nbytes)
    native = backend.top_k if isinstance(backend, CpuBackend) else None  # its sampler asks for one row's ids alone
    top = (lambda: native(host[0], 40)) if native else (lambda: backend.topk(logits, 40))
    yield Timed("top_k", f"40 of {vocab}", top, nbytes=host.nbytes)
    for tokens in (1, 512):
        x, a, b = (backend.upload(_normal(tokens, n)) for n in (d, d_ff, d_ff))
        k = backend.upload(_normal(tokens, SHAPE.n_kv_heads * SHAPE.head_dim))
        kv, step = backend.kv_alloc(tokens, SHAPE.n_kv_heads, SHAPE.head_dim), _step(0, tokens)
        # Read and written, as far as both are large.
        yield Timed("rms_norm", f"{tokens}x{d}", lambda x=x: backend.rms_norm(x, norm), nbytes=2 * x.nbytes)
        yield Timed("add", f"{tokens}x{d}", lambda x=x: backend.add(x, x), nbytes=3 * x.nbytes)
        yield Timed("gate", f"{tokens}x{d_ff}", lambda a=a, b=b: backend.gate(a, b, "silu"), nbytes=3 * a.nbytes)
        yield Timed(
            "rope_append",
            f"{tokens}x{d}",
            lambda x=x, k=k, kv=kv, step=step: backend.rope_append(x, k, k, kv, rope, step),
            nbytes=2 * x.nbytes + 4 * k.nbytes,
        )


# ---------------------------------------------------------------------------------------------------------------
# The command


def table(lines: Sequence[Line]) -> str:
    """The lines as Markdown; a share is left out where the op has no such cost."""
    columns = ["op", "what", "µs", "GB/s", "of read", "Gop/s", "of peak"]
    cells = [
        [
            x.op,
            x.label,
            f"{1e6 * x.seconds:.1f}",
            f"{x.gb_s:.1f}",
            f"{100 * x.of_read:.0f} %",
            f"{x.gop_s:.0f}" if x.gop_s else "",
            f"{100 * x.of_peak:.0f} %" if x.gop_s else "",
        ]
        for x in lines
    ]
    return markdown(columns, cells, right=columns[2:])


def _opencl_on_the_processor() -> OpenCLBackend | None:
    found = [device for device in OpenCLBackend.probe().devices if not device.is_gpu]
    return OpenCLBackend.open(found[0]) if found else None


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="layerlift.bench.ops", description="each op beside the machine's limits")
    p.add_argument("--backend", choices=("cpu", "opencl"), default="cpu", help="(default: cpu)")
    p.add_argument("--op", choices=("matmul", "attend", "rows"), default="")
    p.add_argument("--formats", default=",".join(FORMATS))
    p.add_argument("-t", dest="threads", type=int, help="(default: the physical cores)")
    p.add_argument("--mib", type=int, default=512, help="of memory that one token's op reads (default: 512)")
    p.add_argument("--save", metavar="NAME", help="keep the lines with commit and machine in bench/results/")
    a = p.parse_args(argv)
    found = CpuBackend.probe()
    if not found.devices:
        print(f"error: {found.reason}", file=sys.stderr)
        return 1
    cpu = CpuBackend(found.devices[0], threads=a.threads)
    backend = _opencl_on_the_processor() if a.backend == "opencl" else cpu
    if backend is None:
        print("error: OpenCL has no device that is the processor", file=sys.stderr)
        return 1
    limit, machine = limits(cpu, mib=a.mib), describe_machine()
    peaks = ", ".join(f"{kind} {rate / 1e9:.0f} Gop/s" for kind, rate in limit.peak.items())
    print(f"{machine.cpu_info}, {cpu.threads} threads: read {limit.read / 1e9:.1f} GB/s, {peaks}\n")
    lines = [
        line(c, limit, backend.synchronize) for c in cases(backend, op=a.op, formats=a.formats.split(","), mib=a.mib)
    ]
    print(table(lines))
    if a.save:
        rows = [
            {"limits": asdict(limit), "threads": cpu.threads, "device": asdict(backend.device)},
            *map(asdict, lines),
        ]
        print(f"\nsaved in {save(a.save, rows, machine=machine)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
