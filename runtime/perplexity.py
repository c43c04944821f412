"""Perplexity of a text: exp of the mean negative log likelihood, chunk by chunk.

The text is tokenised once and cut into chunks of `context` tokens, a rest dropped. The model's start token, if it
wants one, takes the place of each chunk's first token. Of each chunk the tokens behind the first half are scored, so
that every one is judged with at least half a context before it. Knows nothing of files or terminals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Span, Step
from .errors import UserError

if TYPE_CHECKING:
    from ..backends.base import KVDtype
    from .kv import KVCache
    from .model import Model

ROWS_AT_ONCE = 128  # rows of logits held on the host


@dataclass(frozen=True)
class Score:
    """The score of the first `chunks` of `total` chunks, over `count` tokens."""

    chunks: int
    total: int
    count: int
    nll: float  # mean negative log likelihood, in nats
    nll_error: float  # its standard error

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nll, 700.0))

    @property
    def error(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.nll_error


def perplexity(
    model: Model,
    tokens: Sequence[int],
    *,
    context: int = 512,
    batch: int = 512,
    kv_dtype: KVDtype = "f16",
    chunks: int | None = None,
) -> Iterator[Score]:
    """Scores `tokens`, of at most `chunks` chunks; yields the score so far after each one.

    Raises UserError when the text is shorter than a chunk or a chunk is too small to score.
    """
    if context < 4:
        raise UserError(f"-c {context} is too small to score anything", hint="-c 512 is usual")
    total = len(tokens) // context
    if total < 1:
        raise UserError(f"the text has {len(tokens)} tokens, fewer than a chunk of {context}", hint="lower -c")
    total = min(total, chunks or total)
    cache = model.new_cache(context, kv_dtype)
    first = context // 2
    losses: list[NDArray[np.float64]] = []
    for chunk in range(total):
        ids = np.array(tokens[chunk * context : (chunk + 1) * context], np.int32)
        if model.tokenizer.add_bos and model.tokenizer.bos is not None:
            ids[0] = model.tokenizer.bos
        losses.append(_losses(model, cache, ids, first, batch))
        yield _score(np.concatenate(losses), chunk + 1, total)


def _losses(model: Model, cache: KVCache, ids: NDArray[np.int32], first: int, batch: int) -> NDArray[np.float64]:
    """Negative log likelihoods [context - first - 1] of the tokens behind position `first`."""
    sequence = cache.open(share=False)
    found: list[NDArray[np.float64]] = []
    try:
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch]
            positions = np.arange(start, start + len(part), dtype=np.int32)
            rows = cache.reserve(sequence, len(part))
            span = Span(0, len(part), sequence.rows)
            # The last token's output would predict what the chunk does not hold.
            outputs = np.flatnonzero((positions >= first) & (positions < len(ids) - 1)).astype(np.int32)
            x = model.forward(Step(part, positions, rows, (span,), outputs, cache.stores))
            cache.commit(sequence, part.tolist())
            if len(outputs):
                found.append(_nll(model, x, ids[start + outputs + 1]))
    finally:
        cache.close(sequence, keep=False)
    return np.concatenate(found)


def _nll(model: Model, x: tuple, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log p(target) for each row of what `forward` returned: log-sum-exp in float64."""
    backend, logits = model.logits(*x)
    host = backend.download(logits)  # [n, vocab]
    parts = []
    for start in range(0, len(targets), ROWS_AT_ONCE):
        rows = host[start : start + ROWS_AT_ONCE].astype(np.float64)
        wanted = rows[np.arange(len(rows)), targets[start : start + len(rows)]]
        top = rows.max(axis=1)
        parts.append(top + np.log(np.exp(rows - top[:, None]).sum(axis=1)) - wanted)
    return np.concatenate(parts)


def _score(losses: NDArray[np.float64], chunks: int, total: int) -> Score:
    mean = float(losses.mean())
    error = float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0
    return Score(chunks, total, len(losses), mean, error)
