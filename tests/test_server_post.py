"""How events come from the engine's thread to who waits for them on the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest
from layerlift.runtime.request import Prefill
from layerlift.runtime.server.post import Mailbox, Post, TimeUp

EVENTS = [Prefill(i, 9, 0) for i in range(6)]


async def take(box: Mailbox, count: int) -> list:
    taken = []
    while len(taken) < count:
        while not box.letters:
            await box
        taken.append(box.letters.popleft())
    return taken


def on_a_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_the_events_of_a_step_wake_the_loop_once_and_reach_their_mailboxes_in_order():
    async def run() -> None:
        post, loop = Post(), asyncio.get_running_loop()
        (first, put_first), (second, put_second) = post.open(0), post.open(0)
        takers = [asyncio.ensure_future(take(box, 3)) for box in (first, second)]
        await asyncio.sleep(0)
        woken, wake = [], loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *call: woken.append(call) or wake(*call)

        def step() -> None:
            for i in range(3):
                put_first(EVENTS[i])
                put_second(EVENTS[i + 3])
            post.send()
            post.send()

        on_a_thread(step)
        assert not any(taker.done() for taker in takers)
        assert len(woken) == 1
        assert await asyncio.gather(*takers) == [EVENTS[:3], EVENTS[3:]]

    asyncio.run(run())


def test_who_waits_goes_on_while_the_event_is_delivered():
    async def run() -> None:
        box, _ = Post().open(0)
        taker = asyncio.ensure_future(take(box, 1))
        await asyncio.sleep(0)
        done: list[bool] = []
        asyncio.get_running_loop().call_soon(lambda: (box.put(EVENTS[0]), done.append(taker.done())))
        await taker
        assert done == [True]

    asyncio.run(run())


@pytest.mark.parametrize("delivered", [False, True])
def test_who_is_cancelled_while_waiting_ends_and_leaves_what_came_to_the_next(delivered):
    async def run() -> None:
        box, _ = Post().open(0)
        taker = asyncio.ensure_future(take(box, 1))
        await asyncio.sleep(0)
        taker.cancel()
        if delivered:
            asyncio.get_running_loop().call_soon(box.put, EVENTS[0])
        with pytest.raises(asyncio.CancelledError):
            await taker
        asyncio.get_running_loop().call_soon(box.put, EVENTS[1])
        assert await take(box, 1) == [EVENTS[0 if delivered else 1]]

    asyncio.run(run())


def test_time_is_up_once_and_never_where_the_mailbox_was_closed():
    async def run() -> None:
        post = Post()
        (late, _), (closed, _) = post.open(0.01), post.open(0.01)
        closed.close()
        (error,) = await take(late, 1)
        assert isinstance(error, TimeUp)
        await asyncio.sleep(0.02)
        assert not late.letters
        assert not closed.letters

    asyncio.run(run())


def test_events_for_a_loop_that_has_ended_are_dropped():
    post = Post()

    async def run():
        return post.open(0)[1]

    put = asyncio.run(run())
    put(EVENTS[0])
    post.send()
