"""Hands the engine's events to the event loop: all of a step at once, each to the answer that it belongs to.

To wake another thread costs more than all else that a token takes outside the engine, so it is done once a step; and
who waits for an event goes on while it is delivered, not a turn of the loop later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from ..errors import LayerliftError
from ..request import Event, Sink

Letter = Event | BaseException


class TimeUp(LayerliftError):
    """A request took longer than --timeout allows."""


class Post:
    """Carries events from the engine's thread to the event loop.

    Sinks and `send` may be called by any thread. What was put in is on its way when `send` is called, which the engine
    does between two steps.
    """

    def __init__(self) -> None:
        self._bag: deque[tuple[Mailbox, Letter]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = False

    def open(self, seconds: float) -> tuple[Mailbox, Sink]:
        """A mailbox that gets TimeUp after `seconds` (0: never), and what puts events into it."""
        self._loop = asyncio.get_running_loop()
        box = Mailbox(self._loop, seconds)
        return box, lambda letter: self._bag.append((box, letter))

    def send(self) -> None:
        if self._bag and not self._told and self._loop is not None:
            self._told = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop has ended, and nobody reads this any more
                pass

    def _deliver(self) -> None:
        self._told = False
        while self._bag:
            box, letter = self._bag.popleft()
            box.put(letter)


class Mailbox:
    """Events of one answer, until it takes them. Belongs to the event loop.

    One task at a time waits for what comes next (`await`), and goes on within `put`. For it, this is a future: has all
    that asyncio asks of futures that are not its own.
    """

    _asyncio_future_blocking = False

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float):
        self._loop = loop
        self._waiter: Callable[[Mailbox], object] | None = None
        self._cancelled = False
        self.letters: deque[Letter] = deque()
        late = TimeUp("the request took longer than --timeout allows")
        self._alarm = loop.call_later(seconds, self.put, late) if seconds else None

    def put(self, letter: Letter) -> None:
        self.letters.append(letter)
        self._wake()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def __await__(self) -> Generator[Mailbox, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter(self)

    # -- for the task that waits --

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, waiter: Callable[[Mailbox], object], *, context: Any = None) -> None:
        self._waiter = waiter

    def result(self) -> None:
        if self._cancelled:
            self._cancelled = False
            raise asyncio.CancelledError

    def cancel(self, msg: Any = None) -> bool:
        if self._waiter is None:
            return False
        self._cancelled = True
        self._loop.call_soon(self._wake)
        return True
