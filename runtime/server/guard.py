"""Who may ask: Host and Origin on every route, keys on every route that is not public, sizes of bodies.

An ASGI layer in front of all routes. A web page that a browser shows must not reach a server on this machine by a name
of its own (DNS rebinding) or from its own origin, so that both are compared with what the server is called.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import failures
from .failures import HTTPFailure

MAX_BODY = 32 << 20  # bytes
MAX_HEADER = 64 << 10
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Policy:
    """`hosts` are names the server answers to; `any_address` lets numbers pass, for servers beyond this machine."""

    hosts: frozenset[str] = frozenset(LOCAL)
    any_address: bool = False
    origins: frozenset[str] = frozenset()  # of pages elsewhere that may use the API; "*" is all
    keys: tuple[bytes, ...] = ()  # sha256 of each

    @classmethod
    def make(cls, host: str, keys: Iterable[str], hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> Policy:
        names = {name.lower().strip("[]") for name in (*LOCAL, host, *hosts)} - {"0.0.0.0", "::", ""}
        digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
        cors = frozenset(origin.rstrip("/").lower() for origin in origins)
        return cls(frozenset(names), not is_loopback(host), cors, digests)

    def knows_host(self, host: str) -> bool:
        name = _host_name(host)
        if name is None:
            return False
        return name in self.hosts or (self.any_address and _is_address(name))

    def knows_origin(self, origin: str, host: str) -> bool:
        origin = origin.rstrip("/").lower()
        if origin in self.origins or "*" in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc == host.lower()

    def knows_key(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = False
        for each in self.keys:  # all of them, so that the time says nothing
            found |= hmac.compare_digest(digest, each)
        return found


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, bracket, port = host.partition(":")
    if not name or (port and not port.isdecimal()) or (host.startswith("[") and not bracket):
        return None
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """The layer. `is_public` says of a path and method whether it needs no key."""

    def __init__(self, app: ASGIApp, policy: Policy, is_public: Callable[[str, str], bool]):
        self.app, self.policy, self.is_public = app, policy, is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        foreign = self.policy.knows_origin(origin, "") if origin is not None else False
        send = _with_headers(send, origin if foreign else None)
        try:
            self._check(scope, headers)
        except HTTPFailure as error:
            await failures.response(scope["path"], error)(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and foreign:
            await Response(status_code=204)(scope, receive, send)
            return
        await self.app(scope, _limited(receive), send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        # The HTTP parser ends a header that has grown too large; one that came whole it lets through.
        target = len(scope.get("raw_path", b"")) + len(scope["query_string"])
        if target + sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER:
            why = f"the header is larger than {MAX_HEADER >> 10} KiB"
            raise HTTPFailure(400, "invalid_request_error", why, headers={"Connection": "close"})
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.policy.knows_host(hosts[0]):
            shown = hosts[0][:100] if hosts else ""
            hint = "start the server with --allowed-hosts NAME to answer to other names"
            raise HTTPFailure(403, "permission_error", f"Host {shown!r} is not this server", hint=hint)
        for origin in headers.getlist("origin"):
            if not self.policy.knows_origin(origin, hosts[0]):
                hint = "start the server with --cors-origins ORIGIN to let its pages in"
                raise HTTPFailure(403, "permission_error", f"Origin {origin[:100]!r} may not ask", hint=hint)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > MAX_BODY:
            raise _too_large()
        needs_key = self.policy.keys and scope["method"] != "OPTIONS"
        if needs_key and not self.is_public(scope["path"], scope["method"]):
            kind, _, key = headers.get("authorization", "").partition(" ")
            key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
            if not self.policy.knows_key(key):
                raise HTTPFailure(401, "authentication_error", "Invalid API Key")


def _too_large() -> HTTPFailure:
    return HTTPFailure(413, "invalid_request_error", f"the body is larger than {MAX_BODY >> 20} MiB")


def _limited(receive: Receive) -> Receive:
    """Ends a body that says nothing of its length and grows too large."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise _too_large()
        return message

    return limited


def _with_headers(send: Send, origin: str | None) -> Send:
    """Adds what every answer carries, and leave for a page elsewhere to read it."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            if origin is not None:
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Allow-Headers"] = "authorization, content-type, x-api-key"
                headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE, OPTIONS"
                headers.add_vary_header("Origin")
        await send(message)

    return sender
