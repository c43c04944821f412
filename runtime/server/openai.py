"""What OpenAI's routes have in common: ids, usage, timings, log-probabilities. Pure translation."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import __version__
from .generation import End, Generation
from .service import Service

if TYPE_CHECKING:
    from ..request import Timings, Token
    from ..tokenizer import Tokenizer

FINISH = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "stop",
    "tool_calls": "tool_calls",
}


def envelope(service: Service, kind: str, prefix: str) -> dict[str, Any]:
    """The fields that every object of an answer begins with."""
    return {
        "id": prefix + secrets.token_hex(12),
        "object": kind,
        "created": int(time.time()),
        "model": service.model_name,
        "system_fingerprint": f"layerlift-{__version__}",
    }


def usage(ends: list[End], prompts: int | None = None) -> dict[str, Any]:
    """Tokens of several answers; prompts that were answered several times count once where `prompts` says so."""
    prompt = prompts if prompts is not None else sum(end.prompt_tokens for end in ends)
    generated = sum(end.timings.generated_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(end.timings.cached_tokens for end in ends)},
    }


def wants_usage(stream_options: Mapping[str, Any] | None) -> bool:
    """Whether a stream is to end with a chunk of usage; all others have the field as null then."""
    return bool((stream_options or {}).get("include_usage"))


def timings(t: Timings) -> dict[str, Any]:
    """llama-server's `timings`."""
    prompt_ms, predicted_ms = 1000 * t.prompt_seconds, 1000 * t.generation_seconds
    return {
        "cache_n": t.cached_tokens,
        "prompt_n": t.prompt_tokens,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / t.prompt_tokens if t.prompt_tokens else 0.0,
        "prompt_per_second": t.prompt_tokens / t.prompt_seconds if t.prompt_seconds else 0.0,
        "predicted_n": t.generated_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / t.generated_tokens if t.generated_tokens else 0.0,
        "predicted_per_second": t.generated_tokens / t.generation_seconds if t.generation_seconds else 0.0,
    }


def progress(done: int, total: int, cached: int, seconds: float) -> dict[str, Any]:
    """llama-server's `prompt_progress`."""
    return {"total": total, "cache": cached, "processed": done, "time_ms": int(1000 * seconds)}


def logprob(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    """A token with its alternatives, as chat completions write them."""
    return {
        **_entry(tokenizer, token.id, token.logprob or 0.0),
        "top_logprobs": [_entry(tokenizer, id, value) for id, value in token.top],
    }


def _entry(tokenizer: Tokenizer, id: int, value: float) -> dict[str, Any]:
    data = tokenizer.piece(id)
    return {"id": id, "token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": value}


def live(generation: Generation) -> dict[str, Any]:
    """`timings` of an answer under way."""
    return timings(generation.timings)
