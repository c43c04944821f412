"""llama-server's own route: /completion, with its field names. Pure translation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import UserError
from ..request import Token
from . import fields, openai, wire
from .about import settings
from .fields import MAX_LOGPROBS, SamplingFields
from .generation import Ask, End, Generation, Piece, Progress, close_all, start_all
from .openai_chat import merged
from .openai_completions import MAX_PROMPTS
from .service import Service
from .shapes import Limit, MixedPrompt, between

STOP_TYPE = {"eos": "eos", "stop": "word", "length": "limit", "context": "limit", "cancelled": "none"}


class NativeBody(SamplingFields, kw_only=True):
    prompt: MixedPrompt
    n_predict: Limit = None
    max_tokens: Limit = None
    n_probs: Annotated[int | None, between(0, MAX_LOGPROBS)] = None
    id_slot: int | None = None


async def completion(request: Request, body: NativeBody) -> Response:
    """llama-server's completion."""
    service: Service = request.app.state.service
    asks = [_ask(service, body, prompt) for prompt in _prompts(service, body.prompt)]
    generations = await start_all(service, asks)
    if body.stream:
        return wire.EventStream(_chunks(service, body, generations), lambda: close_all(generations))
    try:
        answers = await wire.while_connected(request, asyncio.gather(*map(wire.gather, generations)))
    finally:
        close_all(generations)
    replies = []
    for index, (generation, answer) in enumerate(zip(generations, answers, strict=True)):
        tokens = [piece.token for piece in answer.pieces if piece.token is not None]
        reply = _final(service, body, index, generation, answer.end)
        reply |= {"content": answer.text, "tokens": [token.id for token in tokens] if body.return_tokens else []}
        if _probs(body) > 0:
            reply["completion_probabilities"] = [_probabilities(service, token) for token in tokens]
        replies.append(reply)
    return wire.reply(replies if len(replies) > 1 else replies[0])


def _prompts(service: Service, given: Any) -> list[str | list[int]]:
    """A text, a list that mixes token ids and texts, or a list of such prompts. Raises UserError."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, dict):
        given = given.get("prompt_string")
        return _prompts(service, given)
    if isinstance(given, list) and any(_is_id(part) for part in given):
        return [_joined(service, given)]
    if isinstance(given, list) and 0 < len(given) <= MAX_PROMPTS:
        found = []
        for part in given:
            found += _prompts(service, part)
        return found
    raise UserError(f"'prompt' must be a text, a list of token ids, or a list of up to {MAX_PROMPTS} of these")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _joined(service: Service, parts: list[Any]) -> list[int]:
    ids: list[int] = []
    for i, part in enumerate(parts):
        if _is_id(part):
            ids.append(part)
        elif isinstance(part, str):
            ids += service.tokenizer.encode(part, add_special=i == 0)
        else:
            raise UserError(f"'prompt[{i}]' is neither a text nor a token id")
    return ids


def _probs(body: NativeBody) -> int:
    return fields.within("n_probs", body.n_probs, 0, 0, MAX_LOGPROBS)


def _ask(service: Service, body: NativeBody, prompt: str | list[int]) -> Ask:
    limit = fields.limit("n_predict", body.n_predict, body.max_tokens)
    probs = _probs(body)
    return replace(
        fields.ask(service, body, max_tokens=limit, n_probs=probs or -1, constraint=fields.constraint(body)),
        prompt=prompt,
    )


def _final(service: Service, body: NativeBody, index: int, generation: Generation, end: End) -> dict[str, Any]:
    evaluated = end.timings.prompt_tokens + end.timings.cached_tokens
    return {
        "index": index,
        "content": "",
        "tokens": [],
        "id_slot": 0,
        "stop": True,
        "model": service.model_name,
        "tokens_predicted": end.timings.generated_tokens,
        "tokens_evaluated": evaluated,
        "tokens_cached": evaluated + max(end.timings.generated_tokens - 1, 0),
        "generation_settings": settings(service, generation),
        "prompt": generation.prepared.prompt
        or service.tokenizer.decode(generation.prepared.request.tokens, special=True),
        "has_new_line": False,
        "truncated": end.reason == "context",
        "stop_type": STOP_TYPE.get(end.reason, "none"),
        "stopping_word": end.stop or "",
        "timings": openai.timings(end.timings),
    }


def _probabilities(service: Service, token: Token) -> dict[str, Any]:
    return openai.logprob(service.tokenizer, token)


async def _chunks(service: Service, body: NativeBody, generations: list[Generation]) -> AsyncGenerator[bytes, None]:
    async for index, event in merged(generations):
        generation = generations[index]
        if isinstance(event, Piece):
            chunk: dict[str, Any] = {
                "index": index,
                "content": event.text,
                "tokens": [event.token.id] if event.token is not None else [],
                "stop": False,
                "id_slot": 0,
                "tokens_predicted": generation.generated,
                "tokens_evaluated": generation.prompt_tokens,
            }
            if _probs(body) and event.token is not None:
                chunk["completion_probabilities"] = [_probabilities(service, event.token)]
            if body.timings_per_token:
                chunk["timings"] = openai.live(generation)
            if event.text or body.return_tokens or "completion_probabilities" in chunk:
                yield wire.event(chunk)
        elif isinstance(event, Progress) and body.return_progress:
            shown = openai.progress(event.done, event.total, event.cached, event.seconds)
            yield wire.event({"index": index, "content": "", "stop": False, "prompt_progress": shown})
        elif isinstance(event, End):
            yield wire.event(_final(service, body, index, generation, event))
