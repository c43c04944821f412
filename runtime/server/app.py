"""The ASGI application: routes behind the guard, exceptions turned into answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import failures, page, wire
from .failures import HTTPFailure
from .guard import Guard, Policy
from .routes import PAGE, ROUTES, Entry
from .service import Service


def make_app(service: Service, policy: Policy, *, ui: bool = True) -> ASGIApp:
    """The application of a service; `ui` serves the web page too."""
    files = page.files() if ui else {}
    entries = (*ROUTES, *PAGE) if files else ROUTES
    app = Starlette(
        routes=[Route(e.path, _endpoint(e), methods=[e.method]) for e in entries],
        exception_handlers={HTTPException: _http_exception},
    )
    app.router.redirect_slashes = False
    app.state.service, app.state.page = service, files
    return Guard(app, policy, _publicity(entries, files))


def _publicity(entries: tuple[Entry, ...], files: dict):
    public = {e.path for e in entries if e.public and "{" not in e.path} | {f"/{name}" for name in files}
    return lambda path, method: method in ("GET", "HEAD") and path in public


def _endpoint(entry: Entry) -> Callable[[Request], Awaitable[Response]]:
    """Reads the body that the handler takes, and answers with what goes wrong."""
    handler, kind = entry.handler, entry.body

    async def call(request: Request) -> Response:
        try:
            return await (handler(request) if kind is None else handler(request, await wire.read(request, kind)))
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is there to read it
        except Exception as error:
            return failures.response(request.url.path, error)

    return call


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    words = {404: f"there is nothing at {request.url.path[:100]!r}", 405: f"{request.method} is not possible here"}
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    headers = dict(error.headers or {})
    return failures.response(request.url.path, HTTPFailure(status, kind, words.get(status, ""), headers=headers))
