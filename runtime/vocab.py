"""Reads a vocabulary from GGUF metadata: texts, kinds, scores, and which tokens begin and end a text.

Knows nothing of how a text is cut into tokens. Everything in the file is checked here; what is wrong is a
TokenizerError that names the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError, TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
MAX_TOKEN = 16384  # characters

T = TypeVar("T")


class Metadata(Protocol):
    """What is needed of gguf.Metadata."""

    def __contains__(self, key: str, /) -> bool: ...
    def text(self, key: str, default: Any = ..., /) -> str: ...
    def boolean(self, key: str, default: Any = ..., /) -> bool: ...
    def array(self, key: str, default: Any = ..., /) -> Sequence[Any]: ...
    def __getitem__(self, key: str, /) -> Any: ...


# Texts that end a turn, the first one found being the model's "end of turn" where the file names none.
_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
# Texts after which a model has nothing more to say.
_END_OF_GENERATION = (
    *_END_OF_TURN,
    "<|eom_id|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
# Code models end a file with one of these; the file may name it under the keys, else the first text found counts.
_FILE_ENDS = (
    (("tokenizer.ggml.fim_pad_token_id",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    (
        ("tokenizer.ggml.fim_rep_token_id",),
        ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ),
    (("tokenizer.ggml.fim_sep_token_id",), ("<|file_sep|>",)),
)
# Fill-in-the-middle markers: control tokens, whatever the file says.
_FIM_MARKS = (
    (
        ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"),
        (
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ),
    ),
    (
        ("tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"),
        (
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ),
    ),
    (
        ("tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"),
        (
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ),
    ),
)
# Parts of a message's frame that are always parsed and shown.
_FRAME = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_HEX_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocab:
    """Facts of a vocabulary; ids index `texts` and `kinds`."""

    model: str  # "gpt2", "llama", "gemma4"
    pre: str
    texts: list[str]
    ids: dict[str, int]
    kinds: NDArray[np.int32]  # [n]
    scores: NDArray[np.float32] | None  # [n]
    bos: int | None
    eos: int | None
    eot: int | None
    unknown: int | None
    eog: frozenset[int]
    rstrip: frozenset[int]  # special tokens that swallow the white space after them
    lstrip: frozenset[int]  # … before them

    def byte(self, id: int) -> int | None:
        """The byte that a token like <0x0A> stands for."""
        match = _HEX_BYTE.fullmatch(self.texts[id])
        return int(match[1], 16) if match else None


def checked(key: str, get: Callable[[], T]) -> T:
    """The value of a getter; any complaint becomes a TokenizerError that names the key."""
    try:
        return get()
    except TokenizerError:
        raise
    except (ModelError, TypeError, ValueError, OverflowError) as error:
        text = str(error)
        raise TokenizerError(text if key in text else f"tokenizer: {key}: {text}") from None


def read_vocab(metadata: Metadata) -> Vocab:
    """Reads and checks the `tokenizer.ggml.*` keys."""
    model = checked("tokenizer.ggml.model", lambda: metadata.text("tokenizer.ggml.model"))
    if model not in ("gpt2", "llama", "gemma4"):
        raise TokenizerError(f"tokenizer.ggml.model: {model[:64]!r} is not supported (known: gpt2, llama, gemma4)")
    pre = checked("tokenizer.ggml.pre", lambda: metadata.text("tokenizer.ggml.pre", ""))
    texts, ids = _texts(metadata)
    kinds = _numbers(metadata, "tokenizer.ggml.token_type", len(texts), np.int32)
    kinds = np.full(len(texts), NORMAL, np.int32) if kinds is None else kinds.copy()
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(texts), np.float32)
    if scores is not None and np.isnan(scores).any():
        raise TokenizerError(f"tokenizer.ggml.scores: score {int(np.isnan(scores).argmax())} is NaN")

    def token(name: str, default: int | None = None) -> int | None:
        return _token_id(metadata, f"tokenizer.ggml.{name}_token_id", len(texts), default)

    # Files of the first days name no ids: 1 and 2 are SentencePiece's, 11 is Falcon's <|endoftext|>.
    first, last = (1, 2) if model == "llama" else (11, 11)
    first, last = (i if i < len(texts) and (model == "llama" or kinds[i] == CONTROL) else None for i in (first, last))
    bos, eos = token("bos", None if pre in ("chatglm-bpe", "glm4", "glm5") else first), token("eos", last)
    unknown = token("unknown", 0 if model == "llama" else None)
    eot, eom = token("eot"), token("eom")
    if eot is None:
        eot = next((ids[t] for t in _END_OF_TURN if t in ids), None)
    if eom is None:
        eom = ids.get("<|eom_id|>")
    eog = _ends(metadata, ids, kinds, {eos, eot, eom})
    rstrip, lstrip = _strips(metadata, pre, ids, kinds)
    return Vocab(model, pre, texts, ids, kinds, scores, bos, eos, eot, unknown, eog, rstrip, lstrip)


def _texts(metadata: Metadata) -> tuple[list[str], dict[str, int]]:
    key = "tokenizer.ggml.tokens"
    texts = checked(key, lambda: list(metadata.array(key)))
    if not texts:
        raise TokenizerError(f"{key}: the vocabulary is empty")
    if set(map(type, texts)) != {str}:
        raise TokenizerError(f"{key}: not an array of strings")
    if "" in texts:
        texts = [t or f"[EMPTY_{i}]" for i, t in enumerate(texts)]
    longest = max(map(len, texts))
    if longest > MAX_TOKEN:
        raise TokenizerError(f"{key}: a token of {longest} characters (limit {MAX_TOKEN})")
    ids = {t: i for i, t in enumerate(texts)}
    if len(ids) != len(texts):
        twice = next(i for i, t in enumerate(texts) if ids[t] != i)
        raise TokenizerError(f"{key}: tokens {twice} and {ids[texts[twice]]} are both {texts[twice][:64]!r}")
    return texts, ids


def _numbers(metadata: Metadata, key: str, n: int, dtype: Any) -> NDArray[Any] | None:
    if key not in metadata:
        return None
    values = checked(key, lambda: np.asarray(metadata.array(key)).astype(dtype, copy=False))
    if values.shape != (n,):
        raise TokenizerError(f"{key}: {values.size} entries for {n} tokens")
    return values


def _token_id(metadata: Metadata, key: str, n: int, default: int | None = None) -> int | None:
    """The id under a key; the largest uint32 and negative numbers mean that there is no such token."""
    if key not in metadata:
        return default
    id = checked(key, lambda: int(metadata[key]))
    if id < 0 or id == 0xFFFFFFFF:
        return None
    if id >= n:
        raise TokenizerError(f"{key}: {id} is not below the vocabulary's {n} tokens")
    return id


def _ends(metadata: Metadata, ids: dict[str, int], kinds: NDArray[np.int32], named: set[int | None]) -> frozenset[int]:
    """The tokens that end a generation, found by key and by text. Whatever is found by text becomes a control token."""

    def mark(keys: tuple[str, ...], texts: tuple[str, ...]) -> int | None:
        for key in keys:
            if (id := _token_id(metadata, key, len(kinds))) is not None:
                return id
        id = next((ids[t] for t in texts if t in ids), None)
        if id is not None:
            kinds[id] = CONTROL
        return id

    for keys, texts in _FIM_MARKS:
        mark(keys, texts)
    ends = {mark(keys, texts) for keys, texts in _FILE_ENDS}
    for text in _END_OF_GENERATION:
        if text in ids:
            ends.add(ids[text])
            kinds[ids[text]] = CONTROL
    for text in _FRAME:
        if text in ids:
            kinds[ids[text]] = USER_DEFINED
    ends |= named
    found = {t for t in _END_OF_GENERATION if t in ids and ids[t] in ends}
    # Where a message ends with its own marker, <|end|> only closes a part of it.
    if "<|end|>" in found and found & {"<|return|>", "<|flush|>"} and found & {"<|call|>", "<|calls|>"}:
        ends.discard(ids["<|end|>"])
        kinds[ids["<|end|>"]] = USER_DEFINED
    # These vocabularies hold </s> as the HTML tag.
    if "</s>" in found and ("<|tool_response>" in found or ids.get("<|plamo:eos|>") in ends - {None}):
        ends.discard(ids["</s>"])
        kinds[ids["</s>"]] = NORMAL
    return frozenset(id for id in ends if id is not None)


def _strips(
    metadata: Metadata, pre: str, ids: dict[str, int], kinds: NDArray[np.int32]
) -> tuple[frozenset[int], frozenset[int]]:
    """Special tokens that swallow white space. GGUF has no key for it: the models that need it are told by name."""
    name = checked("general.name", lambda: metadata.text("general.name", "")).lower()
    mask = "[MASK]" if "modern-bert" in name else "<mask>"
    if any(p in pre for p in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or "modern-bert" in name:
        return frozenset(), frozenset({ids[mask]} if mask in ids else ())
    if "phi-3" in name or "phi3" in name:
        special = np.flatnonzero((kinds == CONTROL) | (kinds == USER_DEFINED) | (kinds == UNKNOWN))
        keep = {ids.get(t) for t in ("<unk>", "<s>", "<|endoftext|>")}
        return frozenset({int(i) for i in special} - keep), frozenset()
    return frozenset(), frozenset()
