"""Hands the engine's events to the event loop: all of a step at once, each to the answer that it belongs to.

To wake another thread costs more than all else that a token takes outside the engine, so it is done once a step.
"""

from __future__ import annotations

import asyncio
from collections import deque

from ..errors import LayerliftError
from ..request import Event, Sink

Letter = Event | BaseException


class TimeUp(LayerliftError):
    """A request took longer than --timeout allows."""


class Post:
    """Carries events from the engine's thread. `send` and the sinks may be called by any thread, the rest by the loop.

    What was put in is on its way when `send` is called, which the engine does between two steps.
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
    """Events of one answer, until it takes them. Belongs to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float):
        self._loop = loop
        self._letters: deque[Letter] = deque()
        self._waiter: asyncio.Future[None] | None = None
        late = TimeUp("the request took longer than --timeout allows")
        self._alarm = loop.call_later(seconds, self.put, late) if seconds else None

    def put(self, letter: Letter) -> None:
        self._letters.append(letter)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Letter:
        """The next event."""
        while not self._letters:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._letters.popleft()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
