"""A server on a thread of the tests' own process, with the engine it serves within reach."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import uvicorn
from layerlift.runtime.engine import Engine
from layerlift.runtime.model import Model
from layerlift.runtime.sampler import Sampling
from layerlift.runtime.server.app import make_app
from layerlift.runtime.server.guard import MAX_HEADER, Policy
from layerlift.runtime.server.protocol import make_protocol
from layerlift.runtime.server.service import Service, Settings


class Running:
    """`url`, `port`, the `service` and a client of a server."""

    def __init__(self, port: int, service: Service):
        self.port, self.service = port, service
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def post(self, path: str, status: int = 200, **body) -> dict:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, path: str, status: int = 200):
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def stream(self, path: str, **body) -> list[dict]:
        """The events of a stream, which must end with [DONE]."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def without_blanks(self) -> None:
        """No answer has a token that begins with one: a random model would fill JSON with them for ever."""
        tokenizer, settings = self.service.tokenizer, self.service.settings
        blank = tuple((i, -math.inf) for i in range(tokenizer.vocab_size) if tokenizer.piece(i)[:1].isspace())
        self.service.settings = replace(settings, sampling=replace(settings.sampling, logit_bias=blank))

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Waits until no request is in the engine; fails if one stays."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            load = self.service.engine.load()
            if not load.running and not load.waiting and not self.service.active:
                return
            time.sleep(0.002)
        raise AssertionError(f"still busy: {self.service.engine.load()}")


@contextlib.contextmanager
def serving(path, *, context: int = 512, slots: int = 4, **options) -> Iterator[Running]:
    """Serves a model; `options` as for `serving_engine`."""

    @contextlib.contextmanager
    def engine():
        with Model.load(path, ngl=0, threads=2) as model, Engine(model, context=context, slots=slots) as running:
            yield running

    with serving_engine(engine, slots=slots, **options) as running:
        yield running


@contextlib.contextmanager
def serving_engine(engine, *, policy: Policy | None = None, deadlines=(10.0, 60.0), **settings) -> Iterator[Running]:
    """Serves what `engine()` opens; `settings` are fields of Settings."""
    settings = {"sampling": Sampling(temperature=0.0), "metrics": True, **settings}
    service = Service(engine, Settings(**settings))
    service.load()
    if service.failure:
        raise service.failure
    app = make_app(service, policy or Policy.make("127.0.0.1", ()))
    http = make_protocol(*deadlines)
    config = uvicorn.Config(
        app, http=http, ws="none", lifespan="off", log_config=None, h11_max_incomplete_event_size=MAX_HEADER
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running = Running(listener.getsockname()[1], service)
        try:
            yield running
        finally:
            running.client.close()
            server.should_exit = True
            thread.join(10)
            service.close()
