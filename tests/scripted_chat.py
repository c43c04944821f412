"""A chat with prepared lines and a scripted engine."""

from __future__ import annotations

from fake_engine import FakeEngine
from layerlift.runtime.arguments import parse
from layerlift.runtime.chat import Chat
from layerlift.runtime.startup import sampling_of
from layerlift.runtime.terminal import Terminal


class Script:
    """A reader of prepared lines; KeyboardInterrupt in the list is raised."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def read(self, role, placeholder):
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line


def make(engine: FakeEngine, *flags: str) -> Chat:
    options = parse(flags)
    return Chat(engine, options, Terminal(), sampling_of(options))


def text_of(chat: Chat) -> str:
    return chat.conversation.tokenizer.decode(chat.conversation.tokens, special=True)
