"""The server's own description, OpenAPI 3.1: made of the table of routes and of the structs that bodies are read as."""

from __future__ import annotations

import functools
import inspect
import math
import re
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..sampler import BOUNDS
from . import failures, wire
from .fields import SAMPLING_NAMES

if TYPE_CHECKING:
    from .routes import Entry
    from .service import Service

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_MISTAKE = {"code": 400, "message": "'temperature': Expected `float | null`, got `array`"}


async def openapi(request: Request) -> Response:
    """This description."""
    from .routes import ROUTES  # which lists this function

    service: Service = request.app.state.service
    return wire.reply(await service.prepare(document, ROUTES))


@functools.cache
def document(entries: tuple[Entry, ...]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    kinds = list(dict.fromkeys(entry.body for entry in entries if entry.body is not None))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    bodies = dict(zip(kinds, schemas, strict=True))
    for component in components.values():
        _add_bounds(component["properties"])
    paths: dict[str, dict[str, Any]] = {}
    for entry in entries:
        operation = _operation(entry, bodies)
        paths.setdefault(_PARAMETER.sub(r"{\1}", entry.path), {})[entry.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "layerlift", "version": __version__},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _add_bounds(properties: dict[str, dict[str, Any]]) -> None:
    """The ranges of what decides how tokens are chosen, which are checked where it is used."""
    for name, sampling in SAMPLING_NAMES.items():
        low, high = BOUNDS.get(sampling, (-math.inf, math.inf))
        if name in properties:
            properties[name] |= {k: v for k, v in (("minimum", low), ("maximum", high)) if math.isfinite(v)}


def _operation(entry: Entry, bodies: dict[type, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{entry.method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', entry.path).rstrip('_')}",
        "summary": (inspect.getdoc(entry.handler) or "").partition("\n")[0].rstrip("."),
        "security": [] if entry.public else [{}, {"key": []}],  # {}: a server without a key asks for none
        "responses": {
            "200": {"description": "The answer", "content": {media: {} for media in entry.media}},
            "default": _error(entry.path),
        },
    }
    if names := _PARAMETER.findall(entry.path):
        schema = {"type": "string"}
        operation["parameters"] = [{"name": n, "in": "path", "required": True, "schema": schema} for n in names]
    if entry.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": bodies[entry.body]}}}
    return operation


def _error(path: str) -> dict[str, Any]:
    example = failures.shaped(path, {**_MISTAKE, "type": "invalid_request_error"})
    return {"description": "What is wrong", "content": {"application/json": {"example": example}}}
