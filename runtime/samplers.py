"""The steps of sampling: pure functions from (ids, logits) to (ids, logits). Knows nothing of text or state.

`ids` [n] int32 are token ids and `logits` [n] float32 what the model gave them. No step modifies its arrays. A step
that truncates keeps at least one token; a logit of -inf is a token that may not come and is never kept by choice.
Names, order and meaning follow llama.cpp, so that settings carry over.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..backends.selection import ascending, highest
from .errors import UserError

Ids = NDArray[np.int32]
Logits = NDArray[np.float32]
Candidates = tuple[Ids, Logits]

DEFAULT_ORDER = ("penalties", "top_k", "typ_p", "top_p", "min_p", "temperature")

# llama.cpp's other steps. They are off unless their own settings turn them on, which do not exist here.
ABSENT = ("dry", "top_n_sigma", "xtc")

_ALIASES = {
    "typical_p": "typ_p",
    "typical": "typ_p",
    "typ": "typ_p",
    "nucleus": "top_p",
    "temp": "temperature",
}
_LETTERS = {
    "e": "penalties",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "t": "temperature",
    "d": "dry",
    "s": "top_n_sigma",
    "x": "xtc",
}


def parse_samplers(names: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """The order named by "top_k;top_p;temp" or a list of such names. Raises UserError for an unknown name."""
    words = names.split(";") if isinstance(names, str) else names
    squeezed = {name.replace("_", ""): name for name in (*DEFAULT_ORDER, *ABSENT, *_ALIASES)}
    order = []
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"samplers: {word!r} is not a name")
        key = word.strip().lower().replace("-", "").replace("_", "")
        if not key:
            continue
        if key not in squeezed:
            raise UserError(f"samplers: {word!r} is unknown", hint=f"known: {', '.join(DEFAULT_ORDER)}")
        name = squeezed[key]
        order.append(_ALIASES.get(name, name))
    return tuple(name for name in order if name not in ABSENT)


def parse_sampling_seq(letters: str) -> tuple[str, ...]:
    """The order named by one letter each, as in "edskypmxt". Raises UserError for an unknown letter."""
    for letter in letters:
        if letter not in _LETTERS:
            raise UserError(f"sampling-seq: {letter!r} is unknown", hint=f"known: {' '.join(_LETTERS)}")
    return parse_samplers([_LETTERS[letter] for letter in letters])


# ---------------------------------------------------------------------------------------------------------------
# Parts


def descending(ids: Ids, logits: Logits) -> Candidates:
    """Likeliest first; equal logits in the order they came."""
    order = ascending(-logits)
    return ids[order], logits[order]


def softmax(logits: Logits) -> NDArray[np.float32]:
    """Probabilities [n]."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return p


def log_total(logits: Logits) -> float:
    """log(sum(exp(logits))): a logit minus this is the log probability."""
    highest = logits.max()
    return float(highest) + float(np.log(np.exp(logits - highest).sum()))


def present(ids: Ids, logits: Logits) -> Candidates:
    """Without the tokens at -inf."""
    keep = logits > -np.inf
    return (ids, logits) if keep.all() else (ids[keep], logits[keep])


def draw(logits: Logits, uniform: float) -> int:
    """The index that a uniform number of [0, 1) picks from softmax(logits)."""
    total = np.cumsum(softmax(logits), dtype=np.float64)
    # The product may round up to the total itself; the first index that reaches the total is the last one possible.
    last = int(np.searchsorted(total, total[-1]))
    return min(int(np.searchsorted(total, uniform * total[-1], side="right")), last)


# ---------------------------------------------------------------------------------------------------------------
# Steps


def penalties(
    ids: Ids,
    logits: Logits,
    tokens: Ids,
    counts: Ids,
    *,
    repeat: float,
    presence: float,
    frequency: float,
) -> Candidates:
    """Makes `tokens`, seen `counts` times each, less likely.

    The repeat penalty divides positive logits and multiplies others (Keskar et al. 2019, arXiv:1909.05858, with the
    usual mend for negative logits); presence is subtracted once, frequency once per occurrence.
    """
    inside = tokens < ids.size
    if inside.all() and np.array_equal(ids[tokens], tokens):
        at = tokens  # the whole vocabulary: a token's id is its place
    else:
        _, at, kept = np.intersect1d(ids, tokens, return_indices=True)
        counts = counts[kept]
    out = logits.copy()
    old = out[at]
    new = np.where(old <= 0, old * np.float32(repeat), old / np.float32(repeat))
    out[at] = new - (counts * np.float32(frequency) + np.float32(presence))
    return ids, out


def top_k(ids: Ids, logits: Logits, k: int) -> Candidates:
    """The k likeliest, likeliest first; all of them, as they are, when k ≤ 0."""
    if k <= 0:
        return ids, logits
    best = highest(logits, k)
    return ids[best], logits[best]


def top_p(ids: Ids, logits: Logits, p: float, min_keep: int = 1) -> Candidates:
    """The fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2020, arXiv:1904.09751)."""
    if p >= 1:
        return ids, logits
    total = log_total(logits)
    for k in (256, 4096, logits.size):  # the answer is among the first few, and sorting everything is slow
        best, best_logits = top_k(ids, logits, min(k, logits.size))
        reached = np.cumsum(np.exp(best_logits - total), dtype=np.float64) >= p
        if k >= logits.size or (reached[-1] and best.size >= min_keep):
            break
    keep = max(int(reached.argmax()) + 1 if reached[-1] else best.size, min_keep)
    return best[:keep], best_logits[:keep]


def min_p(ids: Ids, logits: Logits, p: float, min_keep: int = 1) -> Candidates:
    """The tokens at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    if p <= 0:
        return ids, logits
    keep = logits >= logits.max() + np.float32(np.log(p))
    if np.count_nonzero(keep) < min_keep:
        return top_k(ids, logits, min_keep)
    return ids[keep], logits[keep]


def typical_p(ids: Ids, logits: Logits, p: float, min_keep: int = 1) -> Candidates:
    """The tokens whose surprise is nearest to the entropy, up to p (Meister et al. 2023, arXiv:2202.00666)."""
    if p >= 1:
        return ids, logits
    ids, logits = descending(*present(ids, logits))
    surprise = log_total(logits) - logits.astype(np.float64)
    chance = np.exp(-surprise)
    entropy = float(chance @ surprise)
    order = ascending(np.abs(surprise - entropy).astype(np.float32))
    beyond = np.cumsum(chance[order]) > p
    keep = max(int(beyond.argmax()) + 1 if beyond[-1] else order.size, min_keep)
    order = order[:keep]
    return ids[order], logits[order]


def temperature(ids: Ids, logits: Logits, t: float) -> Candidates:
    """Logits, counted from the highest, divided by t > 0."""
    with np.errstate(over="ignore"):  # a very small t makes every other token impossible, which is what it means
        return ids, (logits - logits.max()) / np.float32(max(t, 1e-30))


def mirostat_1(ids: Ids, logits: Logits, mu: float, n_vocab: int) -> Candidates:
    """Top-k with k from the estimated Zipf exponent and the target `mu` bits (Basu et al. 2021, arXiv:2007.14966)."""
    measured = 100  # tokens that the exponent is estimated from, as in the paper
    _, best = top_k(ids, logits, measured)
    if best.size < 2:
        return top_k(ids, logits, 1)
    i = np.arange(1, best.size, dtype=np.float64)
    t = np.log((i + 1) / i)
    b = best[:-1].astype(np.float64) - best[1:]  # the log of neighbours' ratio of probabilities
    exponent = float(t @ b / (t @ t))
    with np.errstate(all="ignore"):
        excess = np.float64(exponent - 1)
        k = np.power(excess * np.exp2(mu) / (1 - np.power(np.float64(n_vocab), -excess)), 1 / np.float64(exponent))
    if not np.isfinite(k):  # flat logits: the estimate says nothing, and nothing is cut
        k = logits.size
    return top_k(ids, logits, int(max(1, min(k, logits.size))))


def mirostat_2(ids: Ids, logits: Logits, mu: float) -> Candidates:
    """The tokens of at most `mu` bits of surprise, or the likeliest if there is none (Basu et al. 2021)."""
    keep = (log_total(logits) - logits) / np.log(2) <= mu
    return (ids[keep], logits[keep]) if keep.any() else top_k(ids, logits, 1)
