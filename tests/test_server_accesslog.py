"""The request log says what happened, and nothing of what was said."""

from __future__ import annotations

import asyncio

from layerlift.runtime.server.accesslog import AccessLog


def run(status: int | None) -> dict:
    async def app(scope, receive, send):
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})

    lines: list[dict] = []

    async def send(message):
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"key=secret",
        "headers": [(b"authorization", b"Bearer secret")],
    }
    asyncio.run(AccessLog(app, lines.append)(scope, None, send))
    (line,) = lines
    assert "secret" not in str(line)
    return line


def test_a_request_is_a_line_with_its_status_and_no_key():
    line = run(429)
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/completions", 429)
    assert line["ms"] >= 0


def test_a_client_that_left_is_499():
    assert run(None)["status"] == 499
