"""The engine: one thread that takes requests, runs steps over many sequences at once, and streams answers back.

Everything that generates text goes through here: chat, CLI, server and benchmark. It knows tokens and logits, and
neither prompts' wording nor devices.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, Backend, KVDtype, Span, Step
from .batch import choose
from .errors import ContextFull, LayerliftError, UserError
from .kv import KVCache, Sequence
from .model import Model
from .radix import common_prefix
from .request import Request, Sink, Stream
from .sampler import Sampled, Sampler
from .session import Session
from .task import Task

T = TypeVar("T")
Chosen = tuple[Task, Sequence, NDArray[np.int32]]  # a task, its sequence, the rows reserved for its share of a step
BUSY_BATCH = 128  # prompt tokens of a step while other sequences generate


@dataclass(frozen=True)
class Load:
    """Requests in slots, requests waiting for one, and cache rows that sequences hold."""

    running: int
    waiting: int
    rows: int


class Engine:
    """Runs one model. Thread-safe: any thread may submit; a `Stream` is read by one.

    `context` is the number of cache rows, shared by all sequences (0: as many tokens as the model was trained for,
    which is also the most). `slots` sequences run at once, others wait. `batch` is the most tokens of one step.
    """

    def __init__(
        self, model: Model, *, context: int = 8192, slots: int = 4, batch: int = 512, kv_dtype: KVDtype = "f16"
    ):
        for name, value, least in (("context", context, 0), ("slots", slots, 1), ("batch", batch, 1)):
            if value < least:
                raise UserError(f"{name} is {value}, must be at least {least}")
        trained = model.config.context
        self.model = model
        self.context = min(context, trained) if context > 0 else trained
        self.slots, self.batch = slots, batch
        self._cache = model.new_cache(self.context, kv_dtype)
        self._inbox: queue.SimpleQueue[Task | Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []
        self._closed = False
        self._process = os.getpid()
        # A step must not run on while Python ends and takes the native library away below it.
        atexit.register(self.close)
        self._thread = threading.Thread(target=self._loop, name="layerlift-engine", daemon=True)
        self._thread.start()

    # -- for callers --

    def submit(self, request: Request, sink: Sink | None = None) -> Stream:
        """Queues a request. Raises UserError for one that can never run; what fails later is raised by the stream.

        With a `sink`, what happens is given to it instead (see `Stream`).
        """
        self._check_open()
        if not len(request.tokens):
            raise UserError("the prompt is empty", hint="a prompt needs at least one token")
        vocab = self.model.config.vocab_size
        if not all(0 <= t < vocab for t in request.tokens):
            raise UserError(f"the prompt holds a token id outside 0 … {vocab - 1}")
        if len(request.tokens) > self.context:
            raise ContextFull(0, len(request.tokens), self.context)
        request.sampling.check_vocabulary(vocab)
        task = Task(request, self.model.tokenizer, lambda: self._inbox.put(lambda: None), sink)
        self._inbox.put(task)
        return task.stream

    def session(self) -> Session:
        """A new, empty place in the cache that outlives its requests."""
        return Session(self._call)

    def cache_bytes(self) -> dict[str, int]:
        """Bytes of the cache in use on each device."""
        return self._call(lambda cache: cache.bytes_by_device())

    def load(self) -> Load:
        """What the engine has to do at this moment; for gauges, so a step may lie between two of the figures."""
        return Load(len(self._running), len(self._waiting), self._cache.used)

    def close(self) -> None:
        """Cancels what runs and ends the thread. The model stays open."""
        atexit.unregister(self.close)
        if not self._closed and self._process == os.getpid():
            self._closed = True
            self._inbox.put(None)
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LayerliftError("the engine is closed")
        if self._process != os.getpid():  # a fork has no engine thread, and would wait for ever
            raise LayerliftError("the engine belongs to another process", hint="open the model after the fork")

    def _call(self, work: Callable[[KVCache], T]) -> T:
        """Runs `work` on the engine thread between two steps and waits for it."""
        self._check_open()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work(self._cache))
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(run)
        return future.result()

    # -- the thread --

    def _loop(self) -> None:
        while self._receive():
            try:
                self._drop_cancelled()
                self._admit()
                if self._running:
                    self._step()
            except Exception as error:  # the requests at hand fail; the engine goes on
                for task in [*self._running]:
                    self._fail(task, error)
        for task in [*self._running, *self._waiting]:
            task.end("cancelled")
            self._leave(task)

    def _receive(self) -> bool:
        """Takes in what callers sent; waits only when there is nothing to run. False: time to end."""
        idle = not self._running and not self._waiting
        while idle or not self._inbox.empty():
            idle = False
            item = self._inbox.get()
            if item is None:
                return False
            if isinstance(item, Task):
                self._waiting.append(item)
            else:
                item()
        return True

    def _drop_cancelled(self) -> None:
        for task in [t for t in (*self._running, *self._waiting) if t.cancelled]:
            task.end("cancelled")
            self._leave(task)

    def _admit(self) -> None:
        """Starts waiting tasks while there are slots, in order of arrival."""
        while self._waiting and len(self._running) < self.slots:
            task = self._waiting[0]
            if self._running and self._cache.free + self._cache.cached <= len(task.tokens):
                break  # it would only be put back
            try:
                task.begin(self._open(task))
            except LayerliftError as error:
                self._fail(task, error)
                continue
            self._waiting.popleft()
            self._running.append(task)

    def _open(self, task: Task) -> Sequence:
        """The sequence a task starts with: its session's, cut to the common prefix, or a new one."""
        session, tokens = task.request.session, task.tokens
        share = task.request.cache_prompt and not task.wants_all and not task.is_embedding
        if session is None:
            return self._cache.open(tokens if share else (), share=share)
        if session.busy and task.sequence is None:
            raise UserError("the session is busy with another request")
        session.busy = True
        if session.sequence is None:
            session.sequence = self._cache.open(tokens if share else ())
        else:
            same = common_prefix(np.asarray(session.sequence.tokens, np.int32), np.asarray(tokens, np.int32))
            self._cache.truncate(session.sequence, min(same, len(tokens) - 1) if share else 0)
        return session.sequence

    def _leave(self, task: Task) -> None:
        """A task's end: its rows go back to the cache, or stay with its session."""
        if task in self._running:
            self._running.remove(task)
        if task in self._waiting:
            self._waiting.remove(task)
        if task.sequence is None:
            return
        self._cache.rollback(task.sequence)
        if task.request.session is not None:
            task.request.session.busy = False
        else:
            self._cache.close(task.sequence, keep=task.request.cache_prompt)
        task.sequence = None

    def _fail(self, task: Task, error: BaseException) -> None:
        self._leave(task)
        task.stream.put(error)

    # -- one step --

    def _step(self) -> None:
        chosen = self._reserve()
        if not chosen:
            return
        step = self._assemble(chosen)
        origin, x = self.model.forward(step)
        first = 0
        logits_of: list[tuple[Task, int, int, int]] = []  # task, evaluated before, first output, end of outputs
        for task, sequence, rows in chosen:
            before, count = sequence.length, len(rows)
            self._cache.commit(sequence, task.tokens[before : before + count])
            wanted = count if task.wants_all else int(task.pending == 0)
            logits_of.append((task, before, first, first + wanted))
            first += wanted
            if task.prompt_left:
                task.prefilled(count)
        if first:
            self._answer(origin, x, logits_of)

    def _reserve(self) -> list[Chosen]:
        """Rows for each task's share of the next step. A task for which none are left makes room, waits or ends."""
        shares = choose([t.pending for t in self._running], batch=self.batch, busy_batch=BUSY_BATCH)
        chosen: list[Chosen] = []
        for task, count in [(self._running[s.task], s.count) for s in shares]:
            sequence = task.sequence
            assert sequence is not None
            if sequence.length + count > self.context and not self._shift(task):
                task.end("context")
                self._leave(task)
                continue
            try:
                chosen.append((task, sequence, self._cache.reserve(sequence, count)))
            except ContextFull as error:
                self._out_of_rows(task, sequence, error)
        return chosen

    def _out_of_rows(self, task: Task, sequence: Sequence, error: ContextFull) -> None:
        """Other sequences hold the rows: wait until they end; alone, shift or end."""
        if len(self._running) > 1 and task.request.session is None:
            self._running.remove(task)
            self._cache.close(sequence)
            task.sequence = None
            self._waiting.appendleft(task)
        elif not task.prompt_left and self._shift(task):
            pass  # the next step finds the rows
        elif task.prompt_left:
            self._fail(task, error)
        else:
            task.end("context")
            self._leave(task)

    def _shift(self, task: Task) -> bool:
        """Drops the older half of a generating sequence behind `keep` tokens, where its request allows it."""
        assert task.sequence is not None
        if not task.request.context_shift or task.prompt_left:
            return False
        begin = min(task.request.keep, task.sequence.length - 2)
        end = begin + (task.sequence.length - begin) // 2
        if end <= begin:
            return False
        self._cache.shift(task.sequence, begin, end)
        task.shifted(begin, end)
        return True

    def _assemble(self, chosen: list[Chosen]) -> Step:
        total = sum(len(rows) for _, _, rows in chosen)
        tokens, positions = np.empty(total, np.int32), np.empty(total, np.int32)
        spans, outputs, start = [], [], 0
        for task, sequence, rows in chosen:
            count = len(rows)
            part = slice(start, start + count)
            tokens[part] = task.tokens[sequence.length : sequence.length + count]
            positions[part] = np.arange(sequence.length, sequence.length + count)
            spans.append(Span(start, count, sequence.rows))
            if task.wants_all:
                outputs.extend(range(start, start + count))
            elif task.pending == count:
                outputs.append(start + count - 1)
            start += count
        all_rows = np.concatenate([rows for _, _, rows in chosen])
        return Step(tokens, positions, all_rows, tuple(spans), np.array(outputs, np.int32), self._cache.stores)

    def _answer(self, origin: Backend, x: Array, parts: list[tuple[Task, int, int, int]]) -> None:
        """Turns outputs into the next token of each task that has one, or into its embedding."""
        if any(task.is_embedding for task, *_ in parts):
            states = self.model.states(origin, x)
            for task, _, first, end in parts:
                if task.is_embedding and end > first:
                    task.pool(states[first:end])
        tasks = [part for part in parts if part[3] > part[2] and not part[0].is_embedding]
        picked: NDArray[np.int32] | None = None
        best: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None  # ids and logits, likeliest first
        host = np.empty((0, 0), np.float32)
        if tasks:
            backend, logits = self.model.logits(origin, x)
            if all(task.greedy for task, *_ in tasks):
                picked = backend.pick(logits)
            elif all(task.top_k for task, *_ in tasks):
                best = backend.topk(logits, max(task.top_k for task, *_ in tasks))
            else:
                host = backend.download(logits)
        for task, before, first, end in parts:
            if end == first:
                continue
            if task.is_embedding:
                if task.pending == 0:
                    task.end("length")
                    self._leave(task)
                continue
            if task.wants_all:
                task.score_prompt(host[first:end], before)
            if task.pending == 0 and picked is not None:
                self._next_token(task, lambda _, at=end - 1: Sampled(int(picked[at])))
            elif task.pending == 0 and best is not None:
                self._next_token(task, lambda sampler, at=end - 1: sampler.sample_among(best[0][at], best[1][at]))
            elif task.pending == 0:
                self._next_token(task, lambda sampler, at=end - 1: sampler.sample(host[at]))

    def _next_token(self, task: Task, choose: Callable[[Sampler], Sampled]) -> None:
        if task.request.max_tokens == 0:
            task.end("length")
            self._leave(task)
            return
        try:
            if task.pick(choose(task.sampler)):
                self._leave(task)
        except LayerliftError as error:
            self._fail(task, error)
