"""Counters and histograms of the server, as Prometheus reads them. Knows nothing of how they come about."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine import Load
    from ..request import Timings

TTFT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, help: str) -> list[str]:
        total, lines = 0, [f"# HELP {name} {help}", f"# TYPE {name} histogram"]
        for bound, count in zip(self._bounds, self._counts, strict=False):
            total += count
            lines.append(f'{name}_bucket{{le="{bound:g}"}} {total}')
        total += self._counts[-1]
        return [*lines, f'{name}_bucket{{le="+Inf"}} {total}', f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


@dataclass
class Metrics:
    """Sums since the start. Belongs to the event loop."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0
    cached_tokens: int = 0
    requests: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram(TTFT_SECONDS))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(ITL_SECONDS))

    def count(self, timings: Timings) -> None:
        """Adds a request that has ended."""
        self.requests += 1
        self.prompt_tokens += timings.prompt_tokens
        self.prompt_seconds += timings.prompt_seconds
        self.generated_tokens += timings.generated_tokens
        self.generation_seconds += timings.generation_seconds
        self.cached_tokens += timings.cached_tokens

    def text(self, load: Load, context: int) -> str:
        """The page that Prometheus reads; llama-server's names, and layerlift's own for what it has not."""
        rates = (
            self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0,
            self.generated_tokens / self.generation_seconds if self.generation_seconds else 0.0,
        )
        rows = [
            ("llamacpp:prompt_tokens_total", "counter", "Prompt tokens evaluated.", self.prompt_tokens),
            ("llamacpp:prompt_seconds_total", "counter", "Seconds until first tokens.", self.prompt_seconds),
            ("llamacpp:tokens_predicted_total", "counter", "Tokens generated.", self.generated_tokens),
            ("llamacpp:tokens_predicted_seconds_total", "counter", "Seconds generating.", self.generation_seconds),
            ("llamacpp:prompt_tokens_seconds", "gauge", "Prompt tokens a second.", rates[0]),
            ("llamacpp:predicted_tokens_seconds", "gauge", "Generated tokens a second.", rates[1]),
            ("llamacpp:kv_cache_usage_ratio", "gauge", "Share of the cache in use.", load.rows / context),
            ("llamacpp:kv_cache_tokens", "gauge", "Tokens in the cache.", load.rows),
            ("llamacpp:requests_processing", "gauge", "Requests in slots.", load.running),
            ("llamacpp:requests_deferred", "gauge", "Requests waiting.", load.waiting),
            ("layerlift:requests_total", "counter", "Requests ended.", self.requests),
            ("layerlift:requests_cancelled_total", "counter", "Requests whose client left.", self.cancelled),
            ("layerlift:requests_failed_total", "counter", "Requests that failed.", self.failed),
            ("layerlift:requests_refused_total", "counter", "Requests refused, the queue being full.", self.refused),
            ("layerlift:prompt_tokens_cached_total", "counter", "Prompt tokens reused.", self.cached_tokens),
        ]
        lines = []
        for name, kind, help, value in rows:
            shown = f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
            lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}", f"{name} {shown}"]
        lines += self.first_token.lines("layerlift:time_to_first_token_seconds", "Seconds until the first token.")
        lines += self.between_tokens.lines("layerlift:inter_token_seconds", "Seconds between two tokens.")
        return "\n".join(lines) + "\n"
