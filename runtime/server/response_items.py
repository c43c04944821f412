"""The items of the Responses API as messages and tools that a chat template takes. Pure translation."""

from __future__ import annotations

from typing import Any

from ..errors import UserError
from .messages import checked_message, texts


def messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A request's `input`: a text, or items of a conversation. Raises UserError naming the field."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    said: list[dict[str, Any]] = []
    for i, item in enumerate(given):
        kind, where = item.get("type", "message"), f"input[{i}]"
        if kind == "message":
            said.append(checked_message({"role": item.get("role"), "content": item.get("content")}, where))
        elif kind == "function_call":
            _add_call(said, item, where)
        elif kind == "function_call_output":
            said.append(_result(item, where))
        elif kind != "reasoning":  # what a model thought is not told to it again
            raise UserError(f"'{where}.type' is {str(kind)[:64]!r}, must be a message, function_call or its output")
    return said


def _add_call(said: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Adds a call to the assistant's message that it belongs to, the last one, or to a new one."""
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise UserError(f"'{where}.{name}' must be a text")
    if not said or said[-1]["role"] != "assistant":
        said.append({"role": "assistant", "content": ""})
    said[-1].setdefault("tool_calls", []).append(call(item["call_id"], item["name"], item["arguments"]))


def call(id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call as chat templates know it."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(item: dict[str, Any], where: str) -> dict[str, Any]:
    output = item.get("output")
    if isinstance(output, list):
        output = "\n".join(texts(output, f"{where}.output"))
    if not isinstance(output, str) or not isinstance(item.get("call_id"), str):
        raise UserError(f"'{where}' must have a call_id and an output")
    return {"role": "tool", "tool_call_id": item["call_id"], "content": output}


def said_by(output: list[dict[str, Any]]) -> dict[str, Any]:
    """The items of an answer as the one message that they are in a conversation."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for item in output:
        if item["type"] == "message":
            message["content"] += "".join(part["text"] for part in item["content"])
        else:
            made = call(item["call_id"], item["name"], item["arguments"])
            message.setdefault("tool_calls", []).append(made)
    return message


def tools(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Functions as chat completions describe them. Raises UserError naming the field."""
    described = []
    for i, tool in enumerate(given):
        if tool.get("type") != "function":
            raise UserError(f"'tools[{i}].type' is {str(tool.get('type'))[:64]!r}, must be function")
        function = {k: tool[k] for k in ("name", "description", "parameters") if tool.get(k) is not None}
        described.append({"type": "function", "function": function})
    return described
