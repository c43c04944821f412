"""Bytes in and out: JSON bodies into structs, values into responses, generators into server-sent events.

Knows HTTP and JSON, and nothing of what they carry.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from . import failures
from .failures import HTTPFailure
from .generation import End, Generation, Piece, ToolPiece
from .protocol import WRITE, Write

T = TypeVar("T")
PING_SECONDS = 15.0
MAX_DEPTH = 64  # of arrays and objects in a body
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_encode = msgspec.json.Encoder().encode


async def read(request: Request, kind: type[T]) -> T:
    """The JSON body as a struct; null is like absent, unknown fields are passed over. Raises HTTPFailure 400."""
    body = await request.body()
    if is_deep(body):
        raise HTTPFailure(400, "invalid_request_error", f"the body is nested more than {MAX_DEPTH} levels deep")
    try:
        return msgspec.json.decode(body or b"{}", type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise HTTPFailure(400, "invalid_request_error", _field(str(error))) from None
    except msgspec.DecodeError as error:
        raise HTTPFailure(400, "invalid_request_error", f"the body is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise HTTPFailure(400, "invalid_request_error", "the body is not UTF-8") from None


_MARKS = b'"[]{}'
_OTHERS = bytes(set(range(256)) - set(_MARKS))
_PART = 1 << 20  # bytes looked at together, which bounds the memory


def is_deep(data: bytes, most: int = MAX_DEPTH) -> bool:
    """Whether JSON is nested more deeply than that. What is no JSON may be either."""
    if data.count(b"[") + data.count(b"{") <= most:
        return False
    marks = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
    depth = quoted = 0
    for at in range(0, len(marks), _PART):
        part = np.frombuffer(marks, np.uint8, min(_PART, len(marks) - at), at)
        inside = (np.cumsum(part == ord('"'), dtype=np.uint8) + quoted) & 1
        steps = np.where((part == ord("[")) | (part == ord("{")), 1, -1) * (inside == 0) * (part != ord('"'))
        depths = depth + np.cumsum(steps)
        if depths.max() > most:
            return True
        depth, quoted = int(depths[-1]), int(inside[-1])
    return False


def _field(message: str) -> str:
    """msgspec's words with the field in front: "'messages[0].role': Expected `str`, got `int`"."""
    text, _, path = message.partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    if missing := _MISSING.fullmatch(text):
        return f"'{field}{'.' if field else ''}{missing[1]}' is missing"
    return f"'{field}': {text}" if field else text


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(value), status, headers, media_type="application/json")


def event(value: Any) -> bytes:
    """One server-sent event of JSON."""
    return b"data: " + _encode(value) + b"\n\n"


def typed_event(value: dict[str, Any]) -> bytes:
    """One server-sent event of JSON, named after its `type`."""
    return b"event: " + value["type"].encode() + b"\n" + event(value)


TEXT = "\0text\0"


def texts(like: bytes) -> Callable[[str], bytes]:
    """Makes events that are `like` with another text in the place of TEXT; nothing else is encoded for each."""
    before, after = like.split(_encode(TEXT))
    return lambda text: b"%b%b%b" % (before, _encode(text), after)


DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends what an async generator of bytes yields, and comments while it is silent.

    `close` is called in any case when the stream is over; a client that leaves ends the generator where it waits. An
    error after the first byte becomes an event of its own.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        close: Callable[[], None],
        *,
        media_type: str = "text/event-stream",
        ping: bytes = b": ping\n\n",
        failed: Callable[[dict[str, Any]], bytes] | None = None,
    ):
        self.chunks, self.close, self.ping = chunks, close, ping
        self.failed = failed
        self.status_code, self.background = 200, None
        self.media_type = media_type
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        write = _writer(scope, send)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await write(self.ping)
            await _while_connected(receive, self._send(scope["path"], write))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            pass  # nobody is there to be told
        finally:
            self.close()
            await self.chunks.aclose()

    async def _send(self, path: str, write: Write) -> None:
        pinger = asyncio.ensure_future(self._pings(write))
        try:
            async for chunk in self.chunks:
                self._silent = False
                await write(chunk)
        except Exception as error:
            _, body = failures.describe(error)
            shape = failures.shaped(path, body)
            await write(self.failed(shape) if self.failed else event(shape))
        finally:
            pinger.cancel()

    async def _pings(self, write: Write) -> None:
        while True:
            self._silent = True
            await asyncio.sleep(PING_SECONDS)
            if self._silent:
                await write(self.ping)


def _writer(scope: Scope, send: Send) -> Write:
    """What sends a piece of a body: the connection itself where it offers that, which is several times as fast."""

    async def write(data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})

    return scope.get("extensions", {}).get(WRITE, write)


async def _while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """As `_while_connected`, for a request whose body was read."""
    return await _while_connected(request.receive, work)


@dataclass(frozen=True)
class Whole:
    """A finished answer: its text, its pieces with tokens, its calls as (id, name, arguments), its end."""

    text: str
    pieces: tuple[Piece, ...]
    calls: tuple[tuple[str, str, str], ...]
    end: End


async def whole(request: Request, generation: Generation) -> Whole:
    """All of an answer; a client that leaves ends it. Raises what the generation raises, and ClientDisconnect."""
    try:
        return await while_connected(request, gather(generation))
    finally:
        generation.close()


async def gather(generation: AsyncIterator[Any]) -> Whole:
    """All of an answer."""
    pieces: list[Piece] = []
    calls: list[list[str]] = []
    async for event in generation:
        if isinstance(event, Piece):
            pieces.append(event)
        elif isinstance(event, ToolPiece):
            if event.id:
                calls.append([event.id, event.name, ""])
            calls[event.index][2] += event.arguments
        elif isinstance(event, End):
            text = "".join(piece.text for piece in pieces)
            return Whole(text, tuple(pieces), tuple((i, n, a) for i, n, a in calls), event)
    raise AssertionError("a generation ends with End or an error")
