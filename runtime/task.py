"""A request in progress: which tokens are evaluated, which are wanted next, what was answered so far.

Knows nothing of steps or devices; the engine feeds it logits and reads what it emits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backends.draw import Draw
from .request import Done, Prefill, Reason, Request, Sink, Stream, Timings, Token
from .sampler import Sampled, Sampler
from .stops import StopStrings

if TYPE_CHECKING:
    from .kv import Sequence
    from .tokenizer import Tokenizer


class Task:
    """Owned by the engine thread, but for `cancelled`, which any thread may set."""

    def __init__(self, request: Request, tokenizer: Tokenizer, wake: Callable[[], None], sink: Sink | None = None):
        self.request = request
        self.tokens = list(request.tokens)  # the prompt, then the answer: evaluated or about to be
        self.sequence: Sequence | None = None
        self.sampler = Sampler(request.sampling, context=request.tokens)
        self.cancelled = False
        self.stream = Stream(self._cancel, sink)
        self.prompt_left = True  # the prompt is not evaluated to its end yet
        self._eog = tokenizer.eog
        self._detokenizer = tokenizer.stream(special=request.special, after=self.tokens[-1])
        self._stops = StopStrings(request.stop)
        self._wake = wake
        self._prompt_logprobs: list[Token] = []
        self._pooled: NDArray[np.float32] | None = None
        self._timings = Timings()
        self._started = self._first_token = time.perf_counter()

    def _cancel(self) -> None:
        self.cancelled = True
        self._wake()

    # -- what is wanted --

    @property
    def pending(self) -> int:
        """Tokens known but not evaluated yet."""
        assert self.sequence is not None
        return len(self.tokens) - self.sequence.length

    @property
    def wants_all(self) -> bool:
        """Whether every prompt token's output is wanted, not only the last one's."""
        return self.prompt_left and (self.request.prompt_logprobs or self.request.pooling == "mean")

    @property
    def is_embedding(self) -> bool:
        return self.request.pooling != "none"

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is all that is needed of the logits."""
        return self.sampler.greedy and not (self.prompt_left and self.request.prompt_logprobs)

    @property
    def top_k(self) -> int:
        """How many of the most likely tokens are all that is needed of the logits; 0: all of them."""
        if self.prompt_left and self.request.prompt_logprobs:
            return 0
        return 1 if self.greedy else self.sampler.top_k

    def draw(self, ahead: int = 0) -> Draw | None:
        """The choice of the next token, or the one `ahead` tokens later; None where it needs all logits here."""
        if self.prompt_left and self.request.prompt_logprobs:
            return None
        return self.sampler.draw(self._timings.generated_tokens + ahead)

    @property
    def goes_on(self) -> bool:
        """Whether a token may be wanted after the next one."""
        return self.request.max_tokens < 0 or self._timings.generated_tokens + 1 < self.request.max_tokens

    # -- progress --

    def begin(self, sequence: Sequence) -> None:
        """Starts, or starts again after having been put back; `sequence` holds the cached prefix."""
        self.sequence = sequence
        if self.prompt_left:
            self._timings = replace(self._timings, cached_tokens=sequence.length)

    def prefilled(self, count: int) -> None:
        """`count` more prompt tokens are in the cache."""
        assert self.sequence is not None
        done, total = self.sequence.length, len(self.tokens)
        self._timings = replace(self._timings, prompt_tokens=self._timings.prompt_tokens + count)
        self.stream.put(Prefill(done, total, self._timings.cached_tokens))

    def score_prompt(self, logits: NDArray[np.float32], first: int) -> None:
        """Notes the log-probabilities of prompt tokens first + 1 …; logits [n, vocab] follow tokens first …"""
        if not self._prompt_logprobs:
            self._prompt_logprobs.append(Token(self.tokens[0], ""))
        n_probs = max(0, self.request.sampling.n_probs)
        for row, token in zip(logits, self.tokens[first + 1 :], strict=False):
            shifted = row - row.max()
            logprobs = shifted - np.log(np.exp(shifted).sum())
            best = np.argsort(-logprobs, kind="stable")[:n_probs]
            top = tuple((int(i), float(logprobs[i])) for i in best)
            self._prompt_logprobs.append(Token(token, "", float(logprobs[token]), top))

    def pool(self, states: NDArray[np.float32]) -> None:
        """Adds hidden states [n, d] to the embedding."""
        if self.request.pooling == "last":
            self._pooled = states[-1]
        else:
            total = states.sum(axis=0)
            self._pooled = total if self._pooled is None else self._pooled + total

    def pick(self, sampled: Sampled) -> Reason | None:
        """Takes the next token; the reason to end, or None to go on. Emits its text."""
        if self.prompt_left:
            self.prompt_left = False
            self._first_token = time.perf_counter()
            self._timings = replace(self._timings, prompt_seconds=self._first_token - self._started)
        if sampled.id in self._eog and not self.request.ignore_eos and self.request.max_tokens != -2:
            return self.end("eos", eog=Token(sampled.id, "", sampled.logprob, sampled.top))
        self.sampler.accept(sampled.id)
        self.tokens.append(sampled.id)
        generated = self._timings.generated_tokens + 1
        self._timings = replace(self._timings, generated_tokens=generated)
        text, stop = self._stops.feed(self._detokenizer.feed(sampled.id))
        self.stream.put(Token(sampled.id, text, sampled.logprob, sampled.top))
        if stop is not None:
            return self.end("stop", stop)
        return self.end("length") if generated == self.request.max_tokens else None

    def end(self, reason: Reason, stop: str | None = None, eog: Token | None = None) -> Reason:
        """Ends the stream with what was held back."""
        now = time.perf_counter()
        text = ""
        if stop is None:
            text, stop = self._stops.feed(self._detokenizer.flush())
            text += "" if stop else self._stops.flush()
        if self.prompt_left:
            self._timings = replace(self._timings, prompt_seconds=now - self._started)
        else:
            self._timings = replace(self._timings, generation_seconds=now - self._first_token)
        embedding: tuple[float, ...] = ()
        if self._pooled is not None:
            norm = float(np.linalg.norm(self._pooled)) or 1.0
            embedding = tuple((self._pooled / norm).tolist())
        self.stream.put(Done(reason, text, self._timings, stop, eog, tuple(self._prompt_logprobs), embedding))
        return reason

    def shifted(self, begin: int, end: int) -> None:
        """Tokens [begin, end) were dropped from the cache."""
        del self.tokens[begin:end]
