"""A line for each request: method, path, status, milliseconds. Never what was asked or answered, nor a key."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def write_json(fields: dict) -> None:
    """One JSON object a line on stderr."""
    sys.stderr.write(json.dumps(fields) + "\n")
    sys.stderr.flush()


class AccessLog:
    """An ASGI layer that gives `write` the facts of each request once it has ended."""

    def __init__(self, app: ASGIApp, write: Callable[[dict], None] = write_json):
        self.app, self.write = app, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), 499  # 499: the client left before an answer began

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sender)
        finally:
            self.write(
                {
                    "time": round(time.time(), 3),
                    "method": scope.get("method"),
                    "path": scope.get("path", "")[:200],
                    "status": status,
                    "ms": round(1000 * (time.perf_counter() - started), 1),
                }
            )
