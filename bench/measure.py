"""Tokens per second of an engine: prompts of a length, answers of a length, both together. Knows nothing of flags."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from ..runtime.engine import Engine
from ..runtime.request import Request
from ..runtime.sampler import Sampling


@dataclass(frozen=True)
class Test:
    """A prompt of `n_prompt` tokens followed by an answer of `n_gen`; either may be 0."""

    n_prompt: int
    n_gen: int

    __test__ = False  # not for pytest to collect

    @property
    def name(self) -> str:
        parts = (("pp", self.n_prompt), ("tg", self.n_gen))
        return "+".join(f"{kind}{count}" for kind, count in parts if count)

    @property
    def tokens(self) -> int:
        return self.n_prompt + self.n_gen


@dataclass(frozen=True)
class Rates:
    """Tokens per second of each repetition."""

    samples: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0


def measure(engine: Engine, test: Test, *, repetitions: int, warm_up: bool = True) -> Rates:
    """Runs a test `repetitions` times, after one run that does not count."""
    if warm_up:
        seconds(engine, test if test.n_prompt else Test(0, min(test.n_gen, 4)))
    return Rates(tuple(test.tokens / seconds(engine, test) for _ in range(repetitions)))


def seconds(engine: Engine, test: Test) -> float:
    """Wall-clock seconds of one run on an empty context, from the request to its end."""
    vocab = engine.model.config.vocab_size
    # An answer alone starts from one token, and its first step counts; what the tokens are does not matter.
    prompt = [(7 * i + 1) % vocab for i in range(max(test.n_prompt, 1))]
    request = Request(prompt, Sampling(temperature=0.0), max_tokens=test.n_gen, ignore_eos=True, cache_prompt=False)
    start = time.perf_counter()
    engine.submit(request).result()
    return time.perf_counter() - start
