"""Chooses the next token from a model's logits, and remembers what choosing needs. Knows nothing of devices or text.

A choice runs: logit bias, grammar, then the steps of `Sampling.samplers` in their order, then one draw. Temperature 0
or below takes the likeliest token after bias, penalties and grammar. Mirostat takes the place of the truncating
steps; penalties still apply.
"""

from __future__ import annotations

import math
import numbers
import secrets
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..backends.draw import Draw
from . import samplers as step
from .errors import BackendError, GrammarError, UserError
from .samplers import DEFAULT_ORDER, parse_samplers, parse_sampling_seq

if TYPE_CHECKING:
    from .grammar import Grammar

__all__ = ["DEFAULT_ORDER", "Sampled", "Sampler", "Sampling", "parse_samplers", "parse_sampling_seq"]

_RANGES = {  # field: lowest and highest value
    "temperature": (-math.inf, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
    "repeat_penalty": (1e-3, 1e3),
    "mirostat_tau": (0, math.inf),
    "mirostat_eta": (0, math.inf),
}
_INTEGERS = {
    "top_k": (-math.inf, math.inf),
    "repeat_last_n": (-1, math.inf),
    "mirostat": (0, 2),
    "n_probs": (-1, math.inf),
    "min_keep": (0, math.inf),
    "seed": (-math.inf, math.inf),
}
BOUNDS = _RANGES | _INTEGERS
HIGHEST = 1e30  # of a logit with its biases, which leaves later steps room within float32; below -1e30 is forbidden


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. A value out of range raises UserError that names the field."""

    temperature: float = 0.8  # 0 or less: always the likeliest token
    top_k: int = 40  # 0 or less: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    typical_p: float = 1.0  # 1: off
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # tokens that count for the penalties; -1: all, 0: none
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0  # bits
    mirostat_eta: float = 0.1
    seed: int | None = None  # None or -1: random
    logit_bias: tuple[tuple[int, float], ...] = ()  # (id, added to its logit); -inf forbids. A mapping is taken too
    samplers: tuple[str, ...] = DEFAULT_ORDER  # llama.cpp's names; "top_k;temp" is taken too
    n_probs: int = -1  # -1: no log probabilities; k: those of the choice and of the k likeliest
    min_keep: int = 1
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for names, kind, noun in ((_RANGES, numbers.Real, "a number"), (_INTEGERS, numbers.Integral, "an integer")):
            for name, (low, high) in names.items():
                value = getattr(self, name)
                if value is None and name == "seed":
                    continue
                if isinstance(value, bool) or not isinstance(value, kind):
                    raise UserError(f"{name} must be {noun}, not {value!r}")
                if not math.isfinite(value) or not low <= value <= high:
                    raise UserError(f"{name} is {value}, must be {_interval(low, high)}")
        if self.grammar is not None and not hasattr(self.grammar, "matcher"):
            hint = "compile_gbnf and compile_json_schema in layerlift.runtime.grammar make one"
            raise UserError(f"grammar is {self.grammar!r:.60}, must be a compiled Grammar", hint=hint)
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        object.__setattr__(self, "samplers", parse_samplers(self.samplers))

    def check_vocabulary(self, size: int) -> None:
        """Raises UserError if a setting names a token that a vocabulary of `size` does not have."""
        for token, _ in self.logit_bias:
            if token >= size:
                raise UserError(f"logit_bias: token {token} is outside the vocabulary of {size}")

    @property
    def penalizes(self) -> bool:
        """Whether tokens that came before change the logits."""
        changes = self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return changes and self.repeat_last_n != 0 and "penalties" in self.samplers


def _interval(low: float, high: float) -> str:
    if high < math.inf:
        return f"between {low} and {high}"
    return f"{low} or more" if low > -math.inf else "finite"


def _pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """Checked (id, bias) pairs of a mapping or of pairs."""
    pairs = []
    try:
        for token, value in bias.items() if isinstance(bias, Mapping) else bias:
            if isinstance(token, bool) or not isinstance(token, numbers.Integral) or token < 0:
                raise UserError(f"logit_bias: {token!r} is not a token id")
            if not isinstance(value, numbers.Real) or math.isnan(value) or value == math.inf:
                raise UserError(f"logit_bias: the bias of token {token} is {value!r}, must be a number or -inf")
            pairs.append((int(token), float(value)))
    except (TypeError, ValueError):
        raise UserError(f"logit_bias must be pairs of a token id and a number, not {bias!r}") from None
    return tuple(pairs)


@dataclass(frozen=True)
class Sampled:
    """A choice. Log probabilities are those of the model itself, before any step; None and () if not asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """One sequence's choices: the random stream, the tokens that count, Mirostat's state, the grammar's."""

    def __init__(self, sampling: Sampling, *, context: Iterable[int] = ()):
        self.sampling = sampling
        asked = sampling.seed
        # Any integer is a seed; the generator takes non-negative ones.
        self.seed = secrets.randbits(32) if asked is None or asked == -1 else int(asked) & (2**64 - 1)
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._matcher = sampling.grammar.matcher() if sampling.grammar else None
        self._mu = 2.0 * sampling.mirostat_tau
        self._surprise: tuple[int, float] | None = None  # of the last choice, until it is accepted
        self._recent: deque[int] = deque()
        self._counts: Counter[int] = Counter()
        self._vocabulary = np.empty(0, np.int32)
        if sampling.penalizes:
            window = sampling.repeat_last_n
            for token in deque(context, maxlen=None if window < 0 else window):
                self._remember(token)

    @property
    def greedy(self) -> bool:
        """Whether the choice is just the likeliest token of the logits as they are, so that a device may make it."""
        s = self.sampling
        plain = self._matcher is None and not s.logit_bias and not s.penalizes
        return plain and s.temperature <= 0 and s.n_probs < 0

    @property
    def top_k(self) -> int:
        """How many of the likeliest tokens are all that a draw needs, so that a device may select them; 0: all."""
        s = self.sampling
        whole = self._matcher is not None or s.logit_bias or s.penalizes or s.n_probs >= 0 or s.mirostat
        first = next((name for name in s.samplers if name != "penalties"), "")
        if whole or s.temperature <= 0 or s.top_k <= 0 or first != "top_k":
            return 0
        return max(s.top_k, s.min_keep)

    def draw(self, number: int) -> Draw | None:
        """The choice after `number` others, where it needs nothing but the logits as they are; None: it needs more.

        A device that makes it draws with random numbers of its own, from the same distribution.
        """
        s = self.sampling
        if self.greedy:
            return Draw()
        changed = self._matcher is not None or s.logit_bias or s.penalizes or s.n_probs >= 0 or s.mirostat
        if changed or s.temperature <= 0 or s.min_keep > 1 or ("typ_p" in s.samplers and s.typical_p < 1):
            return None
        steps = [name for name in s.samplers if name not in ("penalties", "typ_p")]
        if steps != [name for name in ("top_k", "top_p", "min_p", "temperature") if name in steps]:
            return None
        return Draw(
            s.temperature if "temperature" in steps else 1.0,
            s.top_k if "top_k" in steps else 0,
            s.top_p if "top_p" in steps else 1.0,
            s.min_p if "min_p" in steps else 0.0,
            self.seed,
            number,
        )

    def sample_among(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> Sampled:
        """The choice that `sample` makes, from the `top_k` likeliest tokens alone, as a backend's `topk` gives them."""
        assert self.greedy or self.top_k, "this draw needs all logits"
        if not math.isfinite(logits[0]):
            raise _broken(logits, ids)
        if self.greedy:
            return Sampled(int(ids[0]))
        return Sampled(self._chosen(*step.present(ids, logits)))

    def sample(self, logits: NDArray[np.float32]) -> Sampled:
        """Chooses from logits [vocab], which stay as they are; call `accept` with what is taken.

        Raises BackendError for logits that are not numbers, and UserError or GrammarError when nothing is allowed.
        """
        highest = int(logits.argmax())  # the place of a NaN if there is one
        if not math.isfinite(logits[highest]):
            raise _broken(logits)
        if self._vocabulary.size != logits.size:
            self._vocabulary = np.arange(logits.size, dtype=np.int32)
        biased = self._biased(logits)
        if self.sampling.temperature <= 0:
            token = highest if self.greedy else self._likeliest(biased)
        else:
            token = self._drawn(biased if self._matcher is None else self._matcher.allow(biased))
        return Sampled(token, *self._log_probabilities(logits, token))

    def accept(self, token: int) -> None:
        """Takes a token into the history, sampled here or given. Raises GrammarError if it breaks the grammar."""
        if self._matcher is not None:
            self._matcher.accept(token)
        if self._surprise is not None and self._surprise[0] == token:
            self._mu -= self.sampling.mirostat_eta * (self._surprise[1] - self.sampling.mirostat_tau)
        self._surprise = None
        if self.sampling.penalizes:
            self._remember(token)

    # -- parts --

    def _biased(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.sampling.logit_bias:
            return logits
        out = logits.copy()
        self.sampling.check_vocabulary(out.size)
        for token, bias in self.sampling.logit_bias:
            value = float(out[token]) + bias
            out[token] = min(value, HIGHEST) if value > -HIGHEST else -math.inf
        return out

    def _likeliest(self, logits: NDArray[np.float32]) -> int:
        if self.sampling.penalizes:
            _, logits = self._penalized(self._vocabulary, logits)
        token = int(logits.argmax())
        # The likeliest of all tokens, where the grammar permits it, is the likeliest of the permitted ones: one check
        # instead of a mask. With truncation and chance the same shortcut would shift the distribution, so a draw
        # masks first.
        if self._matcher is not None and not (logits[token] > -np.inf and self._matcher.permits(token)):
            logits = self._matcher.allow(logits)
            token = int(logits.argmax())
        if logits[token] == -np.inf:
            raise self._nothing_left()
        return token

    def _drawn(self, logits: NDArray[np.float32]) -> int:
        if not logits.max() > -np.inf:
            raise self._nothing_left()
        return self._chosen(self._vocabulary, logits)

    def _chosen(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
        found, s = (ids, logits), self.sampling
        order = s.samplers if not s.mirostat else ("penalties", "temperature")
        for name in order:
            found = self._step(name, *found)
        if s.mirostat:
            return self._mirostat(*found)
        ids, logits = found
        return int(ids[step.draw(logits, self._random.random())])

    def _step(self, name: str, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> step.Candidates:
        s = self.sampling
        if name == "penalties":
            return self._penalized(ids, logits) if s.penalizes else (ids, logits)
        if name == "top_k":
            return step.top_k(ids, logits, max(s.top_k, s.min_keep) if s.top_k > 0 else 0)
        if name == "typ_p":
            return step.typical_p(ids, logits, s.typical_p, s.min_keep)
        if name == "top_p":
            return step.top_p(ids, logits, s.top_p, s.min_keep)
        if name == "min_p":
            return step.min_p(ids, logits, s.min_p, s.min_keep)
        assert name == "temperature", name
        return step.temperature(ids, logits, s.temperature)

    def _mirostat(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
        if self.sampling.mirostat == 1:
            ids, logits = step.mirostat_1(ids, logits, self._mu, self._vocabulary.size)
        else:
            ids, logits = step.mirostat_2(ids, logits, self._mu)
        chosen = step.draw(logits, self._random.random())
        self._surprise = (int(ids[chosen]), (step.log_total(logits) - float(logits[chosen])) / math.log(2))
        return int(ids[chosen])

    def _penalized(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> step.Candidates:
        s, n = self.sampling, len(self._counts)
        tokens = np.fromiter(self._counts.keys(), np.int32, n)
        counts = np.fromiter(self._counts.values(), np.int32, n)
        return step.penalties(
            ids,
            logits,
            tokens,
            counts,
            repeat=s.repeat_penalty,
            presence=s.presence_penalty,
            frequency=s.frequency_penalty,
        )

    def _remember(self, token: int) -> None:
        self._counts[token] += 1
        window = self.sampling.repeat_last_n
        if window < 0:
            return
        self._recent.append(token)
        if len(self._recent) > window:
            oldest = self._recent.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    def _log_probabilities(
        self, logits: NDArray[np.float32], token: int
    ) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        n = self.sampling.n_probs
        if n < 0:
            return None, ()
        total = step.log_total(logits)
        top: tuple[tuple[int, float], ...] = ()
        if n:
            ids, best = step.top_k(self._vocabulary, logits, min(n, logits.size))
            top = tuple((int(i), float(value) - total) for i, value in zip(ids, best, strict=True))
        return float(logits[token]) - total, top

    def _nothing_left(self) -> GrammarError | UserError:
        if self._matcher is not None:
            return GrammarError("the grammar and logit_bias leave no token to choose")
        return UserError("logit_bias leaves no token to choose")


def _broken(logits: NDArray[np.float32], ids: NDArray[np.int32] | None = None) -> BackendError:
    at = int(np.flatnonzero(~(logits < np.inf))[0]) if not np.all(logits == -np.inf) else 0
    token = at if ids is None else ids[at]
    return BackendError(
        f"the model computed {logits[at]} as the logit of token {token}; the next token cannot be chosen",
        hint="check the device with 'layerlift devices --check', and the model file's checksum",
    )
