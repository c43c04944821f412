"""The short way from a stream to its connection: the same bytes as through ASGI, and no faster than they are read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import uvicorn
from layerlift.runtime.server.protocol import WRITE, make_protocol

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
LAST = {"type": "http.response.body", "body": b"", "more_body": False}


@contextlib.contextmanager
def served(app):
    """Serves an ASGI application; its port."""
    config = uvicorn.Config(app, http=make_protocol(), ws="none", lifespan="off", log_config=None, date_header=False)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(10)


def ask(port: int, version: str = "1.1", method: str = "GET", path: str = "/") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(f"{method} {path} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    return connection


def everything(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_pieces_are_framed_as_h11_frames_them():
    async def app(scope, receive, send):
        write = scope["extensions"][WRITE]
        await send(HEAD)
        for piece in (b"a", b"", b"b" * 300):
            if scope["path"] == "/short":
                await write(piece)
            else:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send(LAST)

    with served(app) as port:
        answers = [everything(ask(port, path=path)) for path in ("/short", "/long")]
    assert answers[0] == answers[1]
    assert answers[0].endswith(b"\r\n\r\n1\r\na\r\n12c\r\n" + b"b" * 300 + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(("version", "method"), [("1.0", "GET"), ("1.1", "HEAD")])
def test_bodies_that_do_not_come_in_chunks_have_no_short_way(version, method):
    async def app(scope, receive, send):
        offered.append(WRITE in scope.get("extensions", {}))
        await send(HEAD)
        await send(LAST)

    offered: list[bool] = []
    with served(app) as port:
        everything(ask(port, version, method))
    assert offered == [False]


def test_a_stream_waits_for_its_reader_and_ends_when_that_leaves():
    written, ended = 0, threading.Event()

    async def app(scope, receive, send):
        nonlocal written
        await send(HEAD)
        await receive()  # the empty body
        leaving = asyncio.ensure_future(receive())
        while not leaving.done():
            await scope["extensions"][WRITE](b"x" * 65536)
            written += 1
            await asyncio.sleep(0)
        ended.set()

    with served(app) as port:
        with ask(port):
            before = -1
            while before != written or not written:
                before = written
                time.sleep(0.1)
            assert written < 500  # 32 MB, more than any system buffers for a socket
        assert ended.wait(5)
