"""How fast the server is for one client and for many: `python -m layerlift.bench.server [--url URL] [--clients 4]`.

Starts `layerlift --server` with the default model unless --url names a server of OpenAI's API, and prints a line for
each number of clients: tokens a second of all, time to the first token, and time between two tokens (median and 99th
percentile, milliseconds).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Answer:
    """Seconds to the first piece, seconds between pieces, and tokens as the server counts them."""

    first: float = 0.0
    between: list[float] = field(default_factory=list)
    tokens: int = 0


def ask(url: str, model: str, prompt: str, tokens: int) -> Answer:
    """One streamed completion at temperature 0."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), head)
    answer, last = Answer(), time.perf_counter()
    started, pieces = last, 0
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                answer.tokens = event["usage"]["completion_tokens"]
            if not event.get("choices") or not event["choices"][0].get("text"):
                continue
            now = time.perf_counter()
            if pieces:
                answer.between.append(now - last)
            else:
                answer.first = now - started
            pieces, last = pieces + 1, now
    answer.tokens = answer.tokens or pieces
    return answer


def measure(url: str, model: str, clients: int, turns: int, tokens: int) -> dict[str, float]:
    """`clients` at once ask `turns` questions each."""
    answers: list[Answer] = []
    failed: list[BaseException] = []

    def work(client: int) -> None:
        try:
            for turn in range(turns):
                prompt = f"Client {client} asks in turn {turn}: tell me about the number {client * 100 + turn}."
                answers.append(ask(url, model, prompt, tokens))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failed:
        raise failed[0]
    between = sorted(gap for answer in answers for gap in answer.between)
    firsts = sorted(answer.first for answer in answers)
    return {
        "clients": clients,
        "answers": len(answers),
        "tokens/s": sum(answer.tokens for answer in answers) / seconds,
        "first ms": 1000 * firsts[len(firsts) // 2],
        "between ms": 1000 * between[len(between) // 2],
        "between p99 ms": 1000 * between[min(len(between) * 99 // 100, len(between) - 1)],
    }


@contextmanager
def server(flags: list[str]) -> Iterator[str]:
    """A layerlift server of its own."""
    command = [sys.executable, "-m", "layerlift", "--server", "--nobrowser", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("listening at "):
                yield line.split()[2].rstrip("/")
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--model", default="default", help="the model's name for a server that asks for one")
    parser.add_argument("--clients", default="1,4")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    options, flags = parser.parse_known_args()

    def run(url: str) -> None:
        ask(url, options.model, "Warm up", 4)
        for clients in map(int, options.clients.split(",")):
            row = measure(url, options.model, clients, options.turns, options.tokens)
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)

    if options.url:
        run(options.url.rstrip("/"))
        return
    with server(flags) as url:
        run(url)


if __name__ == "__main__":
    main()
