"""Messages as chat templates take them, checked before they get there. Knows no protocol."""

from __future__ import annotations

from typing import Any

from ..errors import UserError

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def checked_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with roles that templates know. Raises UserError naming the field."""
    return [checked_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def checked_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """One message, which the request has at `where`. Raises UserError naming the field."""
    if not isinstance(message.get("role"), str):
        raise UserError(f"'{where}' must be an object with a role")
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content")
    if content is None and role != "assistant":
        raise UserError(f"'{where}.content' is missing")
    if isinstance(content, list):
        content = [{"type": "text", "text": text} for text in texts(content, f"{where}.content")]
    elif content is not None and not isinstance(content, str):
        raise UserError(f"'{where}.content' must be a text or a list of parts")
    return {**message, "role": role, "content": content if content is not None else ""}


def texts(parts: list[Any], where: str) -> list[str]:
    """What the parts of a content say. Raises UserError for those that are no text."""
    for k, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind not in TEXT_PARTS:
            raise UserError(f"'{where}[{k}]' is of type {str(kind)[:64]!r}; this model takes text")
    return [str(part.get("text", part.get("refusal", ""))) for part in parts]
