'''Reads what the user types: a line, or several between """ fences. Knows commands' names, not what they do.'''

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

FENCE = '"""'
COLORS = {"user": "ansigreen", "assistant": "ansimagenta", "system": "ansiyellow"}


class Reader(Protocol):
    def read(self, role: str, placeholder: str) -> str:
        """The next message. Raises EOFError at the end of input, KeyboardInterrupt at Ctrl-C."""
        ...


def is_open(text: str) -> bool:
    """Whether a text began with a fence that has not ended yet."""
    text = text.strip()
    return text.startswith(FENCE) and not (len(text) > 6 and text.endswith(FENCE))


def without_fences(text: str) -> str:
    """The text between fences, or the text itself."""
    bare = text.strip()
    if not (len(bare) > 6 and bare.startswith(FENCE) and bare.endswith(FENCE)):
        return text
    return bare[3:-3].removeprefix("\n").removesuffix("\n")


def open_reader(commands: Iterable[str], *, keep_history: bool) -> Reader:
    """A line editor on a terminal, else plain lines from stdin."""
    if not sys.stdin.isatty():
        return PlainReader()
    if os.environ.get("TERM") == "dumb" or not (sys.stdout.isatty() or sys.stderr.isatty()):
        return PlainReader(prompting=True)
    return LineEditor(commands, keep_history=keep_history)


class PlainReader:
    """Lines from stdin; `prompting` shows the prompt on stderr."""

    def __init__(self, *, prompting: bool = False):
        self._prompting = prompting

    def read(self, role: str, placeholder: str) -> str:
        text = self._line(">>> ")
        while is_open(text):
            try:
                text += "\n" + self._line("... ")
            except EOFError:
                return text.strip().removeprefix(FENCE).removeprefix("\n")
        return without_fences(text)

    def _line(self, prompt: str) -> str:
        if self._prompting:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")


class LineEditor:
    """prompt_toolkit: history, Tab for commands and paths, Ctrl-J for a new line, bracketed paste, hints."""

    def __init__(self, commands: Iterable[str], *, keep_history: bool):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.output import create_output

        self._session: PromptSession[str] = PromptSession(
            history=_history() if keep_history else InMemoryHistory(),
            completer=_completer(tuple(commands)),
            complete_while_typing=False,
            auto_suggest=_suggester(tuple(commands)),
            key_bindings=_bindings(),
            multiline=True,
            prompt_continuation=lambda width, line, wraps: "" if wraps else "... ",
            output=create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr),
            color_depth=_color_depth(),
        )

    def read(self, role: str, placeholder: str) -> str:
        from prompt_toolkit.formatted_text import FormattedText

        prompt = FormattedText([(COLORS.get(role, ""), ">>> ")])
        text = self._session.prompt(prompt, placeholder=FormattedText([("ansibrightblack", placeholder)]))
        return without_fences(text)


def history_path() -> Path:
    """The file of the lines typed before."""
    from platformdirs import user_state_path

    return user_state_path("layerlift", appauthor=False) / "history"


def _history():
    """History in a file that nobody else may read; in memory where it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _color_depth():
    from prompt_toolkit.output import ColorDepth

    return ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None


def _bindings():
    """Enter sends, but makes a new line inside fences; Ctrl-J always makes one. Ctrl-C and Ctrl-D as usual."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event) -> None:
        buffer = event.current_buffer
        buffer.insert_text("\n") if is_open(buffer.text) else buffer.validate_and_handle()

    @bindings.add("c-j")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _completer(commands: tuple[str, ...]):
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document, complete_event):
            text = document.text_before_cursor
            command, space, rest = text.partition(" ")
            if space and command in ("/upload", "/dump"):
                yield from paths.get_completions(Document(rest, len(rest)), complete_event)
            elif text.startswith("/") and not space:
                yield from (Completion(c, -len(text)) for c in commands if c.startswith(text))

    return Commands()


def _suggester(commands: tuple[str, ...]):
    """The rest of the only command that fits, faint, behind the cursor."""
    from prompt_toolkit.auto_suggest import AutoSuggest, Suggestion

    only: Callable[[str], list[str]] = lambda text: [c for c in commands if c.startswith(text)]  # noqa: E731

    class Commands(AutoSuggest):
        def get_suggestion(self, buffer, document):
            fits = only(document.text) if len(document.text) > 1 and document.text[0] == "/" else []
            return Suggestion(fits[0][len(document.text) :]) if len(fits) == 1 else None

    return Commands()
