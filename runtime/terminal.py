"""Where words go: data to stdout, talk to stderr, in colour where that is wanted. Knows nothing of models."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from .errors import LayerliftError

BOLD, FAINT, RED, GREEN, YELLOW, MAGENTA = ("1", "2", "31", "32", "33", "35")
# Control characters as pictures of themselves (U+2400 …), so that a model's words cannot drive the terminal.
_VISIBLE = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A)} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def wants_color(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours; NO_COLOR (no-color.org) turns them off."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class OutputError(OSError):
    """Data could not be written, which ends the program whatever it was doing."""


def abandon(stream: TextIO) -> None:
    """Lets go of a stream that fails: what is still buffered would fail once more when Python closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Terminal:
    """`quiet` leaves out all talk but errors."""

    def __init__(self, *, color: bool = False, quiet: bool = False, verbose: bool = False):
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self.color = color or wants_color(self.stdout)
        self.color_talk = wants_color(self.stderr)
        self.quiet, self.verbose = quiet, verbose
        self._status = ""  # the line in progress on stderr

    # -- data --

    def write(self, text: str) -> None:
        """Data, at once. Raises BrokenPipeError when nobody reads it any more, else OutputError."""
        if not text:
            return
        self.clear_status()
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            abandon(self.stdout)
            raise OutputError(f"cannot write to stdout: {error.strerror}") from None

    def shown(self, text: str) -> str:
        """A model's text as it may go to stdout: control characters made visible on a terminal."""
        return text.translate(_VISIBLE) if self.stdout.isatty() else text

    # -- talk --

    def say(self, text: str, *styles: str) -> None:
        """A line of talk."""
        if self.quiet:
            return
        self.clear_status()
        self._talk(self.styled(text, *styles) + "\n")

    def error(self, message: str, hint: str = "") -> None:
        """What went wrong on one line, what to do on the next."""
        self.clear_status()
        lines = [self.styled("error: " + message, RED), *([f"hint: {hint}"] if hint else [])]
        self._talk("\n".join(lines) + "\n")

    def failure(self, error: LayerliftError) -> None:
        """An error with its hint."""
        self.error(" ".join(str(error).split("\n")), error.hint)

    def status(self, text: str) -> None:
        """A passing notice on a terminal: the next words take its place."""
        if self.quiet or not self.stderr.isatty() or text == self._status:
            return
        self._talk("\r" + self.styled(text, FAINT) + ("\033[K" if self.color_talk else "   "))
        self._status = text

    def step(self, text: str) -> None:
        """A sign of progress: a passing notice on a terminal, a line elsewhere."""
        self.status(text) if self.stderr.isatty() else self.say(text)

    def clear_status(self) -> None:
        if self._status:
            blank = "\033[K" if self.color_talk else " " * (len(self._status) + 3) + "\r"
            self._talk("\r" + blank)
            self._status = ""

    def _talk(self, text: str) -> None:
        try:
            self.stderr.write(text)
            self.stderr.flush()
        except OSError:  # talk that nobody can hear is no reason to stop
            abandon(self.stderr)

    def styled(self, text: str, *styles: str) -> str:
        """Text for stderr in a style."""
        return f"\033[{';'.join(styles)}m{text}\033[0m" if styles and self.color_talk else text


def share(done: int, total: int) -> str:
    """A fraction in per cent."""
    return f"{100 * done // max(total, 1)}%"
