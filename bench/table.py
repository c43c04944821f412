"""`layerlift bench`: the table of llamafile's model cards, for every combination of the settings asked for.

    layerlift bench -m MODEL [-m MODEL] [-p 512,1024] [-n 16] [-pg 512,128] [-t 2,4] [-ngl 0,999] [-o md]

Each of -p, -n, -b, -ub, -t, -ngl, -ctk and -ctv takes a list separated by commas. Every test runs once to warm up and
then -r times; the table has the mean of tokens per second, and the machine-readable forms its deviation as well.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ..backends.base import KVDtype
from ..runtime.engine import Engine
from ..runtime.errors import LayerliftError, UserError
from ..runtime.model import Model
from .machine import Machine, describe_machine, save
from .measure import Rates, Test, measure

KV_DTYPES = ("f16", "bf16", "f32")
FORMS = ("md", "csv", "json", "jsonl")
# Columns of settings, shown in the table where the command line named them.
SETTINGS = {"threads": "threads", "batch": "n_batch", "ubatch": "n_ubatch", "type_k": "type_k", "type_v": "type_v"}


@dataclass(frozen=True)
class Load:
    """What needs the model loaded anew."""

    model: str | None  # None: the default model
    ngl: int | Literal["auto"]
    threads: int | None


@dataclass(frozen=True)
class Run:
    """What needs a new engine. A step has `min(batch, ubatch)` tokens at most."""

    batch: int
    ubatch: int
    type_k: str
    type_v: str


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    options = parse(argv)
    try:
        machine = describe_machine()
        rows = []
        shown = [name for name in SETTINGS if getattr(options, name) != parse([]).__dict__[name]]
        for row in run(options, machine, _notify):
            rows.append(row)
            if options.output == "jsonl":
                print(json.dumps(row), flush=True)
        if options.output != "jsonl":
            print(render(rows, options.output, shown))
        if options.save:
            print(f"saved in {save(options.save, rows, machine=machine)}", file=sys.stderr)
    except LayerliftError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="layerlift bench", description="measure tokens per second", allow_abbrev=False)
    p.add_argument("-m", "--model", dest="models", action="append", metavar="GGUF", help="may be given several times")
    p.add_argument("-p", "--n-prompt", type=_counts, default=[512], help="prompt lengths (default: 512)")
    p.add_argument("-n", "--n-gen", type=_counts, default=[16], help="answer lengths (default: 16)")
    p.add_argument("-pg", dest="pairs", type=_pair, action="append", default=[], metavar="PP,TG", help="both in turn")
    p.add_argument("-r", "--repetitions", type=_positive, default=3, help="(default: 3)")
    p.add_argument("-b", "--batch-size", dest="batch", type=_counts, default=[512], help="tokens of a step at most")
    p.add_argument("-ub", "--ubatch-size", dest="ubatch", type=_counts, default=[512], help="the same, on the device")
    p.add_argument("-t", "--threads", type=_counts, default=[None], help="(default: the physical cores)")
    p.add_argument("-ngl", "--n-gpu-layers", dest="ngl", type=_layers, default=["auto"], help="(default: auto)")
    p.add_argument("--gpu", default="auto", help="auto, nvidia, amd, opencl or disable")
    p.add_argument("-ctk", "--cache-type-k", dest="type_k", type=_kv_types, default=["f16"])
    p.add_argument("-ctv", "--cache-type-v", dest="type_v", type=_kv_types, default=["f16"])
    p.add_argument("-o", "--output", choices=FORMS, default="md")
    p.add_argument("--no-warmup", dest="warm_up", action="store_false", help="count the first run too")
    p.add_argument("--save", metavar="NAME", help="keep the rows with commit and machine in bench/results/")
    return p.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------
# Running


def run(options: argparse.Namespace, machine: Machine, notify: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One row for each test of each combination."""
    tests = [Test(n, 0) for n in options.n_prompt if n] + [Test(0, n) for n in options.n_gen if n]
    tests += [Test(p, g) for p, g in options.pairs]
    if not tests:
        raise UserError("nothing to measure", hint="-p, -n or -pg")
    context = max(test.tokens for test in tests) + 16
    settings = itertools.product(options.batch, options.ubatch, options.type_k, options.type_v)
    runs = [Run(b, ub, k, v) for b, ub, k, v in settings if k == v]
    if not runs:
        raise UserError("-ctk and -ctv must be the same: keys and values share a type")
    loads = [Load(m, n, t) for m in options.models or [None] for n in options.ngl for t in options.threads]
    for load in loads:
        with _open(load, options.gpu, context, notify) as model:
            for r in runs:
                with ExitStack() as stack:
                    size = min(r.batch, r.ubatch)
                    engine = Engine(model, context=context, slots=1, batch=size, kv_dtype=cast(KVDtype, r.type_k))
                    stack.callback(engine.close)
                    if engine.context < context - 16:
                        raise UserError(f"{context - 16} tokens are more than the context of {engine.context}")
                    for test in tests:
                        notify(f"{Path(model.gguf.path).name} {test.name}")
                        rates = measure(engine, test, repetitions=options.repetitions, warm_up=options.warm_up)
                        yield _row(machine, model, load, r, test, rates)


def _open(load: Load, gpu: str, context: int, notify: Callable[[str], None]) -> Model:
    from ..runtime.sources import resolve

    path = resolve(load.model)
    return Model.load(path, ngl=load.ngl, gpu=gpu, context=context, threads=load.threads, notify=notify)


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


def _notify(line: str) -> None:
    if sys.stderr.isatty():
        print(f"{line}...", file=sys.stderr)


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


# ---------------------------------------------------------------------------------------------------------------
# Values of flags


def _list(text: str, value: Callable[[str], Any]) -> list[Any]:
    return list(dict.fromkeys(value(part) for part in text.split(",")))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a count")
    return int(text)


def _positive(text: str) -> int:
    count = _count(text)
    if not count:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _counts(text: str) -> list[int]:
    return _list(text, _count)


def _layers(text: str) -> list[int | str]:
    return _list(text, lambda part: part if part == "auto" else _count(part))


def _kv_types(text: str) -> list[str]:
    def kv_type(part: str) -> str:
        if part not in KV_DTYPES:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(KV_DTYPES)}")
        return part

    return _list(text, kv_type)


def _pair(text: str) -> tuple[int, int]:
    counts = _counts_in_order(text)
    if len(counts) != 2 or not all(counts):
        raise argparse.ArgumentTypeError(f"{text!r} is not two counts, as in 512,128")
    return counts[0], counts[1]


def _counts_in_order(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


if __name__ == "__main__":
    raise SystemExit(main())
