"""Embeddings: OpenAI's /v1/embeddings and llama-server's /embedding. Pure translation."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..errors import UserError
from . import openai, wire
from .generation import Ask, close_all, start_all
from .openai_completions import prompts
from .service import Service
from .shapes import Prompt


class EmbeddingBody(msgspec.Struct):
    """OpenAI's `input`, llama-server's `content`, llamafile's `prompt`. `dimensions` must be what the model has."""

    input: Prompt = None
    content: Prompt = None
    prompt: Prompt = None
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last"] | None = None
    dimensions: int | None = None


async def embeddings(request: Request, body: EmbeddingBody) -> Response:
    """OpenAI's embeddings."""
    service: Service = request.app.state.service
    width = service.engine.model.config.d_model
    if body.dimensions not in (None, width):
        raise UserError(f"'dimensions' is {body.dimensions}; this model has {width}")
    vectors, tokens = await embedded(request, _texts(body), body.pooling or "mean")
    data = []
    for index, vector in enumerate(vectors):
        shown: Any = vector
        if body.encoding_format == "base64":
            shown = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return wire.reply({"object": "list", "data": data, "model": service.model_name, "usage": usage})


async def embedding(request: Request, body: EmbeddingBody) -> Response:
    """llama-server's embeddings: the vector is that of the pooled text, in a list of one."""
    vectors, _ = await embedded(request, _texts(body), body.pooling or "mean")
    return wire.reply([{"index": index, "embedding": [vector]} for index, vector in enumerate(vectors)])


def _texts(body: EmbeddingBody) -> list[str | list[int]]:
    return prompts(next((each for each in (body.input, body.content, body.prompt) if each is not None), None), "input")


async def embedded(
    request: Request, texts: list[str | list[int]], pooling: Literal["mean", "last"] = "mean"
) -> tuple[list[tuple[float, ...]], int]:
    """The vectors of all texts, and how many tokens these have."""
    service: Service = request.app.state.service
    asks = [Ask(prompt=each, pooling=pooling, max_tokens=0) for each in texts]
    generations = await start_all(service, asks)
    try:
        answers = await wire.while_connected(request, asyncio.gather(*map(wire.gather, generations)))
    finally:
        close_all(generations)
    tokens = openai.usage([answer.end for answer in answers])["prompt_tokens"]
    return [answer.end.embedding for answer in answers], tokens
