"""Tokens per second of an engine: prompts of a length (pp) and answers of a length (tg). Knows nothing of flags."""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .request import Request
from .sampler import Sampling

if TYPE_CHECKING:
    from .engine import Engine
    from .model import Model


@dataclass(frozen=True)
class Row:
    """One line of the table; `t_s` and `deviation` are tokens per second."""

    cpu_info: str
    model_filename: str
    size: str
    ngl: int
    device: str
    test: str  # "pp512", "tg16"
    t_s: float
    deviation: float
    samples: tuple[float, ...]


def measure(engine: Engine, *, n_prompt: Sequence[int], n_gen: Sequence[int], repetitions: int) -> Iterator[Row]:
    """A row for each length, after one warm-up each."""
    facts = describe_model(engine.model)
    for kind, lengths in (("pp", n_prompt), ("tg", n_gen)):
        for length in lengths:
            if not length:
                continue
            rates = [length / _seconds(engine, kind, length) for _ in range(repetitions + 1)][1:]
            deviation = statistics.stdev(rates) if len(rates) > 1 else 0.0
            mean = statistics.fmean(rates)
            yield Row(**facts, test=f"{kind}{length}", t_s=mean, deviation=deviation, samples=tuple(rates))


def _seconds(engine: Engine, kind: str, length: int) -> float:
    """Wall-clock seconds of one prompt of `length` tokens, or of `length` tokens generated one by one."""
    vocab = engine.model.config.vocab_size
    prompt = [(7 * i + 1) % vocab for i in range(length if kind == "pp" else 1)]
    request = Request(
        prompt,
        Sampling(temperature=0.0),
        max_tokens=0 if kind == "pp" else length,
        ignore_eos=True,
        cache_prompt=False,
    )
    start = time.perf_counter()
    engine.submit(request).result()
    return time.perf_counter() - start


def describe_model(model: Model) -> dict:
    """The columns that all rows share."""
    devices = dict.fromkeys(stage.device for stage in model.plan.stages if stage.device.is_gpu)
    return {
        "cpu_info": _cpu_info(),
        "model_filename": Path(str(model.gguf.path)).name.removesuffix(".gguf"),
        "size": f"{model.gguf.nbytes / (1 << 30):.2f} GiB",
        "ngl": model.plan.layers_gpu,
        "device": ", ".join(d.name for d in devices),
    }


def _cpu_info() -> str:
    """The processor as the system names it."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    if names:
        return names[0]
    import platform

    return platform.processor() or platform.machine()


def table(rows: Sequence[Row], form: str) -> str:
    """The rows as Markdown ("md"), "json" or "csv"; the GPU's columns only where one is used."""
    if form == "json":
        return json.dumps([asdict(row) for row in rows], indent=2)
    gpu = ("ngl", "device") if any(row.ngl for row in rows) else ()
    columns = ("cpu_info", "model_filename", "size", *gpu, "test", "t/s")
    cells = [[f"{row.t_s:.2f}" if c == "t/s" else str(getattr(row, c)) for c in columns] for row in rows]
    if form == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([columns, *cells])
        return out.getvalue().rstrip("\n")
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    last = len(columns) - 1

    def line(parts: Sequence[str]) -> str:
        padded = [p.rjust(w) if i == last else p.ljust(w) for i, (p, w) in enumerate(zip(parts, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width for width in widths[:-1]] + ["-" * (widths[-1] - 1) + ":"]
    return "\n".join([line(columns), line(rule), *map(line, cells)])
