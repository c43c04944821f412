"""What is asked of the engine and what it answers: requests, events and their stream. Knows nothing of models."""

from __future__ import annotations

import numbers
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .errors import UserError
from .sampler import Sampling

if TYPE_CHECKING:
    from .session import Session

Reason = Literal["eos", "stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A prompt to be continued. A setting that makes no sense raises UserError.

    `max_tokens` -1 runs until the model ends its answer, -2 until the context is full. `keep` tokens stay in front when
    `context_shift` drops the older half of a full context. With `session`, the session's sequence goes on from the
    longest prefix it shares with `tokens`, and is still there afterwards.
    """

    tokens: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = -1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    context_shift: bool = False
    keep: int = 0
    cache_prompt: bool = True
    session: Session | None = None
    prompt_logprobs: bool = False
    special: bool = False  # show control tokens in the text
    pooling: Literal["none", "mean", "last"] = "none"  # other than "none": an embedding instead of text

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, numbers.Integral) or self.max_tokens < -2:
            raise UserError(f"max_tokens is {self.max_tokens!r}, must be an integer of at least -2")
        if not all(isinstance(text, str) for text in self.stop):
            raise UserError(f"stop is {self.stop!r}, must be texts")
        if self.pooling not in ("none", "mean", "last"):
            raise UserError(f"pooling is {self.pooling!r}, must be mean or last")


@dataclass(frozen=True)
class Timings:
    """Counts of tokens and wall-clock seconds of one request."""

    prompt_tokens: int = 0  # evaluated, without the cached ones
    cached_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0


@dataclass(frozen=True)
class Prefill:
    """`done` of `total` prompt tokens are in the cache; `cached` of them were there before."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class Token:
    """A generated token. `text` is empty while bytes of a character or a possible stop string are held back."""

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a stream. `text` is what was held back, `stop` the stop string and `eog` the end token met.

    An end token has no text, and is not among the generated ones.
    """

    reason: Reason
    text: str
    timings: Timings
    stop: str | None = None
    eog: Token | None = None
    prompt_logprobs: tuple[Token, ...] = ()
    embedding: tuple[float, ...] = ()


Event = Prefill | Token | Done
Sink = Callable[[Event | BaseException], None]


@dataclass(frozen=True)
class Completion:
    """All of a finished stream."""

    text: str
    tokens: tuple[Token, ...]
    reason: Reason
    timings: Timings
    stop: str | None
    eog: Token | None
    prompt_logprobs: tuple[Token, ...]
    embedding: tuple[float, ...]


class Stream(Iterator[Event]):
    """The events of one request, in order; errors of the request are raised here. Any one thread may read it.

    With a `sink`, events and errors go to it on the engine's thread instead; it must not block or raise.
    """

    def __init__(self, cancel: Callable[[], None], sink: Sink | None = None):
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._cancel = cancel
        self._ended = False
        self.put: Sink = sink or self._events.put  # for the engine: the next event

    def cancel(self) -> None:
        """Stops the request at its next step; the stream then ends with Done("cancelled")."""
        self._cancel()

    def __next__(self) -> Event:
        if self._ended:
            raise StopIteration
        event = self._events.get()
        if isinstance(event, BaseException):
            self._ended = True
            raise event
        self._ended = isinstance(event, Done)
        return event

    def result(self) -> Completion:
        """Waits for the end and gives everything."""
        text, tokens = [], []
        for event in self:
            if isinstance(event, Token):
                text.append(event.text)
                tokens.append(event)
            elif isinstance(event, Done):
                text.append(event.text)
                return Completion(
                    "".join(text),
                    tuple(tokens),
                    event.reason,
                    event.timings,
                    event.stop,
                    event.eog,
                    event.prompt_logprobs,
                    event.embedding,
                )
        raise AssertionError("a stream ends with Done or an error")
