"""uvicorn's h11 protocol with a deadline for requests to arrive, and a short way for the pieces of a stream.

A client that sends a request byte by byte holds a connection open for ever otherwise; middleware is called only when
the header is complete, so that the protocol has to watch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

WRITE = "layerlift.write"  # ASGI extension: a `Write` for bodies of unknown length, once the header is sent
Write = Callable[[bytes], Awaitable[None]]
HEADER_SECONDS = 10.0
BODY_SECONDS = 60.0


def make_protocol(header_seconds: float = HEADER_SECONDS, body_seconds: float = BODY_SECONDS):
    """The class for uvicorn's `http` setting."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes connections whose header or body takes too long, and offers applications WRITE."""

        _alarm = None

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._application, self.app = self.app, self._run

        async def _run(self, scope, receive, send) -> None:
            cycle, flow, transport = self.cycle, self.flow, self.transport

            async def write(data: bytes) -> None:
                """As h11 would, with what it looks up for each piece known before."""
                if flow.write_paused and not cycle.disconnected:
                    await flow.drain()
                if data and not cycle.disconnected:
                    transport.write(b"%x\r\n%b\r\n" % (len(data), data))

            if scope["http_version"] == "1.1" and scope["method"] != "HEAD":  # bodies come in chunks
                scope["extensions"] = {WRITE: write}
            await self._application(scope, receive, send)

        def connection_made(self, transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch(header_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self.conn.their_state
            super().data_received(data)
            after = self.conn.their_state
            if after is h11.SEND_BODY and before is not h11.SEND_BODY:
                self._watch(body_seconds)
            elif after is h11.IDLE:
                if self._alarm is None:  # the first bytes of a request on a connection that was kept
                    self._watch(header_seconds)
            elif after is not h11.SEND_BODY:
                self._unwatch()

        def _watch(self, seconds: float) -> None:
            self._unwatch()
            self._alarm = self.loop.call_later(seconds, self._late)

        def _unwatch(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

        def _late(self) -> None:
            self._alarm = None
            self.transport.close()

    return Protocol
