"""Ours and llama.cpp side by side: the same file, the same threads, in turn (A B A B), the ratio of the medians.

    python -m layerlift.bench.compare MODEL.gguf … [--peer-python PYTHON]
    python -m layerlift.bench.compare --shape 1b --formats Q6_K,Q8_0,Q4_K_M [--layers N]

Each runs in a process of its own, so that neither's memory or threads touch the other's. Ours goes through the whole
engine, which also picks the tokens; llama.cpp through its C functions, which do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..backends.cpu_threads import default_threads
from .machine import describe_machine, resident_bytes, save
from .measure import Test
from .peer import PROGRAM
from .synth import SHAPES, write_model
from .table import markdown


@dataclass(frozen=True)
class Result:
    """One test of one model. Tokens per second of each turn; bytes in RAM after the last."""

    model: str
    test: str
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    ours_resident: int
    peer_resident: int
    ours_load: float  # seconds
    peer_load: float

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.peer)


class Worker:
    """A process that has one model loaded and measures on order."""

    def __init__(self, command: Sequence[str]):
        self._program = command[0]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load: float = self._answer()["load"]

    def run(self, test: Test) -> dict[str, float]:
        """`seconds` of the test and bytes `resident` after it."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"n_prompt": test.n_prompt, "n_gen": test.n_gen}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise SystemExit(f"{self._program} ended with exit code {self._process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate(timeout=30)  # its input ends, and so does it


def compare(
    ours: Worker, peer: Worker, model: str, tests: Sequence[Test], *, rounds: int, pause: float = 0.3
) -> Iterator[Result]:
    """One result for each test: a warm-up of each, then `rounds` turns of each."""
    for test in tests:
        rates: dict[Worker, list[float]] = {ours: [], peer: []}
        resident: dict[Worker, int] = {}
        for turn in range(rounds + 1):
            for worker in (ours, peer):
                time.sleep(pause)  # threads of the other that still wait for work go to sleep
                answer = worker.run(test)
                resident[worker] = int(answer["resident"])
                if turn:
                    rates[worker].append(test.tokens / answer["seconds"])
        sizes = (resident[ours], resident[peer])
        yield Result(model, test.name, tuple(rates[ours]), tuple(rates[peer]), *sizes, ours.load, peer.load)


def table(results: Sequence[Result]) -> str:
    """The results as Markdown."""
    columns = ["model", "test", "ours t/s", "llama.cpp t/s", "ratio", "ours MiB", "llama.cpp MiB", "ours load s"]
    cells = [
        [
            r.model,
            r.test,
            f"{statistics.median(r.ours):.2f}",
            f"{statistics.median(r.peer):.2f}",
            f"{r.ratio:.2f}",
            f"{r.ours_resident / (1 << 20):.0f}",
            f"{r.peer_resident / (1 << 20):.0f}",
            f"{r.ours_load:.2f}",
        ]
        for r in results
    ]
    return markdown(columns, cells, right=columns[2:])


def work(path: str, threads: int, context: int) -> None:
    """Our side of the orders (see peer.py)."""
    from ..runtime.engine import Engine
    from ..runtime.model import Model
    from .measure import seconds

    start = time.perf_counter()
    with Model.load(path, ngl=0, gpu="disable", threads=threads, context=context) as model:
        load = time.perf_counter() - start
        engine = Engine(model, context=context, slots=1)
        print(json.dumps({"load": load}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            taken = seconds(engine, Test(order["n_prompt"], order["n_gen"]))
            print(json.dumps({"seconds": taken, "resident": resident_bytes()}), flush=True)
        engine.close()


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="layerlift.bench.compare", description="ours and llama.cpp side by side")
    p.add_argument("models", nargs="*", metavar="GGUF")
    p.add_argument("--shape", choices=list(SHAPES), default="1b", help="of the models written for --formats")
    p.add_argument("--formats", default="", help="write random models in these formats, and compare on them")
    p.add_argument("--layers", type=int, help="of the models written (default: the shape's)")
    p.add_argument("--vocab", metavar="GGUF", help="where to take their vocabulary from")
    p.add_argument("--folder", metavar="DIR", help="where to write them and leave them (default: a temporary one)")
    p.add_argument("--peer-python", default=sys.executable, help="an interpreter that has llama-cpp-python")
    p.add_argument("-p", dest="n_prompt", type=int, default=512)
    p.add_argument("-n", dest="n_gen", type=int, default=16)
    p.add_argument("-r", dest="rounds", type=int, default=5)
    p.add_argument("-t", dest="threads", type=int, default=default_threads())
    p.add_argument("-c", dest="context", type=int, default=8192)
    p.add_argument("--save", metavar="NAME", help="keep the results with commit and machine in bench/results/")
    p.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    if a.work:
        work(a.models[0], a.threads, a.context)
        return 0
    if a.peer_python == sys.executable and not find_spec("llama_cpp"):
        p.error("llama_cpp is not installed here; --peer-python names an interpreter that has it")
    tests = [test for test in (Test(a.n_prompt, 0), Test(0, a.n_gen)) if test.tokens]
    results: list[Result] = []
    with ExitStack() as stack:
        folder = a.folder or stack.enter_context(tempfile.TemporaryDirectory())
        for name, path, written in _models(a, Path(folder)):
            results += _compare_one(a, name, path, tests)
            if written and not a.folder:
                path.unlink()
    machine = describe_machine()
    print(f"{machine.cpu_info}, {a.threads} threads, commit {machine.commit}\n")
    print(table(results))
    if a.save:
        rows: list[dict[str, Any]] = [asdict(r) | {"ratio": r.ratio, "threads": a.threads} for r in results]
        print(f"\nsaved in {save(a.save, rows, machine=machine)}", file=sys.stderr)
    return 0


def _models(a: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """(name, path, written here) of each model."""
    for path in map(Path, a.models):
        yield path.stem, path, False
    for fmt in filter(None, a.formats.split(",")):
        path = folder / f"{a.shape}-{a.layers or 'all'}-{fmt}.gguf"
        if not path.exists():
            write_model(path, a.shape, fmt, a.layers, a.vocab, pure=False)
        yield f"{a.shape} {fmt}", path, True


def _compare_one(a: argparse.Namespace, name: str, path: Path, tests: Sequence[Test]) -> list[Result]:
    settings = [str(path), str(a.threads), str(a.context)]
    ours = [sys.executable, "-m", __spec__.name, "--work", str(path), "-t", str(a.threads), "-c", str(a.context)]
    with ExitStack() as stack:
        workers = []
        for command in (ours, [a.peer_python, "-c", PROGRAM, *settings]):
            workers.append(Worker(command))
            stack.callback(workers[-1].close)
        results = []
        for result in compare(workers[0], workers[1], name, tests, rounds=a.rounds):
            print(f"{name} {result.test}: {result.ratio:.2f}", file=sys.stderr)
            results.append(result)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
