"""Clients that leave at every moment of a request: their slot is free at once, and nobody else notices.

LAYERLIFT_LEAVERS=200 has so many leave at each moment, and shows how long their slots took and how long steps were.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from serving import Running, serving

pytestmark = pytest.mark.slow

LEAVERS = int(os.environ.get("LAYERLIFT_LEAVERS", "15"))
LONG = [5 + i % 250 for i in range(1800)]
WATCHED = {"prompt": [9, 8, 7], "max_tokens": 150, "ignore_eos": True}

# When the client leaves: what it asks, and how many events it waits for.
MOMENTS = {
    "before its prompt is read": ({"prompt": LONG, "max_tokens": 5, "stream": True}, None),
    "while its prompt is read": ({"prompt": LONG, "max_tokens": 5, "stream": True, "return_progress": True}, 1),
    "while it is answered": ({"prompt": [5, 6], "max_tokens": 1500, "stream": True, "logprobs": 0}, 3),
    "while it waits for a slot": ({"prompt": [5, 6], "max_tokens": 1500, "stream": True}, 0),
    "while it waits for a whole answer": ({"prompt": [5, 6], "max_tokens": 1500}, None),
}


class Watched(threading.Thread):
    """A client that streams the same answer again and again; `texts` are what it got."""

    def __init__(self, server: Running):
        super().__init__(daemon=True)
        self.server, self.texts, self.going = server, [], threading.Event()
        self.left = threading.Event()

    def run(self) -> None:
        while not self.left.is_set():
            self.going.set()
            events = self.server.stream("/v1/completions", **WATCHED)
            self.texts.append([event["choices"][0]["text"] for event in events])


def leave(server: Running, asked: dict, events: int | None, *, abruptly: bool) -> None:
    """Asks, waits for so many events (None: for a moment; 0: for the header), and closes the connection."""
    body = json.dumps({**asked, "ignore_eos": True, "cache_prompt": False}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode() + body)
        if events is None:
            time.sleep(0.002)
        else:
            seen = b""
            while seen.count(b"data: {") < events or b"\r\n\r\n" not in seen:
                seen += connection.recv(65536)
        if abruptly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def seconds_until_noticed(server: Running, left_before: int) -> float | None:
    """Until the server counts one more that left, and only the watched client is in a slot or waits for one.

    None for a request that the connection's end has overtaken, so that nobody read it.
    """
    started = time.perf_counter()
    while time.perf_counter() - started < 5:
        load = server.service.engine.load()
        if server.service.metrics.cancelled > left_before and load.running + load.waiting <= 1:
            return time.perf_counter() - started
        if time.perf_counter() - started > 0.5 and load.running + load.waiting <= 1:
            return None
        time.sleep(0.0005)
    raise AssertionError(f"{server.service.engine.load()}, {len(server.service.active)} answers")


class Steps:
    """When the engine's steps ended; the watched client keeps it at work, so that one begins where another ends."""

    def __init__(self, server: Running):
        self.ends: list[float] = []
        self._send = server.service.post.send
        server.service.engine.between_steps = self._ended

    def _ended(self) -> None:
        self._send()
        self.ends.append(time.perf_counter())

    def longest(self, begin: float, end: float) -> float:
        """Seconds of the longest step that was under way between two moments."""
        pairs = zip(self.ends, self.ends[1:], strict=False)
        return max((after - before for before, after in pairs if after > begin and before < end), default=0.0)


def belongings() -> tuple[int, int, int]:
    """Open files, threads, and resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc tells what a process holds")
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.timeout(600)
def test_a_client_may_leave_at_any_moment(tiny, moment, capsys):
    asked, events = MOMENTS[moment]
    slots = 1 if "slot" in moment else 2
    with serving(tiny("F32"), slots=slots, context=4096) as server:
        alone = [event["choices"][0]["text"] for event in server.stream("/v1/completions", **WATCHED)]
        watched = Watched(server)
        watched.start()
        watched.going.wait(10)
        noticed: list[float] = []
        allowed: list[float] = []  # the longest step in each one's time
        steps, before = Steps(server), belongings()
        for i in range(LEAVERS):
            if i == min(5, LEAVERS - 1):
                before = belongings()
            left_before = server.service.metrics.cancelled
            leave(server, asked, events, abruptly=bool(i % 2))
            left = time.perf_counter()
            seconds = seconds_until_noticed(server, left_before)
            if seconds is not None:
                noticed.append(seconds)
                allowed.append(steps.longest(left, left + seconds))
        watched.left.set()
        watched.join(30)
        files, threads, nbytes = belongings()
    assert len(watched.texts) > 0
    assert all(text == alone for text in watched.texts)
    assert files <= before[0] + 2, "connections are left open"  # one may be closing yet
    assert threads <= before[1]
    assert nbytes < before[2] + (8 << 20)
    assert len(noticed) > LEAVERS // 3
    if LEAVERS >= 100:
        grown = f"{files - before[0]:+d} files, {threads - before[1]:+d} threads, {(nbytes - before[2]) >> 10:+d} KiB"
        later = [1000 * (a - b) for a, b in zip(noticed, allowed, strict=True)]
        times = f"{1000 * max(noticed):.1f} ms at most; beyond the longest step of its time {max(later):.1f} ms at most"
        with capsys.disabled():
            print(f"\n{moment}: {len(noticed)} of {LEAVERS}, {times}, steps to {1000 * max(allowed):.1f} ms; {grown}")
