"""Ctrl-C ends a stream in good order. Knows nothing of what the stream carries."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

INTERRUPTED = 130  # exit code, by the shells' custom: 128 + SIGINT


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Interrupt:
    """Whether Ctrl-C came, and the stream that it cancels."""

    def __init__(self) -> None:
        self.seen = False
        self._stream: Cancellable | None = None

    def watch(self, stream: Cancellable) -> None:
        """From now on Ctrl-C cancels `stream`; at once if it came already."""
        self._stream = stream
        if self.seen:
            stream.cancel()

    def _came(self, *_: object) -> None:
        if self.seen:
            raise SystemExit(INTERRUPTED)
        self.seen = True
        if self._stream:
            self._stream.cancel()


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Inside, Ctrl-C cancels the watched stream, which then ends by itself; a second one ends the program.

    Python takes signals in the main thread only; elsewhere nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt._came)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
