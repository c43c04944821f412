"""OpenAI's chat completions: /v1/chat/completions. Pure translation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import UserError
from ..request import Token
from . import fields, openai, wire
from .fields import MAX_LOGPROBS, SamplingFields
from .generation import Ask, End, Generation, Piece, Progress, ToolPiece, close_all, start_all
from .messages import checked_messages
from .service import Service
from .shapes import Limit, Messages, StreamOptions, Tool, ToolChoice, between

MAX_ANSWERS = 16  # of `n`
TEMPLATE_FIELDS = ("enable_thinking", "date_string", "documents", "reasoning_effort")  # a request may set these


class ChatBody(SamplingFields, kw_only=True):
    messages: Messages
    max_tokens: Limit = None
    max_completion_tokens: Limit = None
    n_predict: Limit = None
    n: Annotated[int | None, between(1, MAX_ANSWERS)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, between(0, MAX_LOGPROBS)] = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None


async def chat_completions(request: Request, body: ChatBody) -> Response:
    """OpenAI's chat."""
    service: Service = request.app.state.service
    ask = to_ask(service, body)
    times = fields.within("n", body.n, 1, 1, MAX_ANSWERS)
    generations = await start_all(service, [ask], times=times)
    if body.stream:
        chunks = _chunks(service, body, generations)
        return wire.EventStream(chunks, lambda: close_all(generations))
    try:
        answers = await wire.while_connected(request, asyncio.gather(*map(wire.gather, generations)))
    finally:
        close_all(generations)
    ends = [answer.end for answer in answers]
    choices = [_choice(service, body, i, answer) for i, answer in enumerate(answers)]
    return wire.reply(
        {
            **openai.envelope(service, "chat.completion", "chatcmpl-"),
            "choices": choices,
            "usage": openai.usage(ends, ends[0].prompt_tokens),
            "timings": openai.timings(ends[0].timings),
        }
    )


def to_ask(service: Service, body: ChatBody) -> Ask:
    """The question of a body. Raises UserError naming the field."""
    top = fields.within("top_logprobs", body.top_logprobs, 0, 0, MAX_LOGPROBS)
    if top and not body.logprobs:
        raise UserError("'top_logprobs' needs 'logprobs'")
    limit = fields.limit("max_tokens", body.max_completion_tokens, body.max_tokens, body.n_predict)
    tools = body.tools or []
    constraint = fields.constraint(body)
    choice = tool_choice(body.tool_choice)
    if constraint is not None and tools and choice not in ("auto", "none"):
        raise UserError("'tool_choice' and 'response_format' cannot both decide what the answer looks like")
    extra = {k: v for k, v in (body.chat_template_kwargs or {}).items() if k in TEMPLATE_FIELDS}
    if body.add_generation_prompt is not None:
        extra["add_generation_prompt"] = body.add_generation_prompt
    messages = checked_messages(body.messages)
    n_probs = top if body.logprobs else -1
    return replace(
        fields.ask(service, body, max_tokens=limit, n_probs=n_probs, constraint=constraint),
        messages=messages,
        tools=tools,
        tool_choice=choice if tools else "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_fields=extra,
    )


def tool_choice(given: str | dict[str, Any] | None) -> str:
    """auto, none, required, or a function's name. Raises UserError."""
    if given is None or isinstance(given, str):
        return given or "auto"
    function = given.get("function", given)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise UserError("'tool_choice' must be auto, none, required, or name a function")
    return name


def _choice(service: Service, body: ChatBody, index: int, answer: wire.Whole) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.calls else "")}
    if answer.calls:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in answer.calls
        ]
    logprobs = None
    if body.logprobs:
        tokens = [piece.token for piece in answer.pieces if piece.token is not None]
        logprobs = {"content": [openai.logprob(service.tokenizer, token) for token in tokens]}
    finish = openai.FINISH[answer.end.reason]
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


async def _chunks(service: Service, body: ChatBody, generations: list[Generation]) -> AsyncGenerator[bytes, None]:
    head = openai.envelope(service, "chat.completion.chunk", "chatcmpl-")
    include_usage = openai.wants_usage(body.stream_options)
    if include_usage:
        head["usage"] = None  # until the last chunk
    ends: list[End] = []

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        logprobs = more.pop("logprobs", None)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return wire.event({**head, "choices": [choice], **more})

    def live(index: int, token: Token | None) -> dict[str, Any]:
        """What is told of a token beside its text."""
        shown: dict[str, Any] = {"timings": openai.live(generations[index])} if body.timings_per_token else {}
        if body.logprobs and token is not None:
            shown["logprobs"] = {"content": [openai.logprob(service.tokenizer, token)]}
        return shown

    tells = body.timings_per_token or body.logprobs
    plain = [wire.texts(chunk(index, {"content": wire.TEXT})) for index in range(len(generations))]
    for index in range(len(generations)):
        yield chunk(index, {"role": "assistant", "content": None})
    async for index, event in merged(generations):
        if isinstance(event, Piece):
            if tells and (more := live(index, event.token)):
                yield chunk(index, {"content": event.text}, **more)
            elif event.text:
                yield plain[index](event.text)
        elif isinstance(event, ToolPiece):
            yield chunk(index, {"tool_calls": [_call_delta(event)]}, **live(index, None))
        elif isinstance(event, Progress):
            if body.return_progress:
                shown = openai.progress(event.done, event.total, event.cached, event.seconds)
                yield chunk(index, {}, prompt_progress=shown)
        elif isinstance(event, End):
            ends.append(event)
            yield chunk(index, {}, openai.FINISH[event.reason], timings=openai.timings(event.timings))
    if include_usage:
        counts = openai.usage(ends, ends[0].prompt_tokens)
        yield wire.event({**head, "choices": [], "usage": counts, "timings": openai.timings(ends[0].timings)})
    yield wire.DONE


def _call_delta(piece: ToolPiece) -> dict[str, Any]:
    if not piece.id:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


async def merged(generations: list[Generation]) -> AsyncIterator[tuple[int, Any]]:
    """The events of several answers as they come, each with its answer's number."""
    if len(generations) == 1:
        async for event in generations[0]:
            yield 0, event
        return
    waiting = {asyncio.ensure_future(anext(each)): i for i, each in enumerate(generations)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                try:
                    event = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(generations[index]))] = index
                yield index, event
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
