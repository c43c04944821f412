"""What the free-form parts of bodies look like, for the OpenAPI document. They are checked where they are read."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_JSON = {"type": "string", "contentMediaType": "application/json", "pattern": r"^\s*\{.*\}\s*$"}
_TEXT, _NULL = {"type": "string"}, {"type": "null"}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_SCHEMA = {"type": ["object", "boolean"]}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _either(*shapes: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(shapes)}


def _list(shape: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": shape}


def _some(shape: dict[str, Any]) -> dict[str, Any]:
    return {**_list(shape), "minItems": 1}


def _content(*kinds: str) -> dict[str, Any]:
    """A text, or parts of these types that are text."""
    return _either(_TEXT, _list(_object("type", "text", type={"enum": list(kinds)}, text=_TEXT)))


def _like(shape: dict[str, Any]) -> msgspec.Meta:
    return msgspec.Meta(extra_json_schema=shape)


def between(low: int, high: int | None = None) -> msgspec.Meta:
    """The shape of a count; None is no limit."""
    return _like({"minimum": low} if high is None else {"minimum": low, "maximum": high})


Limit = Annotated[int | None, between(-1)]  # of tokens; -1 is none
Absent = Annotated[Any, _like({"type": "null"})]  # what OpenAI has and this server has not


_CALL = _object("function", id=_TEXT, type={"const": "function"}, function=_object("name", name=_TEXT, arguments=_JSON))
_FUNCTION = _object("name", name=_TEXT, description=_TEXT, parameters={"type": "object"})

Message = Annotated[
    dict[str, Any],
    _like(
        _object(
            *("role", "content"),
            role={"enum": ["system", "developer", "user", "assistant", "tool"]},
            content=_content("text"),
            tool_calls=_list(_CALL),
            tool_call_id=_TEXT,
        )
    ),
]
Messages = Annotated[list[Message], msgspec.Meta(min_length=1)]
Tool = Annotated[dict[str, Any], _like(_object("type", "function", type={"const": "function"}, function=_FUNCTION))]
ToolChoice = Annotated[
    str | dict[str, Any],
    _like(_either({"enum": ["auto", "none", "required"]}, _object("function", function=_object("name", name=_TEXT)))),
]
ResponseFormat = Annotated[
    dict[str, Any],
    _like(
        _object(
            "type",
            type={"enum": ["text", "json_object", "json_schema"]},
            json_schema=_object("schema", name=_TEXT, schema=_SCHEMA),
        )
    ),
]
StreamOptions = Annotated[dict[str, Any], _like(_object(include_usage={"type": "boolean"}))]

Prompt = Annotated[Any, _like(_either(_TEXT, _TOKENS, _some(_either(_TEXT, _TOKENS))))]
MixedPrompt = Annotated[
    Any, _like(_either(_TEXT, _some(_either(_TEXT, {"type": "integer", "minimum": 0})), _some(_TOKENS)))
]
LogitBias = Annotated[
    Any,
    _like(
        _either(
            {"type": "object", "additionalProperties": {"type": "number"}},
            _list({"type": "array", "prefixItems": [{"type": ["integer", "string"]}, {"type": ["number", "boolean"]}]}),
            _NULL,
        )
    ),
]
JSONSchema = Annotated[Any, _like({"type": ["object", "boolean", "null"]})]

InputItem = Annotated[
    dict[str, Any],
    _like(
        _either(
            _object(
                *("role", "content"),
                type={"const": "message"},
                role={"enum": ["system", "developer", "user", "assistant"]},
                content=_content("input_text", "output_text"),
            ),
            _object(
                *("type", "call_id", "name", "arguments"),
                type={"const": "function_call"},
                call_id=_TEXT,
                name=_TEXT,
                arguments=_JSON,
            ),
            _object(
                *("type", "call_id", "output"),
                type={"const": "function_call_output"},
                call_id=_TEXT,
                output=_content("input_text"),
            ),
        )
    ),
]
FlatTool = Annotated[
    dict[str, Any],
    _like(
        _object(
            "type", "name", type={"const": "function"}, name=_TEXT, description=_TEXT, parameters={"type": "object"}
        )
    ),
]
FlatToolChoice = Annotated[
    str | dict[str, Any], _like(_either({"enum": ["auto", "none", "required"]}, _object("name", name=_TEXT)))
]
FlatFormat = Annotated[
    dict[str, Any],
    _like(_object("type", type={"enum": ["text", "json_object", "json_schema"]}, name=_TEXT, schema=_SCHEMA)),
]

TextBlock = Annotated[dict[str, Any], _like(_object("type", "text", type={"const": "text"}, text=_TEXT))]
AnthropicMessage = Annotated[
    dict[str, Any], _like(_object("role", "content", role={"enum": ["user", "assistant"]}, content=_content("text")))
]
AnthropicTool = Annotated[
    dict[str, Any],
    _like(_object("name", "input_schema", name=_TEXT, description=_TEXT, input_schema={"type": "object"})),
]
AnthropicToolChoice = Annotated[
    dict[str, Any], _like(_object("type", type={"enum": ["auto", "any", "none", "tool"]}, name=_TEXT))
]
Format = Annotated[str | dict[str, Any], _like(_either({"enum": ["", "json"]}, {"type": "object"}))]
