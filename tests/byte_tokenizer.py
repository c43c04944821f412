"""A small tokenizer for grammars, and whether a grammar takes a text."""

from __future__ import annotations

import math

import numpy as np

WORDS = (b"hello", b"true", b'{"', b'":', b"}", b"\xc3\xa9", b"  ", b"\n", b"12", b"")
EOS, BOS, EOT = 256 + len(WORDS), 257 + len(WORDS), 258 + len(WORDS)


class ByteTokenizer:
    """256 bytes, a few words, an empty token and three control tokens."""

    vocab_size = EOT + 1
    bos, eos, eot = BOS, EOS, EOT
    eog = frozenset({EOS, EOT})

    def __init__(self):
        self.pieces = 0

    def piece(self, id, *, special=True):
        self.pieces += 1
        if id < 256:
            return bytes([id])
        return WORDS[id - 256] if id < EOS else {EOS: b"</s>", BOS: b"<s>", EOT: b"<|eot|>"}[id]

    def is_control(self, id):
        return id >= EOS

    def encode(self, text, *, add_special=True, parse_special=True):
        rest, ids = text.encode(), []
        while rest:
            best = max((w for w in WORDS if w and rest.startswith(w)), key=len, default=None)
            ids.append(256 + WORDS.index(best) if best else rest[0])
            rest = rest[len(best) if best else 1 :]
        return ids


def allowed(matcher):
    """The ids a matcher leaves, of a vocabulary padded by five rows."""
    values = np.zeros(ByteTokenizer.vocab_size + 5, np.float32)
    return set(np.flatnonzero(matcher.allow(values) > -math.inf).tolist())


def takes(grammar, text):
    """Whether a grammar takes `text` whole, byte by byte, and may end there."""
    matcher = grammar.matcher()
    for byte in text.encode():
        if not matcher.permits(byte):
            return False
        matcher.accept(byte)
    return matcher.permits(EOS)
