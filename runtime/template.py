"""Turns a conversation into the text a model was trained on, with the model file's own chat template.

Knows messages and templates; knows nothing of tokens beyond the texts of BOS and EOS. The template is a program
that came with the file: it runs in a process of its own (sandbox.py), with bounded time and memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from .chatformats import BUILTIN
from .errors import GGUFError, ModelError, TemplateError, UserError
from .sandbox import shared

MAX_SOURCE = 1 << 20  # characters; the longest real templates have 50,000
_MAX_DEPTH = 64  # of nested values in messages and tools
_MARK = "mark7f3a"  # a word that no template writes by itself
_LLAMA2_NAMES = re.compile(r"(llama-?_? ?2.*chat|mi[sx]tral.*instruct)", re.IGNORECASE)
# Names that are the template's own, or would be a template.
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "chat_template"})

Message = dict[str, Any]


class TokenTexts(Protocol):
    """What is needed of tokenizer.Tokenizer."""

    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    def piece(self, id: int, *, special: bool = True) -> bytes: ...
    def find(self, text: str) -> int | None: ...


class ChatTemplate:
    """A chat template; `name` is "model" where it is the file's own, else a built-in's.

    The text it writes may begin with BOS. `Tokenizer.encode` adds BOS only where the text has none, so its
    defaults are right for what `render` returns.
    """

    def __init__(
        self, source: str, *, name: str, is_fallback: bool, bos: str = "", eos: str = "", tool_source: str = ""
    ):
        self.source, self.name, self.is_fallback = source, name, is_fallback
        self._bos, self._eos = bos, eos
        self._tool_source = tool_source  # some files have a second template, for conversations with tools
        self._can: dict[str, bool] = {}  # what the template can do, found out when it matters

    @classmethod
    def from_gguf(cls, g: Any, tokenizer: TokenTexts) -> ChatTemplate:
        """The file's template, or the built-in that fits its special tokens (`is_fallback`)."""
        bos, eos = (
            "" if id is None else tokenizer.piece(id).decode("utf-8", "replace")
            for id in (tokenizer.bos, tokenizer.eos)
        )
        key = "tokenizer.chat_template"
        source, tools = _text(g, key), _text(g, f"{key}.tool_use")
        if source.strip():
            return cls(source, name="model", is_fallback=False, bos=bos, eos=eos, tool_source=tools)
        name = "chatml"
        if tokenizer.find("<|start_header_id|>") is not None and tokenizer.find("<|eot_id|>") is not None:
            name = "llama3"
        elif tokenizer.find("<|im_start|>") is None and _LLAMA2_NAMES.search(_text(g, "general.name")):
            name = "llama2"
        return cls(BUILTIN[name], name=name, is_fallback=True, bos=bos, eos=eos)

    @classmethod
    def from_source(cls, text: str, *, bos: str = "", eos: str = "") -> ChatTemplate:
        """A template from its text."""
        return cls(text, name="model", is_fallback=False, bos=bos, eos=eos)

    @classmethod
    def builtin(cls, name: str, *, bos: str = "", eos: str = "") -> ChatTemplate:
        """One of chatml, llama2, llama3."""
        if name not in BUILTIN:
            raise UserError(f"no chat template {name[:64]!r} (known: {', '.join(BUILTIN)})")
        return cls(BUILTIN[name], name=name, is_fallback=True, bos=bos, eos=eos)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        now: datetime | None = None,
        **kwargs: Any,
    ) -> str:
        """The conversation as text, ending where the assistant goes on if `add_generation_prompt`.

        Further names (documents, date_string, enable_thinking) are the template's variables. A system message that
        the template refuses or leaves out goes into the first user message; content in parts is joined where the
        template takes only text. Raises TemplateError if the template fails, UserError for what is no conversation.
        """
        context = _plain_variables(kwargs) | {"add_generation_prompt": bool(add_generation_prompt)}
        context["tools"] = _plain(list(tools), "tools") if tools else None
        source = self._tool_source if tools and self._tool_source else self.source
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"chat template: {len(source)} characters (limit {MAX_SOURCE})")
        moment = (now or datetime.now()).isoformat()

        def write(conversation: list[Message]) -> str:
            return self._write(source, conversation, context, moment)

        plain = _conversation(messages)
        if not self._takes_parts(plain):
            plain = [_joined(m) for m in plain]
        text = _first_success(write, _ways(plain))
        if _system_text(plain) and not self._keeps("system", [_system(_MARK), _user("x")]):
            merged = _merged(plain)
            return text if merged is None else _first_success(write, _ways(merged))
        if _lost(text, plain) and self._needs_parts():
            return write([_parted(m) for m in plain])
        return text

    def _write(self, source: str, conversation: list[Message], context: dict[str, Any], moment: str) -> str:
        names = context | {"messages": conversation, "bos_token": self._bos, "eos_token": self._eos}
        try:
            return shared.render(source, names, moment)
        except TemplateError as error:
            if names["tools"] or _stopped(error):
                raise
        # minijinja counts `none` as iterable, which some templates ask before they take its length.
        del names["tools"]
        return shared.render(source, names, moment)

    # -- what the template can do --

    def _keeps(self, what: str, conversation: list[Message]) -> bool:
        """Whether the marked text of a small conversation is in what the template writes, and as text."""
        if what not in self._can:
            context = {"tools": None, "add_generation_prompt": True}
            try:
                text = self._write(self.source, conversation, context, "2025-01-01T00:00:00")
            except TemplateError:
                text = ""
            self._can[what] = _MARK in text and "'text'" not in text and '"text"' not in text
        return self._can[what]

    def _takes_parts(self, conversation: list[Message]) -> bool:
        """Whether content may stay in parts: where there is any, the template is tried with one."""
        if not any(isinstance(m.get("content"), list) for m in conversation):
            return True
        return self._keeps("parts", [_parted(_user(_MARK))])

    def _needs_parts(self) -> bool:
        return not self._keeps("text", [_user(_MARK)]) and self._keeps("parts", [_parted(_user(_MARK))])


# ---------------------------------------------------------------------------------------------------------------
# Conversations


def _first_success(write: Callable[[list[Message]], str], ways: list[list[Message]]) -> str:
    """The text of the first way that works; if none does, the first one's error."""
    failure: TemplateError | None = None
    for conversation in ways:
        try:
            return write(conversation)
        except TemplateError as error:
            failure = failure or error
            if _stopped(error):
                break  # it would only be stopped again
    assert failure is not None
    raise failure


def _stopped(error: TemplateError) -> bool:
    return ": stopped, " in str(error)


def _ways(conversation: list[Message]) -> list[list[Message]]:
    """The same conversation in the forms that templates expect: tool arguments as objects or as JSON text,
    the system message by itself or inside the first user message."""
    objects = [_with_arguments(m) for m in conversation]
    ways = [objects] if objects == conversation else [objects, conversation]
    merged = _merged(objects)
    return ways if merged is None else [*ways, merged]


def _user(content: Any) -> Message:
    return {"role": "user", "content": content}


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _conversation(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A deep copy in plain data, so that a template can change nothing of the caller's."""
    copy = _plain(list(messages), "messages")
    for i, message in enumerate(copy):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"messages[{i}]: not an object with a role")
    return copy


def _joined(message: Message) -> Message:
    """Content in parts as one text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = []
    for part in content:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, str):
            texts.append(part)
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UserError(f"messages: content part {str(kind)[:64]!r} is no text, and the model takes only text")
    return message | {"content": "\n".join(texts)}


def _parted(message: Message) -> Message:
    """Content as a list of one text part."""
    content = message.get("content")
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _with_arguments(message: Message) -> Message:
    """Tool calls whose arguments are objects, not JSON text as the HTTP API has them."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message

    def parsed(call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
            return call
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return call
        return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call

    return message | {"tool_calls": [parsed(c) for c in calls]}


def _system_text(conversation: list[Message]) -> str:
    contents = (_joined(m).get("content") for m in conversation if m["role"] == "system")
    return "\n".join(c for c in contents if isinstance(c, str) and c.strip())


def _merged(conversation: list[Message]) -> list[Message] | None:
    """System messages put before the first user message's text; None if there are none, or no such message."""
    system = _system_text(conversation)
    rest = [_joined(m) for m in conversation if m["role"] != "system"]
    first = next((i for i, m in enumerate(rest) if m["role"] == "user"), None)
    if not system or first is None:
        return None
    text = f"{system}\n\n{rest[first].get('content') or ''}"
    return [*rest[:first], rest[first] | {"content": text}, *rest[first + 1 :]]


def _lost(text: str, conversation: list[Message]) -> bool:
    """Whether the last user message, if it is a text, is missing from what was written."""
    said = next((m.get("content") for m in reversed(conversation) if m["role"] == "user"), None)
    return isinstance(said, str) and said.strip()[:40] not in text


# ---------------------------------------------------------------------------------------------------------------
# Plain data


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A deep copy made of JSON's types only; lone surrogates become U+FFFD."""
    if depth > _MAX_DEPTH:
        raise UserError(f"{where}: nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}"[:200], depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]"[:200], depth + 1) for i, v in enumerate(value)]
    raise UserError(f"{where}: {type(value).__name__} is nothing a chat template can be given")


def _plain_variables(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if not name.isidentifier() or name.startswith("_") or name in _RESERVED:
            raise UserError(f"chat template: {name[:64]!r} cannot be set")
    return {name: _plain(value, name) for name, value in kwargs.items()}


def _text(g: Any, key: str) -> str:
    """A text of the metadata; nothing if it is missing or no text (the built-ins serve then)."""
    try:
        return g.metadata.text(key, "")
    except (ModelError, GGUFError):
        return ""
