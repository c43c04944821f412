"""What all requests share: the model while it loads and once it is there, its engine, and the limits of the server.

Knows nothing of HTTP. `Service.load` runs on a thread of its own; everything else belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import LayerliftError
from ..sampler import Sampling
from .metrics import Metrics
from .post import Post
from .recall import Recall

if TYPE_CHECKING:
    from ..engine import Engine
    from ..template import ChatTemplate
    from ..tokenizer import Tokenizer
    from .generation import Generation

T = TypeVar("T")


class Unavailable(LayerliftError):
    """The model is not there yet, or never will be."""


class Busy(LayerliftError):
    """The queue is full; `seconds` is when to ask again."""

    def __init__(self, waiting: int, seconds: int):
        super().__init__(f"{waiting} requests are waiting, as many as may", hint="try again later")
        self.seconds = seconds


@dataclass(frozen=True)
class Settings:
    """What the command line decides about answers. `max_tokens` -1 is no limit."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = -1
    alias: str = ""
    slots: int = 4
    queue: int = 256
    timeout: float = 600.0  # seconds; 0: no limit
    metrics: bool = False
    show_slots: bool = True
    template: str | None = None  # a built-in's name or a file, instead of the model's own


class Service:
    """One model, loading or ready. `open` makes the engine and closes it; it is entered once, on a thread.

    `loaded` is called there once everything has started that answers need, before the first is given.
    """

    def __init__(
        self,
        open: Callable[[], AbstractContextManager[Engine]],
        settings: Settings,
        *,
        loaded: Callable[[Engine], None] = lambda engine: None,
    ):
        self._open, self._loaded = open, loaded
        self._held = ExitStack()
        self.settings = settings
        self.started = time.time()
        self.failure: BaseException | None = None
        self.metrics = Metrics()
        self.post = Post()
        self.recall = Recall()
        self.active: dict[int, Generation] = {}
        self.draining = False
        self._numbers = 0
        self._engine: Engine | None = None
        self._template: ChatTemplate | None = None
        # Rendering, tokenising and compiling take milliseconds, which the event loop does not have.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="layerlift-prepare")

    # -- the model --

    def load(self) -> None:
        """Opens the model; afterwards it is ready, or `failure` says why not."""
        try:
            engine = self._held.enter_context(self._open())
            engine.between_steps = self.post.send
            self._template = self._choose_template(engine)
            self._warm_up(engine)
            self._loaded(engine)
            self._engine = engine
        except BaseException as error:
            self._held.close()
            self.failure = error

    def _choose_template(self, engine: Engine) -> ChatTemplate:
        if self.settings.template is None:
            return engine.model.template
        from ..startup import template_of

        return template_of(self.settings.template, engine.model)

    def _warm_up(self, engine: Engine) -> None:
        """Starts what the first request would wait for: the template's process and the kernels' work buffers."""
        from ..request import Request

        try:
            assert self._template is not None
            self._template.render([{"role": "user", "content": "Hi"}])
        except LayerliftError:
            pass  # a template that fails does so for those who use it
        engine.submit(Request(engine.model.tokenizer.encode("Hi") or [0], max_tokens=1, cache_prompt=False)).result()

    @property
    def engine(self) -> Engine:
        """The engine. Raises Unavailable."""
        if self._engine is None:
            raise Unavailable(f"the model failed to load: {self.failure}" if self.failure else "Loading model")
        return self._engine

    @property
    def ready(self) -> bool:
        return self._engine is not None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.model.tokenizer

    @property
    def template(self) -> ChatTemplate:
        _ = self.engine
        assert self._template is not None
        return self._template

    @property
    def model_name(self) -> str:
        """What the API calls the model."""
        from pathlib import Path

        return self.settings.alias or (Path(self.engine.model.gguf.path).name if self._engine else "")

    # -- requests --

    async def prepare(self, work: Callable[..., T], *args: Any) -> T:
        """Runs `work` beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def admit(self, count: int = 1) -> None:
        """Raises Busy when `count` more requests are more than may wait, Unavailable when none is taken."""
        _ = self.engine
        if self.draining:
            raise Unavailable("the server is about to stop")
        waiting = len(self.active) - self.settings.slots
        if waiting + count > self.settings.queue:
            self.metrics.refused += 1
            raise Busy(max(waiting, 0), 1 + max(waiting, 0) // self.settings.slots)

    def enter(self, generation: Generation) -> int:
        """Takes a generation into the books; its number."""
        self._numbers += 1
        self.active[self._numbers] = generation
        return self._numbers

    def leave(self, number: int) -> None:
        self.active.pop(number, None)

    def close(self) -> None:
        """Ends the engine and gives the model back."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._engine = None
        self._held.close()
