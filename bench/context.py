"""What a prompt's step costs by how many tokens lie before it, and how much of that is attention.

python -m layerlift.bench.context MODEL.gguf [-c 32768] [-b 512] [-t 2] [--save NAME]

The rest of a step does not depend on the context: a column that grows means work that nobody asked for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..backends.base import Span, Step
from ..runtime.kv import KVCache
from ..runtime.model import Model
from .machine import describe_machine, save


@dataclass(frozen=True)
class Cost:
    """Milliseconds a token of a prompt's step behind `before` tokens."""

    before: int
    step: float
    attention: float  # of all layers, run alone

    @property
    def rest(self) -> float:
        return self.step - self.attention


def costs(model: Model, context: int, batch: int) -> list[Cost]:
    """Costs behind nothing, an eighth, a quarter, half and nearly all of `context` tokens, in steps of `batch`."""
    cache = model.new_cache(context)
    _fill(model, cache, batch)
    depths = sorted({0, *(context // n // batch * batch for n in (8, 4, 2)), context - batch})
    _step_seconds(model, cache, 0, batch)  # warms up
    found = []
    for before in depths:
        step, attention = _step_seconds(model, cache, before, batch), _attention_seconds(model, cache, before, batch)
        found.append(Cost(before, 1e3 * step / batch, 1e3 * attention / batch))
    return found


def _fill(model: Model, cache: KVCache, batch: int) -> None:
    """Keys and values of a first step in all rows: what they are does not matter, that memory holds them does."""
    model.forward(_step(cache, 0, batch))
    source = np.arange(batch, dtype=np.int32)
    for stage in model.stages:
        for store in cache.stores[stage.first_layer : stage.first_layer + len(stage.blocks)]:
            for start in range(batch, cache.capacity, batch):
                target = np.arange(start, min(start + batch, cache.capacity), dtype=np.int32)
                stage.backend.kv_copy(store, source[: len(target)], target)


def _step(cache: KVCache, before: int, batch: int) -> Step:
    positions = np.arange(before, before + batch, dtype=np.int32)
    span = Span(0, batch, np.arange(before + batch, dtype=np.int32))
    return Step(positions % 1000, positions, positions, (span,), np.array([batch - 1], np.int32), cache.stores)


def _step_seconds(model: Model, cache: KVCache, before: int, batch: int) -> float:
    start = time.perf_counter()
    backend, x = model.forward(_step(cache, before, batch))
    backend.download(x)
    return time.perf_counter() - start


def _attention_seconds(model: Model, cache: KVCache, before: int, batch: int) -> float:
    spec, seconds = model.config.attn, 0.0
    q = np.random.default_rng(0).standard_normal((batch, spec.n_heads * model.config.head_dim)).astype(np.float32)
    step = _step(cache, before, batch)
    for stage in model.stages:
        ours = replace(step, kv=cache.stores[stage.first_layer : stage.first_layer + len(stage.blocks)], scratch={})
        x = stage.backend.upload(q)
        start = time.perf_counter()
        stage.backend.download([stage.backend.attend(x, store, ours, spec) for store in ours.kv][-1])
        seconds += time.perf_counter() - start
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="layerlift.bench.context", description="a prompt's cost by the tokens before it")
    p.add_argument("model", metavar="GGUF")
    p.add_argument("-c", dest="context", type=int, default=32768, help="(default: 32768)")
    p.add_argument("-b", dest="batch", type=int, default=512, help="tokens of a step (default: 512)")
    p.add_argument("-t", dest="threads", type=int, help="(default: the physical cores)")
    p.add_argument("--save", metavar="NAME", help="keep the lines with commit and machine in bench/results/")
    a = p.parse_args(argv)
    machine = describe_machine()
    with Model.load(a.model, ngl=0, gpu="disable", threads=a.threads, context=a.context) as model:
        print(f"{machine.cpu_info}, {model.name}, ms a token in steps of {a.batch}")
        rows = costs(model, a.context, a.batch)
    print("| tokens before | step | attention | the rest |\n|---:|---:|---:|---:|")
    for c in rows:
        print(f"| {c.before} | {c.step:.2f} | {c.attention:.2f} | {c.rest:.2f} |")
    if a.save:
        print(f"saved in {save(a.save, [asdict(c) for c in rows], machine=machine)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
