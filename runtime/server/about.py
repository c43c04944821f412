"""What a server says of itself and its model: /health, /v1/models, /props, /slots, /metrics."""

from __future__ import annotations

import math
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from .. import __version__
from . import ollama, openai, wire
from .failures import HTTPFailure
from .generation import Generation
from .service import Service, Unavailable


async def health(request: Request) -> Response:
    """503 while the model loads, 500 when it could not be loaded, then 200."""
    service: Service = request.app.state.service
    if service.failure is not None:
        raise HTTPFailure(500, "server_error", "the model failed to load")
    if not service.ready or service.draining:
        raise Unavailable("Loading model" if not service.draining else "the server is about to stop")
    return wire.reply({"status": "ok"})


async def models(request: Request) -> Response:
    """The list of models, which holds one."""
    service: Service = request.app.state.service
    return wire.reply({"object": "list", "data": [_model(service)], "models": [ollama.model(service)]})


async def model(request: Request) -> Response:
    """The model of that name."""
    service: Service = request.app.state.service
    found = _model(service)
    if request.path_params["name"] != found["id"]:
        raise HTTPFailure(404, "not_found_error", f"no model {request.path_params['name'][:100]!r} here")
    return wire.reply(found)


def _model(service: Service) -> dict[str, Any]:
    engine = service.engine
    config = engine.model.config
    meta = {
        "vocab_type": 1 if service.tokenizer.is_sentencepiece else 2,
        "n_vocab": config.vocab_size,
        "n_ctx": engine.context,
        "n_ctx_train": config.context,
        "n_embd": config.d_model,
        "n_params": sum(math.prod(info.shape) for info in engine.model.gguf.tensors.values()),
        "size": engine.model.gguf.nbytes,
    }
    fields = {"id": service.model_name, "object": "model", "created": int(service.started)}
    return {**fields, "owned_by": "layerlift", "meta": meta}


async def props(request: Request) -> Response:
    """llama-server's facts about the server and its settings."""
    service: Service = request.app.state.service
    tokenizer = service.tokenizer

    def text(id: int | None) -> str:
        return "" if id is None else tokenizer.piece(id).decode("utf-8", "replace")

    return wire.reply(
        {
            "default_generation_settings": {
                "n_ctx": service.engine.context,
                "params": settings(service, None),
            },
            "total_slots": service.settings.slots,
            "model_alias": service.model_name,
            "model_path": service.model_name,  # where the file lies is nobody's business
            "modalities": {"vision": False, "audio": False},
            "chat_template": service.template.source,
            "bos_token": text(tokenizer.bos),
            "eos_token": text(tokenizer.eos),
            "build_info": f"layerlift {__version__}",
            "is_sleeping": False,
        }
    )


def settings(service: Service, generation: Generation | None) -> dict[str, Any]:
    """llama-server's `generation_settings`: of an answer, or those that answers start from."""
    request = generation.request if generation else None
    s = request.sampling if request else service.settings.sampling
    return {
        "n_predict": request.max_tokens if request else service.settings.max_tokens,
        "max_tokens": request.max_tokens if request else service.settings.max_tokens,
        "seed": 4294967295 if s.seed in (None, -1) else s.seed,
        "temperature": s.temperature,
        "top_k": s.top_k,
        "top_p": s.top_p,
        "min_p": s.min_p,
        "typical_p": s.typical_p,
        "repeat_last_n": s.repeat_last_n,
        "repeat_penalty": s.repeat_penalty,
        "presence_penalty": s.presence_penalty,
        "frequency_penalty": s.frequency_penalty,
        "mirostat": s.mirostat,
        "mirostat_tau": s.mirostat_tau,
        "mirostat_eta": s.mirostat_eta,
        "stop": list(request.stop) if request else [],
        "n_keep": request.keep if request else 0,
        "ignore_eos": bool(request and request.ignore_eos),
        "logit_bias": [[id, bias if bias > float("-inf") else False] for id, bias in s.logit_bias],
        "n_probs": max(s.n_probs, 0),
        "min_keep": s.min_keep,
        "grammar": s.grammar.source if s.grammar else "",
        "samplers": list(s.samplers),
    }


async def slots(request: Request) -> Response:
    """One entry a slot: who is in it, without any of their words."""
    service: Service = request.app.state.service
    if not service.settings.show_slots:
        raise HTTPFailure(501, "not_supported_error", "/slots is off", hint="leave --no-slots away")
    busy = list(service.active.items())
    out = []
    for id in range(service.settings.slots):
        slot: dict[str, Any] = {"id": id, "n_ctx": service.engine.context, "speculative": False}
        if id >= len(busy):
            out.append({**slot, "is_processing": False})
            continue
        number, generation = busy[id]
        out.append(
            {
                **slot,
                "id_task": number,
                "is_processing": True,
                "params": settings(service, generation) | {"stop": [], "grammar": ""},
                "next_token": {"n_decoded": generation.generated},
                "timings": openai.live(generation),
            }
        )
    return wire.reply(out)


async def metrics(request: Request) -> Response:
    """Counts and times for Prometheus."""
    service: Service = request.app.state.service
    if not service.settings.metrics:
        raise HTTPFailure(501, "not_supported_error", "/metrics is off", hint="start the server with --metrics")
    engine = service.engine
    text = service.metrics.text(engine.load(), engine.context)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")
