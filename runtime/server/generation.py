"""The seam between protocols and the engine: a question without a protocol, and its answer as events.

To add a dialect, write one file beside this one with an async function for each of its routes, and list them in
`routes.py`. Such a function

1. takes the request and, where there is one, its `body: Body`, a msgspec struct that is read before (mistakes are 400);
2. translates the body into an `Ask`: messages or a prompt, `Sampling`, limits, tools, a constraint;
3. starts it: `generation = await start(service, ask)`, which raises what is wrong with it before the first byte;
4. translates the events. Streaming: `return wire.EventStream(chunks(generation), generation.close)`, where `chunks` is
   an async generator of bytes over `async for event in generation`. Whole: `await wire.whole(request, generation)`.

The service is `request.app.state.service`. Errors are raised, never returned: `failures.py` maps each exception of
layerlift's tree to a status and OpenAI's shape; a dialect with another shape registers its own in
`failures.SHAPES`. A client that leaves closes the generation, which frees its slot at the engine's next step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import ContextFull
from ..request import Done, Event, Prefill, Request, Timings, Token
from ..sampler import Sampling
from .toolcalls import CallPiece, TextPiece, Tools, parsed_arguments

if TYPE_CHECKING:
    from .service import Service

Reason = Literal["eos", "stop", "length", "context", "cancelled", "tool_calls"]
CALLED = ("eos", "stop", "cancelled")  # how an answer ends that is over with its calls


@dataclass(frozen=True)
class Constraint:
    """What the answer must look like: a GBNF grammar's text, or a JSON schema."""

    kind: Literal["gbnf", "json_schema"]
    source: Any


@dataclass(frozen=True)
class Ask:
    """A question in no protocol's words: `messages` for the chat template, or a `prompt` of text or token ids.

    `messages` are dicts as chat templates know them: role, content (text, or parts of type text), tool_calls,
    tool_call_id. `tools` are OpenAI's function descriptions; `tool_choice` is "auto", "none", "required" or a
    function's name. `max_tokens` -1 is no limit. `template_fields` are variables of the template.
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | Sequence[int] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = -1
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    template_fields: Mapping[str, Any] = field(default_factory=dict)
    ignore_eos: bool = False
    cache_prompt: bool = True
    context_shift: bool = False
    keep: int = 0
    special: bool = False
    prompt_logprobs: bool = False
    pooling: Literal["none", "mean", "last"] = "none"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` prompt tokens are evaluated, `cached` of them were before; `seconds` since the start."""

    done: int
    total: int
    cached: int
    seconds: float


class Piece(NamedTuple):
    """Text of the answer, possibly none, and the token it came with, if one did."""

    text: str
    token: Token | None = None


@dataclass(frozen=True)
class ToolPiece:
    """Part of a call of function `name`, number `index` of the answer; `arguments` is a piece of JSON text.

    The first piece of a call has its `id` and `name`; later ones have empty ones.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class End:
    """The end of an answer, with its counts; `timings.prompt_tokens` leaves out the cached ones."""

    reason: Reason
    prompt_tokens: int
    timings: Timings
    stop: str | None = None
    eog: Token | None = None
    prompt_logprobs: tuple[Token, ...] = ()
    embedding: tuple[float, ...] = ()


Answer = Progress | Piece | ToolPiece | End


@dataclass(frozen=True)
class Prepared:
    """An Ask turned into the engine's terms, good for several generations."""

    request: Request
    tools: Tools | None
    ask: Ask
    prompt: str  # as rendered; empty where token ids were given


def prepare(service: Service, ask: Ask) -> Prepared:
    """Renders, tokenises and compiles, off the event loop. Raises UserError and its like, ContextFull"""
    tokenizer = service.tokenizer
    tools = None
    if ask.tools:
        source, parallel = service.template.source, ask.parallel_tool_calls
        tools = Tools.choose(ask.tools, ask.tool_choice, source, parallel=parallel)
    if ask.messages is not None:
        messages = tools.messages(ask.messages) if tools else list(map(parsed_arguments, ask.messages))
        described = tools.for_template if tools else None
        prompt = service.template.render(messages, tools=described, **ask.template_fields)
        prompt += tools.opening if tools else ""
        tokens: Sequence[int] = tokenizer.encode(prompt)
    elif isinstance(ask.prompt, str):
        prompt, tokens = ask.prompt, tokenizer.encode(ask.prompt)
    else:
        prompt, tokens = "", list(ask.prompt or ())
    if not tokens:
        start = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
        tokens = [start] if start is not None else []
    room = service.engine.context - len(tokens)
    if room < 1 and not (room == 0 and (ask.max_tokens == 0 or ask.pooling != "none")):
        raise ContextFull(len(tokens), max(1, 1 - room), service.engine.context)
    limit = service.settings.max_tokens
    max_tokens = ask.max_tokens if ask.max_tokens >= 0 else limit
    request = Request(
        tokens,
        replace(ask.sampling, grammar=_grammar(service, ask, tools)),
        max_tokens=max_tokens,
        stop=ask.stop,
        ignore_eos=ask.ignore_eos,
        context_shift=ask.context_shift,
        keep=min(len(tokens) if ask.keep < 0 else ask.keep, len(tokens)),
        cache_prompt=ask.cache_prompt,
        prompt_logprobs=ask.prompt_logprobs,
        special=ask.special or bool(tools and tools.special),
        pooling=ask.pooling,
    )
    return Prepared(request, tools, ask, prompt)


def _grammar(service: Service, ask: Ask, tools: Tools | None):
    from ..grammar import compile_gbnf, compile_json_schema

    if tools and tools.schema is not None:
        return compile_json_schema(tools.schema, service.tokenizer)
    if ask.constraint is None:
        return None
    if ask.constraint.kind == "gbnf":
        return compile_gbnf(ask.constraint.source, service.tokenizer)
    return compile_json_schema(ask.constraint.source, service.tokenizer)


async def start(service: Service, ask: Ask) -> Generation:
    """Begins an answer; everything that can be wrong with a question is raised here."""
    return (await start_all(service, [ask]))[0]


async def start_all(service: Service, asks: Sequence[Ask], *, times: int = 1) -> list[Generation]:
    """Begins several answers, each question `times` over with seeds of its own, or none of them."""
    service.admit(len(asks) * times)
    prepared = [await service.prepare(prepare, service, ask) for ask in asks]
    service.admit(len(asks) * times)  # others came in meanwhile
    started: list[Generation] = []
    try:
        for each in prepared:
            started.extend(Generation(service, _turn(each, turn)) for turn in range(times))
    except BaseException:
        close_all(started)
        raise
    return started


async def count(service: Service, ask: Ask) -> int:
    """How many tokens a question has, also one that does not fit."""
    try:
        prepared = await service.prepare(prepare, service, replace(ask, max_tokens=0))
    except ContextFull as error:
        return error.used
    return len(prepared.request.tokens)


def close_all(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.close()


def _turn(prepared: Prepared, turn: int) -> Prepared:
    """The same request with the seed of its n-th answer."""
    sampling = prepared.request.sampling
    if not turn or sampling.seed in (None, -1):
        return prepared
    return replace(prepared, request=replace(prepared.request, sampling=replace(sampling, seed=sampling.seed + turn)))


class Generation(AsyncIterator[Answer]):
    """An answer under way: an async iterator of events that ends behind `End`. Errors are raised while iterating.

    Belongs to the event loop; the engine's thread only puts events in. `close` may be called at any time, and must be
    where the iterator is left early.
    """

    def __init__(self, service: Service, prepared: Prepared):
        self.prepared, self.request = prepared, prepared.request
        self.prompt_tokens = len(prepared.request.tokens)
        self.generated = 0
        self._service = service
        self._reader = prepared.tools.reader() if prepared.tools else None
        self._mail, sink = service.post.open(service.settings.timeout)
        self._out: deque[Answer] = deque()
        self._ended = self._called = False
        self._cached = self._evaluated = 0
        self.started = time.perf_counter()
        self._first = self._last = 0.0
        self._stream = service.engine.submit(prepared.request, sink)
        self.number = service.enter(self)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Answer:
        while not self._out:
            if self._ended:
                raise StopAsyncIteration
            try:
                while not self._mail.letters:
                    await self._mail
                event = self._mail.letters.popleft()
                if isinstance(event, BaseException):
                    self._service.metrics.failed += 1
                    raise event
                self._take(event)
            except BaseException:
                self.close()
                raise
        return self._out.popleft()

    def close(self) -> None:
        """Ends the answer; its slot is free at the engine's next step. Harmless when it has ended."""
        if not self._ended:
            self._leave()
            self._stream.cancel()
            self._service.metrics.cancelled += 1

    def _leave(self) -> None:
        self._ended = True
        self._mail.close()
        self._service.leave(self.number)

    @property
    def timings(self) -> Timings:
        """Counts and seconds so far."""
        now = time.perf_counter()
        first = self._first or now
        return Timings(self._evaluated, self._cached, self.generated, first - self.started, now - first)

    # -- events --

    def _take(self, event: Event) -> None:
        if isinstance(event, Token):
            self._clock()
            self.generated += 1
            self._read(event.text, event)
            if self._reader is not None and self._reader.full:
                self._stream.cancel()  # its one call is made; what the model would write behind it is not wanted
        elif isinstance(event, Prefill):
            self._cached, self._evaluated = event.cached, event.done - event.cached
            self._out.append(Progress(event.done, event.total, event.cached, time.perf_counter() - self.started))
        else:
            self._end(event)

    def _clock(self) -> None:
        now = time.perf_counter()
        if self._first:
            self._service.metrics.between_tokens.add(now - self._last)
        else:
            self._first = now
            self._service.metrics.first_token.add(now - self.started)
        self._last = now

    def _read(self, text: str, token: Token | None) -> None:
        if self._reader is None:
            self._out.append(Piece(text, token))
            return
        for piece in self._reader.feed(text):
            self._put(piece)
        if token is not None and self.request.sampling.n_probs >= 0:
            self._out.append(Piece("", token))

    def _put(self, piece: TextPiece | CallPiece) -> None:
        if isinstance(piece, TextPiece):
            self._out.append(Piece(piece.text))
        else:
            self._called = True
            self._out.append(ToolPiece(piece.index, piece.id, piece.name, piece.arguments))

    def _end(self, done: Done) -> None:
        if done.text:
            self._read(done.text, None)
        for piece in self._reader.flush() if self._reader else ():
            self._put(piece)
        reason: Reason = "tool_calls" if self._called and done.reason in CALLED else done.reason
        self._service.metrics.count(done.timings)
        self._out.append(
            End(reason, self.prompt_tokens, done.timings, done.stop, done.eog, done.prompt_logprobs, done.embedding)
        )
        self._leave()
