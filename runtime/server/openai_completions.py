"""OpenAI's completions: /v1/completions, with `echo` and `logprobs` together, which is how a model is scored."""

from __future__ import annotations

import asyncio
import codecs
import math
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import UserError
from ..request import Token
from . import fields, openai, wire
from .fields import MAX_LOGPROBS, SamplingFields
from .generation import Ask, End, Generation, Piece, Progress, close_all, start_all
from .openai_chat import MAX_ANSWERS, merged
from .service import Service
from .shapes import Limit, Prompt, StreamOptions, between

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

MAX_PROMPTS = 256
DEFAULT_TOKENS = 16  # OpenAI's own default of max_tokens


class CompletionBody(SamplingFields, kw_only=True):
    prompt: Prompt
    max_tokens: Limit = None
    n_predict: Limit = None
    n: Annotated[int | None, between(1, MAX_ANSWERS)] = None
    best_of: Annotated[int | None, between(1, MAX_ANSWERS)] = None
    echo: bool | None = None
    logprobs: Annotated[int | bool | None, between(0, MAX_LOGPROBS)] = None
    suffix: str | None = None
    stream_options: StreamOptions | None = None


async def completions(request: Request, body: CompletionBody) -> Response:
    """OpenAI's completion of plain text."""
    service: Service = request.app.state.service
    asks = [_ask(service, body, prompt) for prompt in prompts(body.prompt)]
    wanted = fields.within("n", body.n, 1, 1, MAX_ANSWERS)
    times = fields.within("best_of", body.best_of, wanted, wanted, MAX_ANSWERS)
    if body.stream and times > wanted:
        raise UserError("'best_of' cannot be streamed: which answers are best is known at their end")
    if body.suffix:
        raise UserError("'suffix' is not supported", hint="leave it out")
    generations = await start_all(service, asks, times=times)
    if body.stream:
        return wire.EventStream(_chunks(service, body, generations, times), lambda: close_all(generations))
    try:
        answers = await wire.while_connected(request, asyncio.gather(*map(wire.gather, generations)))
    finally:
        close_all(generations)
    ends = [answer.end for answer in answers]
    pairs = list(zip(generations, answers, strict=True))
    best = [pair for i in range(0, len(pairs), times) for pair in _likeliest(pairs[i : i + times], wanted)]
    choices = [_choice(service, body, i, *pair) for i, pair in enumerate(best)]
    return wire.reply(
        {
            **openai.envelope(service, "text_completion", "cmpl-"),
            "choices": choices,
            "usage": openai.usage(ends, sum(end.prompt_tokens for end in ends[::times])),
            "timings": openai.timings(ends[0].timings),
        }
    )


def prompts(given: Any, field: str = "prompt") -> list[str | list[int]]:
    """A text, token ids, or a list of either. Raises UserError."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(_is_id(each) for each in given):
            return [given]
        if len(given) > MAX_PROMPTS:
            raise UserError(f"'{field}' has {len(given)} prompts; at most {MAX_PROMPTS} are taken")
        if all(isinstance(p, str) or (isinstance(p, list) and p and all(map(_is_id, p))) for p in given):
            return given
    raise UserError(f"'{field}' must be a text, a list of token ids, or a list of these")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ask(service: Service, body: CompletionBody, prompt: str | list[int]) -> Ask:
    limit = fields.limit("max_tokens", body.max_tokens, body.n_predict, default=DEFAULT_TOKENS)
    probs = _probs(body)
    if not -1 <= probs <= MAX_LOGPROBS:
        raise UserError(f"'logprobs' is {probs}, must be between 0 and {MAX_LOGPROBS}")
    ranked = max(probs, 0) if body.best_of else probs
    return replace(
        fields.ask(service, body, max_tokens=limit, n_probs=ranked, constraint=fields.constraint(body)),
        prompt=prompt,
        prompt_logprobs=bool(body.echo) and probs >= 0,
    )


def _probs(body: CompletionBody) -> int:
    if body.logprobs is None or body.logprobs is False:
        return -1
    return 1 if body.logprobs is True else body.logprobs


Answered = tuple[Generation, wire.Whole]


def _likeliest(answers: list[Answered], count: int) -> list[Answered]:
    """The answers with the highest log-probability per token."""
    if len(answers) == count:
        return answers

    def rank(pair: Answered) -> float:
        values = [token.logprob for token in _tokens(pair[1], end=True) if token.logprob is not None]
        return sum(values) / len(values) if values else -math.inf

    return sorted(answers, key=rank, reverse=True)[:count]


def _tokens(answer: wire.Whole, *, end: bool) -> list[Token]:
    """The tokens of an answer; with `end` the one that ended it too, which has no text."""
    tokens = [piece.token for piece in answer.pieces if piece.token is not None]
    return [*tokens, answer.end.eog] if end and answer.end.eog else tokens


def _choice(
    service: Service, body: CompletionBody, index: int, generation: Generation, answer: wire.Whole
) -> dict[str, Any]:
    prompt = _shown_prompt(service, generation) if body.echo else ""
    logprobs = None
    if _probs(body) >= 0:
        # Who scores a prompt counts on one token behind it, whichever it is.
        scored, tokens = list(answer.end.prompt_logprobs), _tokens(answer, end=bool(body.echo))
        places = _Places(service.tokenizer, prompt)
        logprobs = _logprobs(service, [*scored, *tokens], [*places.of_prompt(scored), *places.of(tokens)])
    finish = openai.FINISH[answer.end.reason]
    return {"index": index, "text": prompt + answer.text, "logprobs": logprobs, "finish_reason": finish}


def _shown_prompt(service: Service, generation: Generation) -> str:
    prepared = generation.prepared
    return prepared.prompt or service.tokenizer.decode(prepared.request.tokens, special=True)


class _Places:
    """Where the tokens of an answer begin in its text, in characters; tokens that share one begin at it."""

    def __init__(self, tokenizer: Tokenizer, prompt: str):
        """`prompt` is what the text begins with, empty where it is not echoed."""
        self._tokenizer, self._prompt = tokenizer, prompt
        self._at, self._decode = len(prompt), codecs.getincrementaldecoder("utf-8")("replace").decode

    def of_prompt(self, tokens: list[Token]) -> list[int]:
        """Counted from the prompt's end: its tokens may begin with a mark or a blank that the text has not."""
        places = _Places(self._tokenizer, "")
        begins = places.of(tokens, special=True)
        surplus = places._at - len(self._prompt)
        return [max(0, begin - surplus) for begin in begins]

    def of(self, tokens: list[Token], *, special: bool = False) -> list[int]:
        begins = []
        for token in tokens:
            begins.append(self._at)
            self._at += len(self._decode(self._tokenizer.piece(token.id, special=special)))
        return begins


def _logprobs(service: Service, tokens: list[Token], places: list[int]) -> dict[str, Any]:
    """The older shape {tokens, token_logprobs, top_logprobs, text_offset} with the newer `content` beside it."""
    tokenizer = service.tokenizer
    texts = [tokenizer.piece(token.id).decode("utf-8", "replace") for token in tokens]
    tops = []
    for token in tokens:
        top = dict[str, float]()
        for id, value in token.top:
            top.setdefault(tokenizer.piece(id).decode("utf-8", "replace"), value)
        tops.append(top if token.logprob is not None else None)
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": tops,
        "text_offset": places,
        "content": [openai.logprob(tokenizer, token) for token in tokens if token.logprob is not None],
    }


async def _chunks(
    service: Service, body: CompletionBody, generations: list[Generation], times: int
) -> AsyncGenerator[bytes, None]:
    head = openai.envelope(service, "text_completion", "cmpl-")
    include_usage = openai.wants_usage(body.stream_options)
    if include_usage:
        head["usage"] = None  # until the last chunk
    ends: list[End] = []
    echoed = [_shown_prompt(service, generation) if body.echo else "" for generation in generations]
    places = [_Places(service.tokenizer, prompt) for prompt in echoed]

    def chunk(index: int, text: str, finish: str | None = None, **more: Any) -> bytes:
        logprobs = more.pop("logprobs", None)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return wire.event({**head, "choices": [choice], **more})

    def live(index: int, token: Token | None) -> dict[str, Any]:
        """What is told of a token beside its text."""
        shown: dict[str, Any] = {"timings": openai.live(generations[index])} if body.timings_per_token else {}
        if _probs(body) >= 0 and token is not None:
            shown["logprobs"] = _logprobs(service, [token], places[index].of([token]))
        return shown

    tells = body.timings_per_token or _probs(body) >= 0
    plain = [wire.texts(chunk(index, wire.TEXT)) for index in range(len(generations))]
    if body.echo:
        for index, prompt in enumerate(echoed):
            yield chunk(index, prompt)
    async for index, event in merged(generations):
        if isinstance(event, Piece):
            if tells and (more := live(index, event.token)):
                yield chunk(index, event.text, **more)
            elif event.text:
                yield plain[index](event.text)
        elif isinstance(event, Progress):
            if body.return_progress:
                shown = openai.progress(event.done, event.total, event.cached, event.seconds)
                yield chunk(index, "", prompt_progress=shown)
        elif isinstance(event, End):
            ends.append(event)
            logprobs = None
            scored, last = list(event.prompt_logprobs), [event.eog] if body.echo and event.eog else []
            if _probs(body) >= 0 and (scored or last):
                begins = [*places[index].of_prompt(scored), *places[index].of(last)]
                logprobs = _logprobs(service, [*scored, *last], begins)
            yield chunk(
                index, "", openai.FINISH[event.reason], logprobs=logprobs, timings=openai.timings(event.timings)
            )
    if include_usage:
        prompt_tokens = sum(each.prompt_tokens for each in generations[::times])
        yield wire.event({**head, "choices": [], "usage": openai.usage(ends, prompt_tokens)})
    yield wire.DONE
