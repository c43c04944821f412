"""Clients of OpenAI's completions, many at once: what each was answered, and when. Knows HTTP and no server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Answer:
    """Seconds to the first piece, seconds between pieces, tokens as the server counts them, and the text."""

    first: float = 0.0
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    text: str = ""


async def ask(url: str, prompt: str, tokens: int) -> Answer:
    """One streamed completion at temperature 0. Raises OSError, ValueError for an answer that is none."""
    body = {"model": "default", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    data = json.dumps(body | {"stream_options": {"include_usage": True}, "ignore_eos": True}).encode()
    host = urlsplit(url).netloc
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    name, _, port = host.partition(":")
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(head.encode() + data)
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(f"{status!r} {await reader.read()!r}")
        return await _read(reader, started)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, started: float) -> Answer:
    answer, last, pieces = Answer(), 0.0, 0
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise ValueError(event["error"])
        if event.get("usage"):
            answer.tokens = event["usage"]["completion_tokens"]
        text = event["choices"][0].get("text") if event.get("choices") else ""
        if not text:
            continue
        now = time.perf_counter()
        if pieces:
            answer.between.append(now - last)
        else:
            answer.first = now - started
        answer.text, pieces, last = answer.text + text, pieces + 1, now
    answer.tokens = answer.tokens or pieces
    return answer


@dataclass(frozen=True)
class Run:
    """What `clients` at once were answered, by prompt, in how many seconds; `failed`: what went wrong with others."""

    clients: int
    seconds: float
    answers: dict[str, Answer]
    failed: list[str]

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers.values()) / self.seconds

    def first(self, percent: int) -> float:
        """Seconds to the first piece of an answer that so many percent do not exceed."""
        return percentile([answer.first for answer in self.answers.values()], percent)

    def between(self, percent: int) -> float:
        """The same of the seconds between two pieces."""
        return percentile([gap for answer in self.answers.values() for gap in answer.between], percent)


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] if ordered else 0.0


def run(url: str, prompts: Sequence[str], clients: int, tokens: int) -> Run:
    """Each client asks the next prompt as soon as it has its answer, until all are asked."""
    left, answers, failed = iter(prompts), {}, []

    async def client() -> None:
        for prompt in left:
            try:
                answers[prompt] = await ask(url, prompt, tokens)
            except (OSError, ValueError) as error:
                failed.append(f"{prompt[:40]!r}: {error!r}"[:300])

    async def all_clients() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - started

    return Run(clients, asyncio.run(all_clients()), answers, failed)
