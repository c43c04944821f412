"""`layerlift bench`: the table of llamafile's model cards, for every combination of the settings asked for.

Every test runs once to warm up and then as often as asked; the table has the mean of tokens per second, and the
machine-readable forms its deviation as well. Knows nothing of flags.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..backends.base import KVDtype
from ..backends.kernel_settings import KernelSettings
from ..runtime.engine import Engine
from ..runtime.errors import UserError
from ..runtime.model import Model
from .machine import Machine
from .measure import Rates, Test, measure

# Columns of settings, shown in the table where the command line named them.
SETTINGS = {"threads": "threads", "batch": "n_batch", "ubatch": "n_ubatch", "type_k": "type_k", "type_v": "type_v"}


@dataclass(frozen=True)
class Settings:
    """What to measure: every combination of the lists. `shown` are settings that become columns of the table."""

    models: Sequence[str | None] = (None,)  # None: the default model
    n_prompt: Sequence[int] = (512,)
    n_gen: Sequence[int] = (16,)
    pairs: Sequence[tuple[int, int]] = ()  # prompt and answer in turn
    repetitions: int = 3
    batch: Sequence[int] = (512,)
    ubatch: Sequence[int] = (512,)
    threads: Sequence[int | None] = (None,)
    ngl: Sequence[int | Literal["auto"]] = ("auto",)
    gpu: str = "auto"
    type_k: Sequence[KVDtype] = ("f16",)
    type_v: Sequence[KVDtype] = ("f16",)
    warm_up: bool = True
    kernels: KernelSettings = KernelSettings()  # noqa: RUF009  (frozen)
    shown: Sequence[str] = ()


@dataclass(frozen=True)
class Load:
    """What needs the model loaded anew."""

    model: str | None
    ngl: int | Literal["auto"]
    threads: int | None


@dataclass(frozen=True)
class Run:
    """What needs a new engine. A step has `min(batch, ubatch)` tokens at most."""

    batch: int
    ubatch: int
    type_k: KVDtype
    type_v: KVDtype


# ---------------------------------------------------------------------------------------------------------------
# Running


def run(
    settings: Settings,
    machine: Machine,
    notify: Callable[[str], None],
    say: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """One row for each test of each combination. `notify` gets what passes, `say` what is to stay."""
    tests = [Test(n, 0) for n in settings.n_prompt if n] + [Test(0, n) for n in settings.n_gen if n]
    tests += [Test(p, g) for p, g in settings.pairs]
    if not tests:
        raise UserError("nothing to measure", hint="-p, -n or -pg")
    context = max(test.tokens for test in tests) + 16
    choices = itertools.product(settings.batch, settings.ubatch, settings.type_k, settings.type_v)
    runs = [Run(b, ub, k, v) for b, ub, k, v in choices if k == v]
    if not runs:
        raise UserError("-ctk and -ctv must be the same: keys and values share a type")
    loads = [Load(m, n, t) for m in settings.models for n in settings.ngl for t in settings.threads]
    for load in loads:
        with _open(load, settings, context, say if settings.kernels.recompile and say else notify) as model:
            for r in runs:
                with ExitStack() as stack:
                    size = min(r.batch, r.ubatch)
                    engine = Engine(model, context=context, slots=1, batch=size, kv_dtype=r.type_k)
                    stack.callback(engine.close)
                    if engine.context < context - 16:
                        raise UserError(f"{context - 16} tokens are more than the context of {engine.context}")
                    for test in tests:
                        notify(f"{Path(model.gguf.path).name} {test.name}")
                        rates = measure(engine, test, repetitions=settings.repetitions, warm_up=settings.warm_up)
                        yield _row(machine, model, load, r, test, rates)


def _open(load: Load, settings: Settings, context: int, notify: Callable[[str], None]) -> Model:
    from ..runtime.sources import resolve

    path = resolve(load.model)
    return Model.load(
        path,
        ngl=load.ngl,
        gpu=settings.gpu,
        context=context,
        threads=load.threads,
        kernels=settings.kernels,
        notify=notify,
    )


def _row(machine: Machine, model: Model, load: Load, r: Run, test: Test, rates: Rates) -> dict[str, Any]:
    devices = dict.fromkeys(stage.device for stage in model.plan.stages if stage.device.is_gpu)
    return {
        "commit": machine.commit,
        "time": machine.time,
        "cpu_info": machine.cpu_info,
        "device": ", ".join(d.name for d in devices),
        "model_filename": Path(model.gguf.path).name.removesuffix(".gguf").removesuffix(".llamafile"),
        "model_size": model.gguf.nbytes,
        "ngl": model.plan.layers_gpu,
        "threads": load.threads or machine.cores,
        "n_batch": r.batch,
        "n_ubatch": r.ubatch,
        "type_k": r.type_k,
        "type_v": r.type_v,
        "test": test.name,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "avg_ts": rates.mean,
        "stddev_ts": rates.deviation,
        "samples_ts": list(rates.samples),
    }


# ---------------------------------------------------------------------------------------------------------------
# Writing


def render(rows: Sequence[dict[str, Any]], form: str, shown: Sequence[str] = ()) -> str:
    """The rows as "md", "csv" or "json". The table has the GPU's columns where one is used, and those `shown`."""
    if form == "json":
        return json.dumps(rows, indent=2)
    if form == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        keys = [key for key in rows[0] if key != "samples_ts"]
        writer.writerows([keys, *([row[key] for key in keys] for row in rows)])
        return out.getvalue().rstrip("\n")
    gpu = ["ngl", "device"] if any(row["ngl"] for row in rows) else []
    columns = ["cpu_info", "model_filename", "size", *gpu, *(SETTINGS[name] for name in shown), "test", "t/s"]
    special = {"size": lambda row: size_text(row["model_size"]), "t/s": lambda row: f"{row['avg_ts']:.2f}"}
    cells = [[special[c](row) if c in special else str(row[c]) for c in columns] for row in rows]
    return markdown(columns, cells, right=("size", "ngl", "t/s"))


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """A Markdown table with aligned columns; those named in `right` stand at the right."""
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    ends = [c in right for c in columns]

    def line(parts: Sequence[str]) -> str:
        padded = (p.rjust(w) if end else p.ljust(w) for p, w, end in zip(parts, widths, ends, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (w - end) + ":" * end for w, end in zip(widths, ends, strict=True)]
    return "\n".join([line(columns), line(rule), *map(line, cells)])


def size_text(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / (1 << 20):.2f} MiB"
