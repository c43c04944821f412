"""Turns tokens into text as they come. Knows a token's bytes, nothing of how they were chosen."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Text of a growing sequence of tokens: `feed` never returns half a UTF-8 character.

    Bytes that are no UTF-8 become U+FFFD. With `strip_space`, one space at the very beginning is dropped.
    """

    def __init__(self, piece: Callable[[int], bytes], *, strip_space: bool = False):
        self._piece = piece
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        """The text that this token completes, possibly none."""
        data = self._piece(id)
        if self._strip_space and data:
            self._strip_space = False
            data = data[data.startswith(b" ") :]
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The end of the text: U+FFFD if it stops inside a character. The next text may begin afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
