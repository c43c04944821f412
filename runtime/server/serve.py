"""`layerlift --server`: binds the port, answers at once, loads the model beside that, and ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..confinement import confine
from ..errors import LayerliftError, UserError
from ..startup import open_engine, read_text, sampling_of

if TYPE_CHECKING:
    from ..arguments import Options
    from ..engine import Engine
    from ..terminal import Terminal

PORT = 8080
TRIES = 32  # ports after the first
DRAIN_SECONDS = 5.0


def serve(options: Options, terminal: Terminal) -> int:
    """Runs the server until a signal; the exit code."""
    try:
        import msgspec  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        hint = "pip install 'layerlift[server]'"
        raise LayerliftError(f"the server needs {error.name}, which is not installed", hint=hint) from None
    keys = _keys(options)
    from .guard import is_loopback

    if not keys and not options.insecure_bind and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host} is open to other machines, and there is no key",
            hint="give --api-key KEY, or --insecure-bind to do without one",
        )
    listener = _listen(options.host, options.port, terminal)
    with listener:
        return asyncio.run(_run(options, terminal, listener, keys))


def _keys(options: Options) -> tuple[str, ...]:
    keys = list(options.api_key)
    if options.api_key_file:
        lines = [line.strip() for line in read_text(options.api_key_file).splitlines()]
        keys += [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise UserError(f"--api-key-file {options.api_key_file!r} holds no key")
    return tuple(keys)


def _listen(host: str, port: int | None, terminal: Terminal) -> socket.socket:
    """A listening socket; the next free port where none was asked for and 8080 is taken. Raises UserError."""
    first = PORT if port is None else port
    last = first + (TRIES if port is None else 0)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(first, last + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host.strip("[]"), number))
            listener.listen(512)
        except OSError as error:
            listener.close()
            if number == last or not isinstance(error, OSError) or error.errno not in _TAKEN:
                raise UserError(f"cannot listen at {host} port {number}: {error.strerror or error}") from None
            continue
        if number != first:
            terminal.say(f"port {first} is taken; listening at {number}")
        return listener
    raise AssertionError("the last port is tried or raises")


def _taken() -> frozenset[int]:
    import errno

    return frozenset({errno.EADDRINUSE, errno.EACCES})


_TAKEN = _taken()


async def _run(options: Options, terminal: Terminal, listener: socket.socket, keys: tuple[str, ...]) -> int:
    import uvicorn

    from .accesslog import AccessLog
    from .app import make_app
    from .guard import MAX_HEADER, Policy
    from .protocol import make_protocol
    from .service import Service, Settings

    settings = Settings(
        sampling=sampling_of(options) if options.seed is not None else _unseeded(options),
        max_tokens=options.max_tokens,
        alias=options.alias or "",
        slots=options.slots,
        queue=options.queue,
        timeout=float(options.timeout),
        metrics=options.metrics,
        show_slots=options.show_slots,
        template=options.chat_template,
    )
    url = _url(listener)

    def loaded(engine: Engine) -> None:
        if options.ui and options.browser and terminal.stderr.isatty():
            _open_browser(url)
        if options.confined and not any(stage.device.is_gpu for stage in engine.model.plan.stages):
            for line in confine():
                terminal.say(line)

    service = Service(lambda: open_engine(options, terminal, slots=options.slots), settings, loaded=loaded)
    policy = Policy.make(options.host, keys, options.allowed_hosts, options.cors_origins)
    app = make_app(service, policy, ui=options.ui)
    config = uvicorn.Config(
        AccessLog(app) if options.log_format == "json" else app,
        http=make_protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MAX_HEADER,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = uvicorn.Server(config)
    server.capture_signals = _no_signals  # they are ours
    loading = threading.Thread(target=service.load, name="layerlift-load", daemon=True)
    loading.start()
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    stop = _stop_signals()
    try:
        failed = await _until_ready(service, loading, running, stop)
        if failed is None and not stop.is_set():
            terminal.say(f"listening at {url} as {service.model_name}")
            await _first(running, stop.wait())
            await _drain(service, stop, terminal)
        server.should_exit = True
        await running
    finally:
        await asyncio.get_running_loop().run_in_executor(None, service.close)
    if failed is not None:
        raise failed
    return 0


def _open_browser(url: str, seconds: float = 5.0) -> None:
    """Waits no longer than that: a browser in the terminal does not come back."""
    opening = threading.Thread(target=webbrowser.open, args=(url,), daemon=True)
    opening.start()
    opening.join(seconds)


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield


def _unseeded(options: Options):
    from dataclasses import replace

    return replace(sampling_of(options), seed=None)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else str(host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _stop_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def came(number: int) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        if threading.current_thread() is threading.main_thread():
            try:
                loop.add_signal_handler(number, came, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda n, _: loop.call_soon_threadsafe(came, n))
    return stop


async def _first(*tasks) -> None:
    """Waits for the first of several and lets the others be."""
    futures = [asyncio.ensure_future(task) for task in tasks]
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for future in futures[1:]:
        future.cancel()


async def _until_ready(service, loading: threading.Thread, running, stop: asyncio.Event) -> BaseException | None:
    """Waits for the model; why it could not be loaded, if so."""
    while loading.is_alive() and not running.done() and not stop.is_set():
        await asyncio.sleep(0.02)
    return service.failure


async def _drain(service, stop: asyncio.Event, terminal: Terminal) -> None:
    """Takes nothing new and lets answers under way end, for a while."""
    service.draining = True
    if service.active:
        terminal.say(f"stopping; {len(service.active)} answers may end within {DRAIN_SECONDS:g} s")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DRAIN_SECONDS
    while service.active and loop.time() < deadline:
        await asyncio.sleep(0.02)
    for generation in list(service.active.values()):
        generation.close()
