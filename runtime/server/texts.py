"""Tokens and templates on their own: /tokenize, /detokenize, /apply-template, /tokenizer_info."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..errors import UserError
from . import wire
from .generation import prepare
from .messages import checked_messages
from .openai_chat import ChatBody, to_ask
from .service import Service
from .shapes import Messages


class TokenizeBody(msgspec.Struct):
    """llama-server's names, and vLLM's `prompt` and `add_special_tokens`."""

    content: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(msgspec.Struct):
    tokens: list[int] = []


async def tokenize(request: Request, body: TokenizeBody) -> Response:
    """The tokens of a text."""
    service: Service = request.app.state.service
    tokenizer = service.tokenizer
    text = body.content if body.content is not None else body.prompt
    # llama-server adds no start token unless asked to, vLLM does unless asked not to.
    special = bool(body.add_special) if body.content is not None else body.add_special_tokens is not False
    if text is None and body.messages is not None:
        text = await service.prepare(service.template.render, checked_messages(body.messages))
    if text is None:
        raise UserError("'content' is missing")
    parse = body.parse_special is not False
    ids = await service.prepare(lambda: tokenizer.encode(text, add_special=special, parse_special=parse))
    answer: dict[str, Any] = {"tokens": ids}
    if body.prompt is not None:
        answer |= {"count": len(ids), "max_model_len": service.engine.context}
    if body.with_pieces:
        answer["tokens"] = [{"id": id, "piece": _piece(tokenizer.piece(id))} for id in ids]
    return wire.reply(answer)


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def detokenize(request: Request, body: DetokenizeBody) -> Response:
    """The text of tokens."""
    service: Service = request.app.state.service
    size = service.tokenizer.vocab_size
    for id in body.tokens:
        if not 0 <= id < size:
            raise UserError(f"'tokens' holds {id}, which is outside 0 … {size - 1}")
    text = service.tokenizer.decode(body.tokens, special=True)
    return wire.reply({"content": text, "prompt": text})


async def apply_template(request: Request, body: ChatBody) -> Response:
    """The prompt that the chat template makes of messages."""
    service: Service = request.app.state.service
    prepared = await service.prepare(prepare, service, to_ask(service, body))
    return wire.reply({"prompt": prepared.prompt})


async def tokenizer_info(request: Request) -> Response:
    """What lm-eval asks for, so that it needs no tokenizer of its own."""
    service: Service = request.app.state.service
    tokenizer = service.tokenizer
    names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    info = {k: None if id is None else tokenizer.piece(id).decode("utf-8", "replace") for k, id in names.items()}
    return wire.reply({**info, "chat_template": service.template.source})
