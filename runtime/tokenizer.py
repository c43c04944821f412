"""Cuts text into tokens and puts it together again, with `tokenizers` built from a GGUF's metadata.

Knows vocabularies of byte pairs ("gpt2") and of SentencePiece with scores ("llama"); knows nothing of models,
templates or sampling. Special tokens are looked for here, longest first, before the text between them goes to
`tokenizers`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .detokenizer import Detokenizer
from .errors import TokenizerError
from .pretokenizers import DEFAULT, PRETOKENIZERS, PreTokenizer
from .vocab import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Metadata, Vocab, checked, read_vocab

if TYPE_CHECKING:
    import tokenizers

# The printable character that stands for each byte in a byte-level vocabulary (Radford et al. 2019).
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTE_OF_CHAR = {chr(b): b for b in _PRINTABLE} | {
    chr(0x100 + i): b for i, b in enumerate(b for b in range(256) if b not in _PRINTABLE)
}
CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}
_ASCII_SPACE = " \t\n\v\f\r"
_SPACE_MARK = "\u2581"
_SURROGATE = re.compile("[\ud800-\udfff]")


class HasMetadata(Protocol):
    """What is needed of gguf.GGUF."""

    @property
    def metadata(self) -> Any: ...


class Tokenizer:
    """Text to token ids and back.

    `bos`, `eos`, `eot` are ids or None; `eog` are all the ids that end a generation. `warning` is a sentence for
    the user where the file asks for something unknown, else "". `is_sentencepiece` tells its models
    from byte-level ones. `hf` holds the model without its special tokens.
    """

    def __init__(self, vocab: Vocab, metadata: Metadata):
        self._vocab = vocab
        self._ids = vocab.ids
        self._pieces: dict[int, bytes] = {}
        self.vocab_size = len(vocab.texts)
        self.bos, self.eos, self.eot, self.eog = vocab.bos, vocab.eos, vocab.eot, vocab.eog
        self.warning = ""
        self.is_sentencepiece = vocab.model == "llama"
        self._pre = DEFAULT if self.is_sentencepiece else self._pretokenizer(vocab)
        self._escape_spaces = self.is_sentencepiece or self._pre.escape_spaces

        def flag(name: str, default: bool) -> bool:
            key = f"tokenizer.ggml.{name}"
            return checked(key, lambda: metadata.boolean(key, default))

        add_bos = flag("add_bos_token", self.is_sentencepiece or self._pre.add_bos)
        self.add_bos = self.bos is not None and (add_bos or vocab.model == "gemma4")
        self.add_eos = self.eos is not None and flag("add_eos_token", False)
        self._space_prefix = self.is_sentencepiece and flag("add_space_prefix", True)
        kinds = vocab.kinds
        special = np.flatnonzero((kinds == CONTROL) | (kinds == USER_DEFINED) | (kinds == UNKNOWN)).tolist()
        texts = vocab.texts
        special.sort(key=lambda id: -len(texts[id].encode("utf-8", "replace")))
        self._special = [(texts[id], id) for id in special]
        self._user_defined = [(texts[id], id) for id in special if kinds[id] == USER_DEFINED]
        self.hf = _build_spm(vocab) if self.is_sentencepiece else _build_bpe(vocab, self._pre, metadata)

    @classmethod
    def from_gguf(cls, g: HasMetadata) -> Tokenizer:
        """The tokenizer that a GGUF describes. Raises TokenizerError naming the key that is wrong."""
        return cls(read_vocab(g.metadata), g.metadata)

    def _pretokenizer(self, vocab: Vocab) -> PreTokenizer:
        if vocab.model == "gemma4":
            return PRETOKENIZERS["gemma4"]
        pre = PRETOKENIZERS.get(vocab.pre)
        if pre is None:
            said = f"{vocab.pre[:64]!r} is unknown" if vocab.pre else "is missing"
            self.warning = f"tokenizer.ggml.pre {said}; words are cut as 'default' does, which may cost quality"
        return pre or DEFAULT

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS and EOS where the model wants them, unless the text already has them there (so a chat
        template that writes BOS does not get a second one). `parse_special` takes the texts of control tokens for
        those tokens; user-defined tokens are always taken. Lone surrogates count as U+FFFD.
        """
        if _SURROGATE.search(text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids: list[int] = []
        at_start = True  # of the text, or after a special token
        for part in self._split(text, self._special if parse_special else self._user_defined):
            if isinstance(part, int):
                ids.append(part)
                at_start = True
            else:
                ids += self._encode_plain(part, at_start)
                at_start = False
        if add_special:
            if self.add_bos and self.bos is not None and ids[:1] != [self.bos]:
                ids.insert(0, self.bos)
            if self.add_eos and self.eos is not None and ids[-1:] != [self.eos]:
                ids.append(self.eos)
        return ids

    def _split(self, text: str, special: list[tuple[str, int]]) -> list[str | int]:
        """Special tokens cut out of a text, the longest ones first, wherever they stand."""
        parts: list[str | int] = [text] if text else []
        for mark, id in special:
            if mark not in text:
                continue
            found: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or mark not in part:
                    found.append(part)
                    continue
                for i, piece in enumerate(part.split(mark)):
                    if i:
                        if id in self._vocab.lstrip and found and isinstance(found[-1], str):
                            found[-1] = found[-1].rstrip(_ASCII_SPACE)
                        found.append(id)
                        if id in self._vocab.rstrip:
                            piece = piece.lstrip(_ASCII_SPACE)
                    found.append(piece)
            parts = [p for p in found if p != ""]
        return parts

    def _encode_plain(self, text: str, at_start: bool) -> list[int]:
        if self._space_prefix and at_start:
            text = " " + text
        if self._escape_spaces:
            text = text.replace(" ", _SPACE_MARK)
        return self.hf.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; invalid UTF-8 becomes U+FFFD. `special` shows control tokens.

        The space that SentencePiece models put before a text is taken off again. Raises TokenizerError for an id
        outside the vocabulary.
        """
        data = b"".join([self.piece(id, special=special) for id in ids])
        if self._space_prefix and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def piece(self, id: int, *, special: bool = True) -> bytes:
        """The bytes of a token; with `special=False` none for control and unknown tokens."""
        if not 0 <= id < self.vocab_size:
            raise TokenizerError(f"token {id} is not in the vocabulary of {self.vocab_size}")
        if not special and self._vocab.kinds[id] in (CONTROL, UNKNOWN):
            return b""
        piece = self._pieces.get(id)
        if piece is None:
            piece = self._pieces[id] = self._bytes(id)
        return piece

    def _bytes(self, id: int) -> bytes:
        text, kind = self._vocab.texts[id], self._vocab.kinds[id]
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            return text.encode("utf-8", "replace")
        if kind == BYTE:
            byte = self._vocab.byte(id)
            return b"" if byte is None else bytes([byte])
        if kind != NORMAL:
            return b""  # unused: no text ever had it
        if self._escape_spaces:
            return text.replace(_SPACE_MARK, " ").encode("utf-8", "replace")
        try:
            return bytes([BYTE_OF_CHAR[c] for c in text])
        except KeyError:
            return text.encode("utf-8", "replace")

    def stream(self, *, special: bool = False, after: int | None = None) -> Detokenizer:
        """A Detokenizer for tokens as they come; its parts joined equal `decode` of them all.

        `after` is the token that stands before the first one, if any: when that is text, the new text goes on from
        it, and a SentencePiece model's leading space is kept.
        """
        goes_on = after is not None and self._vocab.kinds[after] in (NORMAL, BYTE)
        return Detokenizer(lambda id: self.piece(id, special=special), strip_space=self._space_prefix and not goes_on)

    def is_control(self, id: int) -> bool:
        """Whether the token is a mark without text of its own."""
        return 0 <= id < self.vocab_size and bool(self._vocab.kinds[id] == CONTROL)

    def find(self, text: str) -> int | None:
        """The token written exactly so in the vocabulary."""
        return self._ids.get(text)


# ---------------------------------------------------------------------------------------------------------------
# Building


def _model(vocab: Vocab, merges: list[tuple[str, str]], key: str, **options: Any) -> tokenizers.Tokenizer:
    # Nothing here runs in parallel, and a process that forks later should not be warned about it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    try:
        return tokenizers.Tokenizer(tokenizers.models.BPE(vocab.ids, merges, **options))
    except Exception as error:
        raise TokenizerError(f"{key}: {' '.join(str(error).split())[:200]}") from None


def _build_bpe(vocab: Vocab, pre: PreTokenizer, metadata: Metadata) -> tokenizers.Tokenizer:
    key = "tokenizer.ggml.merges"
    lines = checked(key, lambda: list(metadata.array(key, []) if vocab.pre == "kimi-k2" else metadata.array(key)))
    if lines and set(map(type, lines)) != {str}:
        raise TokenizerError(f"{key}: not an array of strings")
    merges = [tuple(line.split(" ", 1)) for line in lines]
    for i, merge in enumerate(merges):
        if len(merge) == 2 and merge[0] and merge[1]:
            continue
        head, _, tail = lines[i][1:].partition(" ")  # a part may itself begin with a space
        merges[i] = (lines[i][:1] + head, tail)
        if not tail:
            raise TokenizerError(f"{key}: entry {i} {lines[i][:64]!r} is not two tokens")
    options = {"ignore_merges": pre.ignore_merges}
    if not pre.byte_level:
        options |= {"byte_fallback": True}
    hf = _model(vocab, merges, key, **options)  # pyright: ignore[reportArgumentType]
    # A byte without a token is dropped; what stood on its two sides must not be joined.
    missing = "".join(c for c in BYTE_OF_CHAR if c not in vocab.ids) if pre.byte_level else ""
    hf.pre_tokenizer = cutter(pre, without=missing)  # pyright: ignore[reportAttributeAccessIssue]
    return hf


def cutter(pre: PreTokenizer, *, without: str = "") -> tokenizers.pre_tokenizers.PreTokenizer:
    """What cuts a text into words as `pre` says, for `tokenizers`; the characters `without` are left out."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(r), "isolated") for r in pre.regexes]
    if pre.byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if without:
        steps.append(pre_tokenizers.Split(Regex(f"[{re.escape(without)}]"), "removed"))
    return pre_tokenizers.Sequence(steps)


def _build_spm(vocab: Vocab) -> tokenizers.Tokenizer:
    """SentencePiece joins the pair whose token scores highest: every way to cut a token in two is a merge."""
    key = "tokenizer.ggml.scores"
    if vocab.scores is None:
        raise TokenizerError(f"{key} missing: a 'llama' vocabulary needs it")
    ids, texts = vocab.ids, vocab.texts
    by_score = np.argsort(-vocab.scores, kind="stable").tolist()
    user_defined = set(np.flatnonzero(vocab.kinds == USER_DEFINED).tolist())  # cut out before
    merges: list[tuple[str, str]] = []
    for id in by_score:
        text = texts[id]
        n = len(text)
        if n == 1 or id in user_defined:
            continue
        if n > _MAX_SPM_TOKEN:
            raise TokenizerError(
                f"tokenizer.ggml.tokens: token {id} has {n} characters (limit {_MAX_SPM_TOKEN} in a 'llama' vocabulary)"
            )
        # Of equal scores the leftmost pair is joined first, which a longer left part comes closest to.
        merges += [(text[:i], text[i:]) for i in range(n - 1, 0, -1) if text[:i] in ids and text[i:] in ids]
    unknown = None if vocab.unknown is None else texts[vocab.unknown]
    return _model(vocab, merges, key, byte_fallback=True, unk_token=unknown, fuse_unk=False)


_MAX_SPM_TOKEN = 512  # characters
