"""A conversation's place in the cache, kept between requests. A thin handle: the engine does the work."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .kv import KVCache, Sequence


class Session:
    """Made by `Engine.session()`. Its methods run on the engine's thread and wait for it; no request may be running."""

    def __init__(self, call: Callable[[Callable[[KVCache], Any]], Any]):
        self._call = call
        self.sequence: Sequence | None = None  # for the engine thread
        self.busy = False

    @property
    def tokens(self) -> list[int]:
        """The tokens evaluated so far."""
        return list(self.sequence.tokens) if self.sequence else []

    def forget(self, begin: int, end: int) -> None:
        """Drops tokens [begin, end); those behind move up, their keys rotated to the new positions."""

        def shift(cache: KVCache) -> None:
            if self.sequence and begin < self.sequence.length:
                cache.shift(self.sequence, begin, min(end, self.sequence.length))

        self._call(shift)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the evaluated tokens with their keys and values to a file."""

        def save(cache: KVCache) -> None:
            if self.sequence is None:
                self.sequence = cache.open()
            cache.save(self.sequence, path)

        self._call(save)

    def load(self, path: str | PathLike[str]) -> None:
        """Takes the place of this session from a file. Raises SessionError; the session is then as before."""

        def load(cache: KVCache) -> None:
            loaded = cache.load(path)
            if self.sequence is not None:
                cache.close(self.sequence)
            self.sequence = loaded

        self._call(load)

    def close(self) -> None:
        """Gives the rows back; they stay reusable as a prefix until memory is needed."""

        def close(cache: KVCache) -> None:
            if self.sequence is not None:
                cache.close(self.sequence)
                self.sequence = None

        self._call(close)
