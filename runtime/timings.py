"""Timings of requests, summed and in words. Knows nothing of how they were taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Timings


def add(a: Timings, b: Timings) -> Timings:
    """The sum of two requests' timings."""
    from dataclasses import fields

    return type(a)(**{f.name: getattr(a, f.name) + getattr(b, f.name) for f in fields(a)})


def describe(timings: Timings, *, load_seconds: float | None = None) -> str:
    """The lines that llama.cpp's users know, in milliseconds."""
    lines = [] if load_seconds is None else [f"        load time = {1000 * load_seconds:10.2f} ms"]
    prompt, answer = timings.prompt_seconds, timings.generation_seconds
    # The first token of an answer comes from the prompt's own step.
    runs = max(timings.generated_tokens, 0)
    lines += [
        f" prompt eval time = {_rate(prompt, timings.prompt_tokens, 'tokens')}",
        f"        eval time = {_rate(answer, runs, 'runs')}",
        f"       total time = {1000 * (prompt + answer):10.2f} ms / {timings.prompt_tokens + runs:5d} tokens",
    ]
    return "\n".join(f"llama_print_timings:{line}" for line in lines)


def _rate(seconds: float, count: int, noun: str) -> str:
    each = 1000 * seconds / count if count else 0.0
    rate = count / seconds if seconds else 0.0
    return f"{1000 * seconds:10.2f} ms / {count:5d} {noun:6s} ({each:8.2f} ms per token, {rate:8.2f} tokens per second)"
