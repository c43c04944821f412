"""Ollama's /api routes: chat, generate, embed, tags, show, ps, version. Pure translation.

Answers are lines of JSON instead of server-sent events, and stream unless a client says otherwise. There is one model,
which answers to every name.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from datetime import datetime, timezone
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..errors import UserError
from . import failures, fields, wire
from .embeddings import embedded
from .fields import SamplingFields
from .generation import Ask, Constraint, End, Generation, Piece, Reason, ToolPiece, start
from .messages import checked_messages
from .openai_completions import prompts
from .service import Service
from .shapes import Format, Message, Prompt, Tool

DONE_REASON: dict[Reason, str] = {"length": "length", "context": "length"}  # "stop" otherwise
NANOSECONDS = 1e9


class Options(SamplingFields, kw_only=True):
    """Ollama's names beside those that all dialects share."""

    num_predict: int | None = None
    num_keep: int | None = None


class _Body(msgspec.Struct, kw_only=True):
    options: Options = msgspec.field(default_factory=Options)
    format: Format | None = None
    stream: bool | None = None


class OllamaChatBody(_Body, kw_only=True):
    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class OllamaGenerateBody(_Body, kw_only=True):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None


class OllamaEmbedBody(msgspec.Struct):
    """`prompt` is the name that /api/embeddings has for `input`."""

    input: Prompt = None
    prompt: Prompt = None


class OllamaShowBody(msgspec.Struct):
    """There is one model, whichever is asked for."""

    model: str | None = None


async def chat(request: Request, body: OllamaChatBody) -> Response:
    """Ollama's chat."""
    service: Service = request.app.state.service
    if not body.messages:
        return wire.reply({**_heading(service), "message": _message(""), "done": True, "done_reason": "load"})
    for i, message in enumerate(body.messages):
        if message.get("images"):
            raise UserError(f"'messages[{i}].images': this model takes text")
    ask = _ask(service, body, messages=checked_messages(body.messages), tools=body.tools or ())
    return await _answer(request, body, ask, lambda text, calls: {"message": _message(text, calls)})


async def generate(request: Request, body: OllamaGenerateBody) -> Response:
    """Ollama's completion of one prompt."""
    service: Service = request.app.state.service
    for name in ("suffix", "template", "images"):
        if getattr(body, name):
            raise UserError(f"{name!r} is not supported", hint="leave it out")
    if not body.prompt:
        return wire.reply({**_heading(service), "response": "", "done": True, "done_reason": "load"})
    if body.raw:
        ask = _ask(service, body, prompt=body.prompt)
    else:
        system = [{"role": "system", "content": body.system}] if body.system else []
        ask = _ask(service, body, messages=[*system, {"role": "user", "content": body.prompt}])
    return await _answer(request, body, ask, lambda text, calls: {"response": text})


async def embed(request: Request, body: OllamaEmbedBody) -> Response:
    """Ollama's embeddings."""
    service: Service = request.app.state.service
    begun = time.perf_counter()
    vectors, tokens = await embedded(request, prompts(body.input, "input"))
    duration = int((time.perf_counter() - begun) * NANOSECONDS)
    figures = {"total_duration": duration, "load_duration": 0, "prompt_eval_count": tokens}
    return wire.reply({"model": service.model_name, "embeddings": vectors, **figures})


async def embedding(request: Request, body: OllamaEmbedBody) -> Response:
    """Ollama's older embeddings, of one text."""
    vectors, _ = await embedded(request, prompts(body.prompt, "prompt"))
    return wire.reply({"embedding": vectors[0]})


def _ask(service: Service, body: _Body, **what: Any) -> Ask:
    options = body.options
    limit = -1 if options.num_predict is None else options.num_predict
    if limit < -2:
        raise UserError(f"'options.num_predict' is {limit}, must be at least -2")
    return Ask(
        sampling=fields.sampling(service, options),
        max_tokens=max(limit, -1),
        stop=fields.stops(service, options),
        constraint=_constraint(body.format),
        keep=options.num_keep or 0,
        **what,
    )


def _constraint(given: Any) -> Constraint | None:
    if given in (None, ""):
        return None
    if given == "json":
        return Constraint("json_schema", {"type": "object"})
    if isinstance(given, dict):
        return Constraint("json_schema", given)
    raise UserError("'format' must be \"json\" or a JSON schema")


Wording = Callable[[str, list[dict[str, Any]]], dict[str, Any]]  # an answer's text and calls, as a route names them


async def _answer(request: Request, body: _Body, ask: Ask, wording: Wording) -> Response:
    service: Service = request.app.state.service
    generation = await start(service, ask)
    if body.stream is not False:
        lines = _lines(service, generation, wording)
        return wire.EventStream(lines, generation.close, media_type="application/x-ndjson", ping=b"", failed=_line)
    answer = await wire.whole(request, generation)
    calls = [_call(name, arguments) for _, name, arguments in answer.calls]
    return wire.reply({**_heading(service), **wording(answer.text, calls), **_figures(answer.end)})


async def _lines(service: Service, generation: Generation, wording: Wording) -> AsyncGenerator[bytes, None]:
    calls: list[list[str]] = []
    async for event in generation:
        if isinstance(event, Piece) and event.text:
            yield _line({**_heading(service), **wording(event.text, []), "done": False})
        elif isinstance(event, ToolPiece):  # a call is sent whole, once its arguments are
            if event.id:
                calls.append([event.name, ""])
            calls[event.index][1] += event.arguments
        elif isinstance(event, End):
            if calls:
                whole = [_call(name, arguments) for name, arguments in calls]
                yield _line({**_heading(service), **wording("", whole), "done": False})
            yield _line({**_heading(service), **wording("", []), **_figures(event)})


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _heading(service: Service) -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    return {"model": service.model_name, "created_at": now}


def _message(text: str, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


def _call(name: str, arguments: str) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments)
    except ValueError:  # the answer ended within its arguments
        parsed = {}
    return {"function": {"name": name, "arguments": parsed}}


def _figures(end: End) -> dict[str, Any]:
    """Counts, and durations in nanoseconds."""
    t = end.timings
    prompt, writing = int(t.prompt_seconds * NANOSECONDS), int(t.generation_seconds * NANOSECONDS)
    return {
        "done": True,
        "done_reason": DONE_REASON.get(end.reason, "stop"),
        "total_duration": prompt + writing,
        "load_duration": 0,
        "prompt_eval_count": end.prompt_tokens,
        "prompt_eval_duration": prompt,
        "eval_count": t.generated_tokens,
        "eval_duration": writing,
    }


# -- the model --


async def tags(request: Request) -> Response:
    """Ollama's list of models."""
    service: Service = request.app.state.service
    return wire.reply({"models": [model(service)]})


async def running(request: Request) -> Response:
    """Ollama's list of loaded models."""
    service: Service = request.app.state.service
    never = "9999-12-31T23:59:59Z"  # the model stays until the server ends
    return wire.reply({"models": [{**model(service), "expires_at": never, "size_vram": 0}]})


async def show(request: Request, body: OllamaShowBody) -> Response:
    """Ollama's facts about the model."""
    service: Service = request.app.state.service
    config = service.engine.model.config
    architecture = _architecture(service)
    return wire.reply(
        {
            "modelfile": "",
            "parameters": "",
            "template": service.template.source,
            "details": _details(service),
            "model_info": {
                "general.architecture": architecture,
                f"{architecture}.context_length": config.context,
                f"{architecture}.embedding_length": config.d_model,
            },
            "capabilities": ["completion", "tools"],
        }
    )


async def version(request: Request) -> Response:
    """The version, where Ollama's clients look for it."""
    return wire.reply({"version": __version__})


def model(service: Service) -> dict[str, Any]:
    """What lists say of the model."""
    name = service.model_name
    loaded = datetime.fromtimestamp(service.started, timezone.utc).isoformat()
    return {
        "name": name,
        "model": name,
        "modified_at": loaded,
        "size": service.engine.model.gguf.nbytes,
        "digest": "",
        "details": _details(service),
        "capabilities": ["completion", "tools"],
    }


def _details(service: Service) -> dict[str, Any]:
    architecture = _architecture(service)
    return {"parent_model": "", "format": "gguf", "family": architecture, "families": [architecture]}


def _architecture(service: Service) -> str:
    return service.engine.model.gguf.metadata.text("general.architecture")


failures.SHAPES["/api/"] = lambda body: {"error": body["message"]}
