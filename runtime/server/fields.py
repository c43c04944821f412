"""The fields of requests that decide how an answer is sampled, under all names that clients use for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from ..errors import UserError
from ..sampler import Sampling
from .generation import Ask, Constraint
from .service import Service
from .shapes import JSONSchema, LogitBias, ResponseFormat

# Field of a body: field of Sampling.
SAMPLING_NAMES = {
    name: name
    for name in (
        *("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "min_keep"),
        *("presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "seed", "samplers"),
    )
} | {"repetition_penalty": "repeat_penalty"}
MAX_STOPS = 64
MAX_LOGPROBS = 100


class SamplingFields(msgspec.Struct):
    """What OpenAI's and llama-server's requests have in common. None is absent."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    min_keep: int | None = None
    samplers: list[str] | str | None = None
    seed: int | None = None
    logit_bias: LogitBias = None
    stop: str | list[str] | None = None
    grammar: str | None = None
    json_schema: JSONSchema = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    context_shift: bool | None = None
    n_keep: int | None = None
    stream: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    return_tokens: bool | None = None


def sampling(service: Service, body: SamplingFields, *, n_probs: int = -1) -> Sampling:
    """The server's settings with the body's over them. Raises UserError naming the field."""
    given = {ours: value for name, ours in SAMPLING_NAMES.items() if (value := getattr(body, name)) is not None}
    if isinstance(given.get("samplers"), list):
        given["samplers"] = tuple(given["samplers"])
    bias = _bias(service, body.logit_bias)
    if bias:
        given["logit_bias"] = bias
    return replace(service.settings.sampling, **given, n_probs=n_probs)


def _bias(service: Service, given: Any) -> tuple[tuple[int, float], ...]:
    """OpenAI's {"id": bias} and llama-server's [[id or text, bias or false], …]."""
    if not given:
        return ()
    if not isinstance(given, Mapping | list):
        raise UserError("'logit_bias' must be an object of token ids, or a list of pairs")
    pairs = given.items() if isinstance(given, Mapping) else given
    out: list[tuple[int, float]] = []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError("'logit_bias' must hold pairs of a token and its bias")
        token, bias = pair
        amount = float("-inf") if bias is False else bias
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise UserError(f"'logit_bias': {bias!r} is no number")
        if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10:
            token = int(token)
        if isinstance(token, str):
            out += [(id, float(amount)) for id in service.tokenizer.encode(token, add_special=False)]
        else:
            out.append((token, float(amount)))
    return tuple(out)


def within(name: str, value: int | None, default: int, low: int, high: int) -> int:
    """A count, or its default. Raises UserError naming the field."""
    if value is None:
        return default
    if not low <= value <= high:
        raise UserError(f"'{name}' is {value}, must be between {low} and {high}")
    return value


def limit(name: str, *given: int | None, default: int = -1) -> int:
    """The most tokens to write: the first that is given; -1 is no limit. Raises UserError naming the field."""
    tokens = next((value for value in given if value is not None), default)
    if tokens < -1:
        raise UserError(f"'{name}' is {tokens}, must be at least 0, or -1 for no limit")
    return tokens


def ask(service: Service, body: SamplingFields, *, max_tokens: int, n_probs: int, constraint: Constraint | None) -> Ask:
    """What a body says under these common names, still without its prompt or messages. Raises UserError."""
    return Ask(
        sampling=sampling(service, body, n_probs=n_probs),
        max_tokens=max_tokens,
        stop=stops(service, body),
        constraint=constraint,
        ignore_eos=bool(body.ignore_eos),
        cache_prompt=body.cache_prompt is not False,
        context_shift=bool(body.context_shift),
        keep=body.n_keep or 0,
    )


def stops(service: Service, body: SamplingFields) -> tuple[str, ...]:
    """The stop strings. Raises UserError."""
    given = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(given) > MAX_STOPS or any(len(text) > 1024 for text in given):
        raise UserError(f"'stop' may hold {MAX_STOPS} texts of up to 1024 characters")
    return tuple(text for text in given if text)


def constraint(body: SamplingFields) -> Constraint | None:
    """What the answer must look like, by whichever field says so. Raises UserError."""
    found = response_format(body.response_format, "response_format")
    if body.json_schema is not None:
        found = Constraint("json_schema", body.json_schema)
    if body.grammar:
        if found is not None:
            raise UserError("'grammar' and a JSON schema cannot both decide what the answer looks like")
        found = Constraint("gbnf", body.grammar)
    return found


def response_format(given: dict[str, Any] | None, field: str) -> Constraint | None:
    """The constraint of a `response_format`, or of the Responses API's flat `text.format`. Raises UserError."""
    kind = (given or {}).get("type", "text")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json_schema", given.get("schema") or {"type": "object"})
    if kind == "json_schema":
        inner = given.get("json_schema", given)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping | bool):
            nested = "" if inner is given else ".json_schema"
            raise UserError(f"'{field}{nested}.schema' must be a JSON schema")
        return Constraint("json_schema", schema)
    raise UserError(f"'{field}.type' is {kind!r}, must be text, json_object or json_schema")
