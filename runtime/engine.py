"""The engine: one thread that takes requests, runs steps over many sequences at once, and streams answers back.

Everything that generates text goes through here: chat, CLI, server and benchmark. It knows tokens and logits, and
neither prompts' wording nor devices.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, KVDtype, Span, Step
from .batch import Pace, choose
from .errors import ContextFull, LayerliftError, UserError
from .flight import Flight, Outputs, Part
from .kv import KVCache, Sequence
from .model import Model
from .radix import common_prefix
from .request import Request, Sink, Stream
from .session import Session
from .task import Task

T = TypeVar("T")
Chosen = tuple[Task, Sequence, NDArray[np.int32]]  # a task, its sequence, the rows reserved for its share of a step
PAUSE = 0.1  # seconds between two tokens of an answer while others' prompts are read, where the device is fast enough


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
        self._under_way: Flight | None = None  # a step that started before the tokens it reads were known here
        self._pace = Pace(PAUSE)
        self.between_steps: Callable[[], None] = lambda: None  # called on the engine's thread; must not block or raise
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
                if self._running or self._under_way:
                    self._step()
            except Exception as error:  # the requests at hand fail; the engine goes on
                self._under_way = None
                for task in [*self._running]:
                    self._fail(task, error)
            self.between_steps()
        for task in [*self._running, *self._waiting]:
            task.end("cancelled")
            self._leave(task)
        self.between_steps()

    def _receive(self) -> bool:
        """Takes in what callers sent; waits only when there is nothing to run. False: time to end."""
        if self._under_way:
            return True  # its sequences hold rows that no one else must find; it is the last before the callers' turn
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
        flight, self._under_way = self._under_way, None
        if flight:
            self._catch_up(flight)
        elif chosen := self._reserve():
            flight = self._launch(chosen)
        if flight:
            self._under_way = self._launch_ahead(flight)
            self._answer(flight)
            if not flight.reads_prompts:
                self._pace.answered(time.perf_counter())

    def _launch(self, chosen: list[Chosen]) -> Flight:
        """Starts a step. Its tokens count as evaluated from now on."""
        reading = any(len(rows) > 1 for _, _, rows in chosen)
        if reading:
            tokens = sum(len(rows) for _, _, rows in chosen)
            self._pace.read(tokens, waiting=any(task.pending == 1 for task in self._running))
        parts, first = [], 0
        for task, sequence, rows in chosen:
            wanted = len(rows) if task.wants_all else int(task.pending == len(rows))
            parts.append(Part(task, sequence, sequence.length, first, first + wanted))
            first += wanted
        flight = self._start(self._assemble(chosen), parts)
        flight.reads_prompts = reading
        for task, sequence, rows in chosen:
            self._cache.commit(sequence, task.tokens[sequence.length : sequence.length + len(rows)])
            if task.prompt_left:
                task.prefilled(len(rows))
        return flight

    def _launch_ahead(self, flight: Flight) -> Flight | None:
        """Starts the next token of every sequence while those of `flight` are on their way here, where that is sure.

        The device goes on with its own tokens. A sequence that ends with the one under way has computed one in vain.
        """
        parts, ids = flight.parts, flight.outputs.ids if flight.outputs else None
        if ids is None or len(self.model.backends) > 1 or self._waiting or not self._inbox.empty():
            return None
        if [part.task for part in parts] != self._running:
            return None
        if not all(p.end == p.first + 1 and p.task.goes_on and p.sequence.length < self.context for p in parts):
            return None
        try:
            chosen = [(part.task, part.sequence, self._cache.reserve(part.sequence, 1)) for part in parts]
        except ContextFull:
            for part in parts:
                self._cache.rollback(part.sequence)
            return None
        following = [Part(task, seq, seq.length, i, i + 1) for i, (task, seq, _) in enumerate(chosen)]
        return self._start(self._assemble(chosen, ids), following, ahead=1)

    def _catch_up(self, flight: Flight) -> None:
        """The tokens that a step under way reads are known now. Sequences that ended with them are no longer part."""
        flight.parts = [p for p in flight.parts if p.task in self._running and p.task.sequence is p.sequence]
        for part in flight.parts:
            self._cache.commit(part.sequence, part.task.tokens[part.before : part.before + 1])

    def _start(self, step: Step, parts: list[Part], *, ahead: int = 0) -> Flight:
        """Launches a step; without outputs where no token comes of it, only embeddings or the middle of prompts."""
        owners, model = [part.task for part in parts for _ in range(part.first, part.end)], self.model
        outputs = Outputs(model.head_backend, owners, ahead=ahead)
        if owners and not any(task.is_embedding for task in owners):
            return Flight(parts, outputs.launched(*model.answer(step, outputs.draws)))
        origin, x = model.forward(step)
        if all(task.is_embedding for task in owners):
            return Flight(parts, None, lambda: model.states(origin, x))
        return Flight(parts, outputs.launched(*model.choose(origin, x, outputs.draws)), lambda: model.states(origin, x))

    def _reserve(self) -> list[Chosen]:
        """Rows for each task's share of the next step. A task for which none are left makes room, waits or ends."""
        pending = [t.pending for t in self._running]
        shares = choose(pending, batch=self.batch, chunk=self._pace.chunk, reading=self._pace.reading)
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

    def _assemble(self, chosen: list[Chosen], ids: Array | None = None) -> Step:
        """`ids`: one token of each sequence, which only the device knows."""
        total = sum(len(rows) for _, _, rows in chosen)
        tokens, positions = np.empty(total, np.int32), np.empty(total, np.int32)
        spans, outputs, start = [], [], 0
        for task, sequence, rows in chosen:
            count = len(rows)
            part = slice(start, start + count)
            if ids is None:
                tokens[part] = task.tokens[sequence.length : sequence.length + count]
            positions[part] = np.arange(sequence.length, sequence.length + count)
            spans.append(Span(start, count, sequence.rows))
            if task.wants_all:
                outputs.extend(range(start, start + count))
            elif ids is not None or task.pending == count:
                outputs.append(start + count - 1)
            start += count
        all_rows = np.concatenate([rows for _, _, rows in chosen])
        wanted = np.array(outputs, np.int32)
        return Step(tokens if ids is None else ids, positions, all_rows, tuple(spans), wanted, self._cache.stores)

    def _answer(self, flight: Flight) -> None:
        """Turns outputs into the next token of each task that has one, or into its embedding."""
        parts, outputs = [part for part in flight.parts if part.end > part.first], flight.outputs
        if any(part.task.is_embedding for part in parts):
            assert flight.states
            states = flight.states()
            for part in parts:
                if part.task.is_embedding:
                    part.task.pool(states[part.first : part.end])
        if outputs:
            outputs.receive()
        for part in parts:
            task = part.task
            if task.is_embedding:
                if task.pending == 0:
                    task.end("length")
                    self._leave(task)
                continue
            assert outputs is not None
            if task.wants_all:
                task.score_prompt(outputs.host[part.first : part.end], part.before)
            if task.pending == 0:
                self._next_token(task, outputs, part.end - 1)

    def _next_token(self, task: Task, outputs: Outputs, row: int) -> None:
        if task.request.max_tokens == 0:
            task.end("length")
            self._leave(task)
            return
        try:
            if task.pick(outputs.sampled(row)):
                self._leave(task)
        except LayerliftError as error:
            self._fail(task, error)
