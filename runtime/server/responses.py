"""OpenAI's Responses API: /v1/responses, kept in memory for a while so that the next one may go on from it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..errors import UserError
from . import fields, response_items, wire
from .failures import HTTPFailure
from .fields import MAX_LOGPROBS, SamplingFields
from .generation import Ask, Generation, count, start
from .openai_chat import tool_choice
from .response_writer import Writer
from .service import Service
from .shapes import Absent, FlatFormat, FlatTool, FlatToolChoice, InputItem, Limit, between

LOGPROBS = "message.output_text.logprobs"  # of `include`
UNSUPPORTED = ("background", "conversation", "prompt")


class TextFormat(msgspec.Struct):
    format: FlatFormat | None = None


class ResponsesBody(SamplingFields):
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: Limit = None
    text: TextFormat | None = None
    tools: list[FlatTool] | None = None
    tool_choice: FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int | None, between(0, MAX_LOGPROBS)] = None
    metadata: dict[str, str] | None = None
    truncation: Literal["disabled"] | None = None
    background: Absent = None
    conversation: Absent = None
    prompt: Absent = None


async def responses(request: Request, body: ResponsesBody) -> Response:
    """OpenAI's response: an answer as items, which the next request may go on from."""
    service: Service = request.app.state.service
    said = _conversation(service, body)
    ask = _ask(service, body, said)
    generation = await start(service, ask)
    writer = Writer(_begun(service, body, ask), service.tokenizer, logprobs=ask.sampling.n_probs >= 0)
    if body.stream:
        events = _events(service, said, generation, writer)
        return wire.EventStream(events, generation.close, failed=lambda error: _failed(writer, error))
    try:
        await wire.while_connected(request, _written(generation, writer))
    finally:
        generation.close()
    _keep(service, said, writer)
    return wire.reply(writer.response)


async def input_tokens(request: Request, body: ResponsesBody) -> Response:
    """How many tokens a response would read."""
    service: Service = request.app.state.service
    tokens = await count(service, _ask(service, body, _conversation(service, body)))
    return wire.reply({"object": "response.input_tokens", "input_tokens": tokens})


async def response(request: Request) -> Response:
    """A response that is still kept."""
    service: Service = request.app.state.service
    kept = service.recall.find(request.path_params["id"])
    if kept is None:
        raise _unknown(request)
    return Response(kept.response, media_type="application/json")


async def forget(request: Request) -> Response:
    """Forgets a response."""
    service: Service = request.app.state.service
    if not service.recall.forget(request.path_params["id"]):
        raise _unknown(request)
    return wire.reply({"id": request.path_params["id"], "object": "response", "deleted": True})


def _unknown(request: Request) -> HTTPFailure:
    return HTTPFailure(404, "not_found_error", f"no response {request.path_params['id'][:100]!r} is kept here")


# -- the question --


def _conversation(service: Service, body: ResponsesBody) -> list[dict[str, Any]]:
    """The messages before the answer, without the instructions. Raises UserError naming the field."""
    for name in UNSUPPORTED:
        if getattr(body, name):
            raise UserError(f"{name!r} is not supported", hint="leave it out")
    said: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        kept = service.recall.find(body.previous_response_id)
        if kept is None:
            why = f"'previous_response_id' is {body.previous_response_id[:100]!r}, which is not kept here"
            raise UserError(why, hint="send the whole conversation as input")
        said = msgspec.json.decode(kept.conversation)
    said += response_items.messages(body.input or [])
    if not said:
        raise UserError("'input' must be a text or a list with at least one item")
    return said


def _ask(service: Service, body: ResponsesBody, said: list[dict[str, Any]]) -> Ask:
    top = fields.within("top_logprobs", body.top_logprobs, 0, 0, MAX_LOGPROBS)
    n_probs = top if top or LOGPROBS in (body.include or ()) else -1
    wanted = body.text.format if body.text else None
    constraint = fields.response_format(wanted, "text.format") or fields.constraint(body)
    tools = response_items.tools(body.tools or [])
    choice = tool_choice(body.tool_choice)
    if constraint is not None and tools and choice not in ("auto", "none"):
        raise UserError("'tool_choice' and 'text.format' cannot both decide what the answer looks like")
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    limit = fields.limit("max_output_tokens", body.max_output_tokens)
    return replace(
        fields.ask(service, body, max_tokens=limit, n_probs=n_probs, constraint=constraint),
        messages=[*instructions, *said],
        tools=tools,
        tool_choice=choice if tools else "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
    )


# -- the answer --


def _begun(service: Service, body: ResponsesBody, ask: Ask) -> dict[str, Any]:
    """A response as it is before its first word."""
    return {
        "id": "resp_" + secrets.token_hex(16),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "model": service.model_name,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "store": body.store is not False,
        "max_output_tokens": body.max_output_tokens,
        "temperature": ask.sampling.temperature,
        "top_p": ask.sampling.top_p,
        "top_logprobs": max(ask.sampling.n_probs, 0),
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tools": body.tools or [],
        "tool_choice": body.tool_choice or "auto",
        "parallel_tool_calls": ask.parallel_tool_calls,
        "metadata": body.metadata or {},
        "truncation": "disabled",
        "background": False,
    }


async def _written(generation: Generation, writer: Writer) -> None:
    """Writes all of an answer."""
    async for event in generation:
        for _ in writer.take(event):
            pass


async def _events(
    service: Service, said: list[dict[str, Any]], generation: Generation, writer: Writer
) -> AsyncGenerator[bytes, None]:
    for told in writer.begin():
        yield wire.typed_event(told)
    async for event in generation:
        for told in writer.take(event):
            if told["type"] in ("response.completed", "response.incomplete"):
                _keep(service, said, writer)  # before the client may ask to go on from it
            yield wire.typed_event(told)


def _failed(writer: Writer, error: dict[str, Any]) -> bytes:
    return wire.typed_event(writer.fail(error["error"]["message"]))


def _keep(service: Service, said: list[dict[str, Any]], writer: Writer) -> None:
    if writer.response["store"]:
        service.recall.keep(writer.response, [*said, response_items.said_by(writer.response["output"])])
