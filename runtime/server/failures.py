"""What went wrong, as a status and a JSON body. One table from layerlift's exceptions to OpenAI's shape."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from starlette.responses import Response

from ..errors import BackendError, ContextFull, GrammarError, LayerliftError, TemplateError, UserError
from ..request import Request
from ..sampler import Sampling
from .post import TimeUp
from .service import Busy, Unavailable

log = logging.getLogger("layerlift.server")

Body = dict[str, Any]

# Exceptions in order of preference: status, OpenAI's type.
_TABLE: tuple[tuple[type[BaseException], int, str], ...] = (
    (ContextFull, 400, "exceed_context_size_error"),
    (Busy, 429, "rate_limit_error"),
    (Unavailable, 503, "unavailable_error"),
    (TimeUp, 504, "timeout_error"),
    (BackendError, 500, "server_error"),
    (UserError, 400, "invalid_request_error"),
    (GrammarError, 400, "invalid_request_error"),
    (TemplateError, 400, "invalid_request_error"),
    (LayerliftError, 500, "server_error"),
)


class HTTPFailure(LayerliftError):
    """A failure that is HTTP's own, such as a body that is too large."""

    def __init__(self, status: int, kind: str, message: str, *, hint: str = "", headers: dict[str, str] | None = None):
        super().__init__(message, hint=hint)
        self.status, self.kind, self.headers = status, kind, headers or {}


def describe(error: BaseException) -> tuple[int, Body]:
    """Status and error object {code, message, type, …}; nothing of what is inside for what is a bug."""
    if isinstance(error, HTTPFailure):
        return error.status, {"code": error.status, "message": _words(error), "type": error.kind}
    for kind, status, name in _TABLE:
        if isinstance(error, kind):
            body: Body = {"code": status, "message": _words(error), "type": name}
            if isinstance(error, ContextFull):
                body |= {"n_prompt_tokens": error.used or error.asked, "n_ctx": error.capacity}
            return status, body
    log.error("internal error", exc_info=error)
    return 500, {"code": 500, "message": "internal error", "type": "server_error"}


def _words(error: BaseException) -> str:
    hint = getattr(error, "hint", "")
    return str(error) + (f" ({hint})" if hint else "")


# Messages begin with the field in quotes, or with the name of a setting: "top_p is 7, must be between 0 and 1".
_QUOTED = re.compile(r"'([A-Za-z_][\w.\[\]]*)'")
_NAMED = re.compile(r"([a-z][a-z_]*)(?=: | is | must )")
_SETTINGS = frozenset(f.name for f in fields(Sampling)) | {f.name for f in fields(Request)}


def field_of(message: str) -> str | None:
    """The request's field that a message is about, if it is about one."""
    if quoted := _QUOTED.match(message):
        return quoted[1]
    named = _NAMED.match(message)
    return named[1] if named and named[1] in _SETTINGS else None


def openai_shape(body: Body) -> Body:
    param = field_of(body["message"]) if body["type"] == "invalid_request_error" else None
    return {"error": {**body, "param": param}}


# The shape of errors by the beginning of a path; OpenAI's elsewhere. Dialects add theirs here.
SHAPES: dict[str, Callable[[Body], Body]] = {}


def shaped(path: str, body: Body) -> Body:
    """An error object in the shape of the route that it happened on."""
    shape = next((SHAPES[prefix] for prefix in SHAPES if path.startswith(prefix)), openai_shape)
    return shape(body)


def response(path: str, error: BaseException) -> Response:
    """The whole answer to a request that failed before its first byte."""
    status, body = describe(error)
    headers = dict(error.headers) if isinstance(error, HTTPFailure) else {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(error.seconds)
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = json.dumps(shaped(path, body)).encode()
    return Response(content, status, headers, media_type="application/json")
