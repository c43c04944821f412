"""A conversation as messages and as the tokens the model has seen: each message owns its stretch of tokens.

Only a new message goes through the chat template; an answer keeps the tokens it was generated with. Pure: knows
nothing of the engine, the terminal or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import TemplateError

if TYPE_CHECKING:
    from .template import ChatTemplate
    from .tokenizer import Tokenizer

MARK = "Zanzibar"  # stands for a message's text where only what the template writes around it is wanted
SAMPLE = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})


@dataclass(frozen=True)
class Message:
    """`tokens` are the text with what the template writes around it, in an answer from the words that ask for it."""

    role: str  # "system", "user", "assistant"; "" for words of the template's own
    content: str
    tokens: tuple[int, ...]


class Conversation:
    """The messages so far. A `template` of None is a base model: text is taken as it is, without roles."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, *, system: str = ""):
        self.tokenizer, self.system = tokenizer, system
        self.messages: list[Message] = []
        self._frame = Frame(template) if template else None
        self._cue = self._encode(self._frame.cue) if self._frame else ()
        self._closing = self._end_of_turn()
        opening = system if self._frame is None else self._frame.opening(system)
        self._apart = opening is not None  # the opening is a message of its own, not part of the first one
        if opening is not None:
            role = "system" if system else ""
            # Some templates write the start token at each question: the first one then brings its own.
            start = self._start(opening or (self._frame.turn if self._frame else ""))
            tokens = (*start, *self._encode(opening))
            self.messages += [Message(role, system, tokens)] if tokens else []
        self.n_opening = len(self.messages)  # messages that no command removes

    @property
    def is_base(self) -> bool:
        """Whether text goes to the model as it is, without roles."""
        return self._frame is None

    @property
    def tokens(self) -> list[int]:
        """All tokens, in order."""
        return [token for message in self.messages for token in message.tokens]

    @property
    def n_tokens(self) -> int:
        return sum(len(message.tokens) for message in self.messages)

    # -- growing --

    def add(self, role: str, content: str) -> Message:
        """Adds a message as the template writes it; a role it refuses becomes "user". Raises TemplateError."""
        text = content
        if self._frame and not self._apart and not self.messages:
            role, text = "user" if role == "system" else role, self._frame.first(self.system, role, content)
        elif self._frame:
            role, text = self._frame.next(self._history(), role, content)
        start = () if self.messages else self._start(text)
        message = Message(role, content, (*start, *self._encode(text)))
        self.messages.append(message)
        return message

    def asked(self) -> list[int]:
        """The tokens that ask for an answer: all there are, and the words that begin an assistant's turn."""
        return [*self.tokens, *self._cue]

    def answered(self, content: str, tokens: Sequence[int]) -> Message:
        """Adds the answer to `asked`: its tokens as generated, without an end token, then the end of turn."""
        message = Message("assistant", content, (*self._cue, *tokens, *self._closing))
        self.messages.append(message)
        return message

    # -- shrinking --

    def rewind(self, n_messages: int) -> None:
        """Keeps the first `n_messages`."""
        del self.messages[n_messages:]

    def clear(self) -> None:
        """Keeps the system prompt alone."""
        self.rewind(self.n_opening)

    def forget(self) -> tuple[list[Message], tuple[int, int] | None]:
        """Drops the oldest message that is not the system prompt: what was dropped, and the span of its tokens.

        The span is None where the rest is written anew, because the template puts the system prompt inside the
        first message; a whole turn goes then. Nothing is dropped when nothing is left.
        """
        first = self.n_opening
        if first >= len(self.messages):
            return [], None
        if self._apart or first:
            begin = sum(len(message.tokens) for message in self.messages[:first])
            gone = self.messages.pop(first)
            return [gone], (begin, begin + len(gone.tokens))
        kept = next((i for i, m in enumerate(self.messages) if i and m.role != "assistant"), len(self.messages))
        dropped, rest = self.messages[:kept], self.messages[kept:]
        self.messages.clear()
        if rest:
            self.add(rest[0].role, rest[0].content)
            self.messages += rest[1:]
        return dropped, None

    # -- tokens and history --

    def _history(self) -> list[dict[str, str]]:
        inside = [{"role": "system", "content": self.system}] if self.system and not self._apart else []
        return inside + [{"role": m.role, "content": m.content} for m in self.messages if m.role]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special=False)) if text else ()

    def _start(self, text: str) -> tuple[int, ...]:
        """The start token, where the model wants one and the text that begins the conversation has none."""
        bos = self.tokenizer.bos
        if bos is None or not self.tokenizer.add_bos:
            return ()
        written = text.startswith(self.tokenizer.piece(bos).decode("utf-8", "replace"))
        return () if written else (bos,)

    def _end_of_turn(self) -> tuple[int, ...]:
        """What follows an answer; an answer that was stopped halfway gets it too, so that the next turn fits."""
        if self._frame is None:
            return ()
        end = self.tokenizer.eot if self.tokenizer.eot is not None else self.tokenizer.eos
        return self._encode(self._frame.closing) or (() if end is None else (end,))


class Frame:
    """What a template writes around messages, found by rendering it with known ones and comparing."""

    def __init__(self, template: ChatTemplate):
        self._template = template
        asked, unasked = self._render(SAMPLE[:1], cue=True), self._render(SAMPLE[:1])
        self.cue = asked[len(unasked) :] if asked.startswith(unasked) else ""
        answer = self._render([SAMPLE[0], {"role": "assistant", "content": MARK}])
        self.closing = answer.rpartition(MARK)[2] if MARK in answer else ""
        self.turn = self._added(SAMPLE, {"role": "user", "content": MARK})  # a later question

    def _render(self, messages: Sequence[dict[str, str]], *, cue: bool = False) -> str:
        return self._template.render(messages, add_generation_prompt=cue)

    def opening(self, system: str) -> str | None:
        """What stands before the first user message, or None where it cannot be told apart from that message."""
        user = {"role": "user", "content": MARK}
        try:
            whole = self._render([{"role": "system", "content": system}, user] if system else [user])
        except TemplateError:
            if not system:
                raise
            return None
        return whole[: -len(self.turn)] if self.turn and whole.endswith(self.turn) else None

    def first(self, system: str, role: str, content: str) -> str:
        """The first message with the opening inside; where the template takes no system prompt, as the user's."""
        new = {"role": "user" if role == "system" else role, "content": content}
        try:
            return self._render([{"role": "system", "content": system}, new] if system else [new])
        except TemplateError:
            if not system:
                raise
            return self._render([{**new, "content": f"{system}\n\n{content}"}])

    def next(self, history: Sequence[dict[str, str]], role: str, content: str) -> tuple[str, str]:
        """The role and the text that a later message gets.

        Where the template changes what it wrote before (some drop an older answer's thoughts), or refuses the
        order of roles, the message is rendered behind a plain question and answer instead.
        """
        for each in dict.fromkeys((role, "user")):
            for before in (history, SAMPLE, SAMPLE[:1]):
                added = self._added(before, {"role": each, "content": content})
                if added:
                    return each, added
        return role, self._render([{"role": role, "content": content}])

    def _added(self, before: Sequence[dict[str, str]], new: dict[str, str]) -> str:
        """The text that `new` adds behind `before`; empty if the template fails or rewrites `before`."""
        if not before:
            return ""
        try:
            past, whole = self._render(before), self._render([*before, new])
        except TemplateError:
            return ""
        return whole[len(past) :] if past and whole.startswith(past) else ""
