"""Tools in the two formats that models are trained on: described in a prompt, and read out of an answer as it comes.

Hermes and ChatML models write `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, Llama 3 writes a bare
`{"name": …, "parameters": {…}}`, perhaps behind `<|python_tag|>`. Knows nothing of tokens or protocols.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

OPEN, CLOSE, PYTHON = "<tool_call>", "</tool_call>", "<|python_tag|>"
_NAME = r'"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*'
_HEAD = re.compile(r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?' + _NAME + r'"(?:arguments|parameters)"\s*:\s*(?=\{)')
_HERMES_PROMPT = (
    "You may call functions to help with the question. The functions are described here as JSON:\n<tools>\n{tools}\n"
    "</tools>\nTo call one, write a JSON object with its name and arguments between these marks:\n<tool_call>\n"
    '{{"name": "the function", "arguments": {{"argument": "value"}}}}\n</tool_call>'
)


@dataclass(frozen=True)
class TextPiece:
    text: str


@dataclass(frozen=True)
class CallPiece:
    """`id` and `name` are there in a call's first piece only."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Tools:
    """The tools of one request and how this model speaks of them.

    `opening` goes behind the prompt and `schema` is what the answer must then fit, where a call is required. Without
    `parallel` an answer ends with its first call.
    """

    described: tuple[Mapping[str, Any], ...]
    choice: str
    style: str  # "hermes" or "llama3"
    native: bool  # whether the template describes tools itself
    parallel: bool = True

    @classmethod
    def choose(
        cls, tools: Sequence[Mapping[str, Any]], choice: str, template: str, *, parallel: bool = True
    ) -> Tools | None:
        """The style of a template. None where no tool may be called. Raises UserError naming the field."""
        for i, tool in enumerate(tools):
            function = tool.get("function") if isinstance(tool, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
                raise UserError(f'\'tools[{i}]\' must be {{"type": "function", "function": {{"name": …}}}}')
            if not isinstance(function.get("parameters") or {}, Mapping):
                raise UserError(f"'tools[{i}].function.parameters' must be a JSON schema")
        names = [tool["function"]["name"] for tool in tools]
        if choice not in ("auto", "none", "required", *names):
            raise UserError(f"'tool_choice' names {choice!r}, which is not among 'tools'")
        if choice == "none":
            return None
        native = "tools" in template
        llama3 = native and OPEN not in template and ("ipython" in template or PYTHON in template)
        return cls(tuple(tools), choice, "llama3" if llama3 else "hermes", native, parallel)

    @property
    def for_template(self) -> tuple[Mapping[str, Any], ...] | None:
        return self.described if self.native else None

    @property
    def special(self) -> bool:
        """Whether the marks of a call may be control tokens, which have to be shown then."""
        return True

    @property
    def forced(self) -> bool:
        return self.choice != "auto"

    @property
    def opening(self) -> str:
        return OPEN + "\n" if self.forced and self.style == "hermes" else ""

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of a call that is required."""
        if not self.forced:
            return None
        key = "parameters" if self.style == "llama3" else "arguments"
        calls = []
        for tool in self.described:
            function = tool["function"]
            if self.choice not in ("required", function["name"]):
                continue
            parameters = function.get("parameters") or {"type": "object", "properties": {}}
            if parameters.get("type", "object") != "object":
                raise UserError(f"tool {function['name']!r}: its parameters must be of type object")
            calls.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": function["name"]}, key: {"type": "object", **parameters}},
                    "required": ["name", key],
                    "additionalProperties": False,
                }
            )
        if len(calls) == 1:
            return _with_definitions(calls[0], key)
        return {"anyOf": calls}

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The conversation as the template takes it: where it knows no tools, they and their calls become text."""
        plain = [parsed_arguments(message) for message in messages]
        if self.native:
            return plain
        described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.described)
        return _spelled_out(plain, _HERMES_PROMPT.format(tools=described))

    def reader(self) -> CallReader:
        names = frozenset(tool["function"]["name"] for tool in self.described)
        return CallReader(self.style, names, inside=self.forced, most=None if self.parallel else 1)


def _with_definitions(call: dict[str, Any], key: str) -> dict[str, Any]:
    """A schema whose references are found: "$defs" of the parameters move to the root."""
    parameters = call["properties"][key]
    moved = {name: parameters.pop(name) for name in ("$defs", "definitions") if name in parameters}
    return {**call, **moved}


def parsed_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    """Templates take the arguments of a call as an object; clients send them as JSON text."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    parsed = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError("'messages[].tool_calls[]' must have a function with a name")
        arguments = function.get("arguments") or "{}"
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                raise UserError("'messages[].tool_calls[].function.arguments' is not JSON") from None
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": parsed}


def _spelled_out(messages: list[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content") or ""
        text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
        if message.get("role") == "tool":
            out.append({"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"})
        elif message.get("tool_calls"):
            calls = [
                {"name": c["function"]["name"], "arguments": c["function"]["arguments"]} for c in message["tool_calls"]
            ]
            spelled = [f"{OPEN}\n{json.dumps(call, ensure_ascii=False)}\n{CLOSE}" for call in calls]
            out.append({"role": "assistant", "content": "\n".join(filter(None, [text, *spelled]))})
        else:
            out.append({"role": message.get("role"), "content": text})
    if out and out[0]["role"] == "system":
        out[0] = {"role": "system", "content": f"{out[0]['content']}\n\n{prompt}"}
    else:
        out.insert(0, {"role": "system", "content": prompt})
    return out


class CallReader:
    """Parts text from calls as an answer comes in; arguments are passed on piece by piece.

    Text that looked like a call and is none is given back as text. What comes behind the last of `most` calls is not
    read.
    """

    def __init__(self, style: str, names: frozenset[str], *, inside: bool = False, most: int | None = None):
        self._style, self._names = style, names
        self._held = ""
        self._state = "head" if inside else "text"  # text, head (of a call), arguments, tail (behind one)
        self._bare = style == "llama3" and not inside  # a call may begin without a mark, at the start only
        self._calls, self._most = 0, most
        self._depth, self._quoted, self._escaped = 0, False, False

    @property
    def full(self) -> bool:
        """Whether as many calls as may be are read."""
        return self._calls == self._most

    def feed(self, text: str) -> list[TextPiece | CallPiece]:
        self._held += text
        out: list[TextPiece | CallPiece] = []
        while not self.full:
            before = (self._state, len(self._held))
            out += getattr(self, f"_in_{self._state}")()
            if (self._state, len(self._held)) == before or not self._held:
                return out
        self._held = ""
        return out

    def flush(self) -> list[TextPiece | CallPiece]:
        """What is held back, when nothing more will come: a call written in another order, or else text."""
        held, self._held = self._held, ""
        if not held.strip() or self._state in ("tail", "arguments"):
            return []
        if self._state == "head":
            call = self._whole(held)
            if call is not None:
                return [call]
        return [TextPiece(held)]

    def _in_text(self) -> list[TextPiece | CallPiece]:
        if self._bare:
            start = self._held.lstrip()
            if not start or PYTHON.startswith(start):
                return []
            self._bare = False
            if start.startswith((PYTHON, "{")):
                self._held = start.removeprefix(PYTHON)
                self._state = "head"
                return []
        mark = OPEN if self._style == "hermes" else PYTHON
        at = self._held.find(mark)
        if at >= 0:
            text, self._held = self._held[:at].rstrip(), self._held[at + len(mark) :]
            self._state = "head"
        else:
            keep = next(
                (n for n in range(min(len(mark) - 1, len(self._held)), 0, -1) if mark[:n] == self._held[-n:]), 0
            )
            # Blanks before a mark belong to the call.
            body = self._held[: len(self._held) - keep].rstrip()
            text, self._held = body, self._held[len(body) :]
        return [TextPiece(text)] if text else []

    def _in_head(self) -> list[TextPiece | CallPiece]:
        match = _HEAD.match(self._held)
        if match:
            try:
                name = json.loads(f'"{match[1]}"')
            except ValueError:
                name = ""
            if name in self._names:
                self._held = self._held[match.end() :]
                self._state, self._depth = "arguments", 0
                return [self._piece(name, "")]
            return self._give_up()
        if self._style == "hermes" and CLOSE in self._held:
            inner, _, rest = self._held.partition(CLOSE)
            call = self._whole(inner)
            if call is None:
                return self._give_up()
            self._held, self._state = rest, "text"
            return [call]
        if self._held.lstrip() and not self._held.lstrip().startswith("{"):
            return self._give_up()
        return []

    def _give_up(self) -> list[TextPiece | CallPiece]:
        held, self._held, self._state = self._held, "", "text"
        return [TextPiece(held)]

    def _in_arguments(self) -> list[TextPiece | CallPiece]:
        for i, c in enumerate(self._held):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif c == "\\":
                    self._escaped = True
                elif c == '"':
                    self._quoted = False
            elif c == '"':
                self._quoted = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if not self._depth:
                    piece, self._held, self._state = self._held[: i + 1], self._held[i + 1 :], "tail"
                    self._calls += 1
                    return [CallPiece(self._calls - 1, "", "", piece)]
        piece, self._held = self._held, ""
        return [CallPiece(self._calls, "", "", piece)] if piece else []

    def _in_tail(self) -> list[TextPiece | CallPiece]:
        """Behind a call: its closing mark, and perhaps another call."""
        for mark in (CLOSE, ";"):
            at = self._held.find(mark)
            if at >= 0:
                self._held = self._held[at + len(mark) :]
                self._state, self._bare = "text", self._style == "llama3"
                break
        return []

    def _piece(self, name: str, arguments: str) -> CallPiece:
        return CallPiece(self._calls, "call_" + secrets.token_hex(12), name, arguments)

    def _whole(self, text: str) -> CallPiece | None:
        try:
            call = json.loads(text)
            arguments = call.get("arguments", call.get("parameters", {}))
            name = call["name"]
        except (ValueError, KeyError, AttributeError, RecursionError):
            return None
        if name not in self._names:
            return None
        piece = self._piece(name, arguments if isinstance(arguments, str) else json.dumps(arguments))
        self._calls += 1
        return piece
