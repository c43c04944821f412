"""Anthropic's /v1/messages and /v1/messages/count_tokens. Pure translation."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..errors import UserError
from . import failures, fields, wire
from .failures import Body as ErrorBody
from .fields import SamplingFields
from .generation import Ask, End, Generation, Piece, ToolPiece, count, start
from .service import Service
from .shapes import AnthropicMessage, AnthropicTool, AnthropicToolChoice, TextBlock, between

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class CountBody(msgspec.Struct, kw_only=True):
    messages: Annotated[list[AnthropicMessage], msgspec.Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None


class MessagesBody(CountBody, kw_only=True):
    max_tokens: Annotated[int, between(1)]
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None


async def messages(request: Request, body: MessagesBody) -> Response:
    """Anthropic's chat."""
    service: Service = request.app.state.service
    if body.max_tokens < 1:
        raise UserError(f"'max_tokens' is {body.max_tokens}, must be at least 1")
    generation = await start(service, _sampled(service, body))
    if body.stream:
        return wire.EventStream(_events(service, generation), generation.close, ping=_event("ping"), failed=_failed)
    answer = await wire.whole(request, generation)
    content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text or not answer.calls else []
    content += [
        {"type": "tool_use", "id": id, "name": name, "input": _input(arguments)} for id, name, arguments in answer.calls
    ]
    return wire.reply({**_message(service, content), **_stop(answer.end), "usage": _usage(answer.end)})


async def count_tokens(request: Request, body: CountBody) -> Response:
    """How many tokens Anthropic's chat would read."""
    service: Service = request.app.state.service
    return wire.reply({"input_tokens": await count(service, _ask(body))})


# -- the question --


def _sampled(service: Service, body: MessagesBody) -> Ask:
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    shared = SamplingFields(**given, stop=body.stop_sequences)
    return replace(
        _ask(body),
        sampling=fields.sampling(service, shared),
        max_tokens=body.max_tokens,
        stop=fields.stops(service, shared),
    )


def _ask(body: CountBody) -> Ask:
    return Ask(
        messages=_conversation(body),
        tools=[_tool(i, tool) for i, tool in enumerate(body.tools or ())],
        tool_choice=_tool_choice(body.tool_choice) if body.tools else "auto",
        parallel_tool_calls=not (body.tool_choice or {}).get("disable_parallel_tool_use"),
    )


def _tool(i: int, tool: dict[str, Any]) -> dict[str, Any]:
    schema = tool.get("input_schema")
    if not isinstance(tool.get("name"), str) or not isinstance(schema, dict):
        raise UserError(f"'tools[{i}]' must have a name and an input_schema")
    function = {"name": tool["name"], "description": tool.get("description") or "", "parameters": schema}
    return {"type": "function", "function": function}


def _tool_choice(given: dict[str, Any] | None) -> str:
    kind = (given or {}).get("type", "auto")
    if kind == "tool":
        name = (given or {}).get("name")
        if not isinstance(name, str):
            raise UserError("'tool_choice.name' is missing")
        return name
    choice = {"auto": "auto", "any": "required", "none": "none"}.get(str(kind))
    if choice is None:
        raise UserError(f"'tool_choice.type' is {kind!r}, must be auto, any, tool or none")
    return choice


def _conversation(body: CountBody) -> list[dict[str, Any]]:
    """Messages as chat templates know them: a tool's result is a message of its own."""
    system = body.system if isinstance(body.system, str) else _joined(body.system or [], "system")
    out: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for i, message in enumerate(body.messages):
        role, content, where = message.get("role"), message.get("content"), f"messages[{i}].content"
        if role not in ("user", "assistant", "system"):
            raise UserError(f"'messages[{i}].role' is {role!r}, must be user or assistant")
        if isinstance(content, str):
            out.append({"role": role, "content": content})
        elif isinstance(content, list):
            out += _blocks(role, content, where)
        else:
            raise UserError(f"'{where}' must be a text or a list of blocks")
    return out


def _blocks(role: str, blocks: list[Any], where: str) -> Iterator[dict[str, Any]]:
    texts, calls = [], []
    for k, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            result = block.get("content") or ""
            text = result if isinstance(result, str) else _joined(result, f"{where}[{k}].content")
            yield {"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": text}
        elif kind == "tool_use":
            function = {"name": str(block.get("name", "")), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": str(block.get("id", "")), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):  # what a model thought is not told to it again
            texts.append(_joined([block], f"{where}[{k}]"))
    if calls:
        yield {"role": role, "content": "\n".join(texts), "tool_calls": calls}
    elif texts:
        yield {"role": role, "content": "\n".join(texts)}


def _joined(blocks: Any, where: str) -> str:
    """The text of blocks. Raises UserError for any that are none."""
    for block in blocks if isinstance(blocks, list) else [blocks]:
        kind = block.get("type") if isinstance(block, dict) else block
        if kind != "text" or not isinstance(block.get("text"), str):
            raise UserError(f"'{where}': a block of type {str(kind)[:64]!r}; this model takes text")
    return "\n".join(block["text"] for block in blocks)


# -- the answer --


def _message(service: Service, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_" + secrets.token_hex(12),
        "type": "message",
        "role": "assistant",
        "model": service.model_name,
        "content": content,
    }


def _stop(end: End) -> dict[str, Any]:
    reasons = {"length": "max_tokens", "context": "max_tokens", "stop": "stop_sequence", "tool_calls": "tool_use"}
    reason = reasons.get(end.reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": end.stop if reason == "stop_sequence" else None}


def _usage(end: End) -> dict[str, int]:
    cached = end.timings.cached_tokens
    return {
        "input_tokens": end.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": end.timings.generated_tokens,
    }


def _input(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # the answer ended within its arguments
        return {}


def _event(kind: str, **values: Any) -> bytes:
    return wire.typed_event({"type": kind, **values})


def _failed(body: ErrorBody) -> bytes:
    return wire.typed_event(body)


async def _events(service: Service, generation: Generation) -> AsyncGenerator[bytes, None]:
    """Blocks one after another: a text, then calls, each opened and closed."""
    begun = {"input_tokens": generation.prompt_tokens, "output_tokens": 0}
    start_of = {**_message(service, []), "stop_reason": None, "stop_sequence": None, "usage": begun}
    yield _event("message_start", message=start_of)
    blocks, kind = 0, ""  # blocks opened so far, and what the last one is
    async for event in generation:
        if isinstance(event, Piece) and event.text:
            if kind != "text":
                for opening in _open(blocks, {"type": "text", "text": ""}):
                    yield opening
                blocks, kind = blocks + 1, "text"
            yield _event("content_block_delta", index=blocks - 1, delta={"type": "text_delta", "text": event.text})
        elif isinstance(event, ToolPiece):
            if event.id:
                for opening in _open(blocks, {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}):
                    yield opening
                blocks, kind = blocks + 1, "tool_use"
            if event.arguments:
                delta = {"type": "input_json_delta", "partial_json": event.arguments}
                yield _event("content_block_delta", index=blocks - 1, delta=delta)
        elif isinstance(event, End):
            if blocks:
                yield _event("content_block_stop", index=blocks - 1)
            yield _event("message_delta", delta=_stop(event), usage=_usage(event))
            yield _event("message_stop")


def _open(index: int, block: dict[str, Any]) -> Iterator[bytes]:
    """Ends the block before, if there is one, and begins the next."""
    if index:
        yield _event("content_block_stop", index=index - 1)
    yield _event("content_block_start", index=index, content_block=block)


def _shape(body: ErrorBody) -> ErrorBody:
    kind = ERROR_TYPES.get(body["code"], "api_error")
    return {"type": "error", "error": {"type": kind, "message": body["message"]}}


failures.SHAPES["/v1/messages"] = _shape
