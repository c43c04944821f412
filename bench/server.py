"""How fast the server is for one client and for many, and whether each gets its own answer:
`python -m layerlift.bench.server [--clients 1,64] [--peer-python PYTHON] [--save] [flags of layerlift --server]`.

Starts `layerlift --server` (with --peer-python, llama-cpp-python's server in that Python) and has clients ask
--requests prompts at temperature 0; a single client asks --alone of them. Each prompt holds a number of its own, so
that a mix-up of answers shows. With --texts FILE, answers of a single client are kept there and those of many compared.
"CPU ms" is the processor time of a generated token, its share of the prompt included, which says more than the clock
on a machine that others use; "own µs" is what of it threads of the server take that do not compute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import clients
from .machine import describe_machine, save

COLUMNS = (
    "server",
    "clients",
    "answered",
    "as alone",
    "mixed up",
    "tokens/s",
    "first ms",
    "between ms",
    "p99 ms",
    "CPU ms",
    "own µs",
)


def prompts(count: int) -> dict[str, str]:
    """Texts that each hold a number of their own, which a model is led to repeat, by these numbers."""
    # From 1 on: 100000 is a number that models write unasked.
    numbers = [str(100_000 + i * 7919 % 900_000) for i in range(1, count + 1)]
    return {n: f"The number of ticket {i} is {n}. Once more, the number is" for i, n in enumerate(numbers)}


def thread_seconds(pid: int) -> list[float]:
    """Processor time of each thread of a process, its first thread first (Linux; elsewhere nothing)."""
    threads = sorted(Path(f"/proc/{pid}/task").glob("*/schedstat"), key=lambda path: int(path.parent.name))
    return [int(path.read_text().split()[0]) / 1e9 for path in threads]


def own_seconds(before: Sequence[float], after: Sequence[float], computing: int) -> float:
    """Processor time of the server's own threads: all but those `computing`, which take the most of it."""
    spent = [b - a for a, b in zip([*before, *[0.0] * len(after)], after, strict=False)]
    return spent[0] + sum(sorted(spent[1:])[:-computing]) if spent else 0.0


def measure(
    name: str, url: str, pid: int, asked: dict[str, str], count: int, tokens: int, texts: dict[str, str], threads: int
) -> dict[str, Any]:
    """A row of the table; `asked` as `prompts` gives it. Answers not in `texts` are put there, others must be equal."""
    before = thread_seconds(pid)
    run = clients.run(url, list(asked.values()), count, tokens)
    after = thread_seconds(pid)
    spent, own = sum(after) - sum(before), own_seconds(before, after, threads)
    for line in run.failed[:3]:
        print(line, file=sys.stderr)
    known = [prompt for prompt in run.answers if prompt in texts]
    same = sum(run.answers[prompt].text == texts[prompt] for prompt in known)
    if count == 1:
        texts.update({prompt: answer.text for prompt, answer in run.answers.items()})
    mixed = sum(n in answer.text for n, p in asked.items() for prompt, answer in run.answers.items() if prompt != p)
    generated = sum(answer.tokens for answer in run.answers.values())
    return {
        "server": name,
        "clients": count,
        "answered": f"{len(run.answers)} of {len(asked)}",
        "as alone": f"{same} of {len(known)}" if known and count > 1 else "",
        "mixed up": mixed,
        "tokens/s": round(run.tokens_per_second, 1),
        "first ms": round(1000 * run.first(50)),
        "between ms": round(1000 * run.between(50), 1),
        "p99 ms": round(1000 * run.between(99), 1),
        "CPU ms": round(1e3 * spent / generated, 1) if spent else "",
        "own µs": round(1e6 * own / generated) if own and name == "layerlift" else "",
    }


@contextmanager
def started(command: list[str], url: str | None = None) -> Iterator[tuple[str, int]]:
    """Where a server of its own answers, and its process; it says so itself where `url` is None."""
    said = subprocess.PIPE if url is None else subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, text=True)
    try:
        where = url or _said(process)
        _wait(f"{where}/v1/models")
        yield where, process.pid
    finally:
        process.terminate()
        process.wait(20)


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    line = next((line for line in process.stderr if line.startswith("listening at ")), "")
    if not line:
        raise SystemExit("the server did not start")
    return line.split()[2].rstrip("/")


def _wait(url: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing answers at {url}") from None
            time.sleep(0.2)


def peer_command(python: str, model: str, threads: int, port: int) -> list[str]:
    """llama-cpp-python's server. It answers one request at a time; another must not cut that one short."""
    flags = ["--n_ctx", "8192", "--n_threads", str(threads), "--interrupt_requests", "false", "--port", str(port)]
    return [python, "-m", "llama_cpp.server", "--model", model, *flags]


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="layerlift.bench.server", description=(__doc__ or "").splitlines()[0])
    p.add_argument("-m", "--model", help="GGUF file (default: the default model)")
    p.add_argument("--clients", default="1,64", help="how many at once, one row each")
    p.add_argument("--requests", type=int, default=1280)
    p.add_argument("--alone", type=int, default=160, help="how many of them a single client asks")
    p.add_argument("--tokens", type=int, default=12, help="of each answer")
    p.add_argument("-t", "--threads", type=int, default=2)
    p.add_argument("--texts", type=Path, help="JSON file of a single client's answers")
    p.add_argument("--peer-python", help="measure the server of the llama-cpp-python in this Python instead")
    p.add_argument("--save", action="store_true", help="keep the rows in bench/results")
    a, flags = p.parse_known_args(argv)
    from ..runtime.sources import resolve

    model, texts = str(resolve(a.model)), {}
    if a.texts and a.texts.exists():
        texts = json.loads(a.texts.read_text("utf-8"))
    ours = [sys.executable, "-m", "layerlift", "--server", "--nobrowser", "-m", model, "-t", str(a.threads), *flags]
    port = 8765
    command = peer_command(a.peer_python, model, a.threads, port) if a.peer_python else ours
    name = "llama-cpp-python" if a.peer_python else "layerlift"
    rows = []
    for count in map(int, a.clients.split(",")):  # each with a server of its own, which knows none of the prompts yet
        with started(command, f"http://127.0.0.1:{port}" if a.peer_python else None) as (url, pid):
            clients.run(url, ["Warm up"], 1, 4)
            step = max(1, a.requests // a.alone) if count == 1 else 1
            asked = dict(list(prompts(a.requests).items())[::step])
            rows.append(measure(name, url, pid, asked, count, a.tokens, texts, a.threads))
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if a.texts:
        a.texts.write_text(json.dumps(texts), "utf-8")
    print(table(rows))
    if a.save:
        print(save(f"server-{name}", rows, machine=describe_machine()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
