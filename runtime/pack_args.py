"""The flags that a packed file brings along, and how the user's join them. Knows the table of flags, no files.

`.args` holds words as a shell would read them: blanks part them, quotes hold them together, a backslash takes the next
character as it is, `#` at the start of a word begins a comment. Nothing is expanded. A bare `...` is where the user's
words go; without it they go to the end, where they have the last word.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .errors import UserError
from .flags import COMMANDS, FLAGS, MODES, Flag, flags_of

# What is true of the machine in whatever mode; other packed flags speak to the mode they were packed for.
MACHINE = ("ngl", "gpu", "tensor_split", "main_gpu", "threads")
ON_FILES = ("verify", "unpack", "repack")

_WORD = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(\n|.)|([^\s'"\\]+)""", re.DOTALL)


@dataclass(frozen=True)
class PackedArgs:
    """The words before `...` and those behind it."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def parse_args(text: str, label: str = ".args") -> PackedArgs:
    """Reads `.args`. Raises UserError with the line for a quote without its end and for a second `...`."""
    before: list[str] = []
    after: list[str] | None = None
    for word, quoted, line in _words(text.replace("\r\n", "\n"), label):
        if word == "..." and not quoted:
            if after is not None:
                raise UserError(f"{label}, line {line}: '...' is there twice")
            after = []
        else:
            (before if after is None else after).append(word)
    return PackedArgs(tuple(before), tuple(after or ()))


def quote(words: Sequence[str]) -> str:
    """Words as `.args` text; a word `...` among them stays the mark that it is."""
    return " ".join(word if word == "..." else shlex.quote(word) for word in words) + "\n"


def compose(packed: PackedArgs, typed: Sequence[str], model: str) -> list[str]:
    """The command line that a packed file stands for. The mode follows from all of it, and then:

    a packed flag that the mode does not know is left out, and a command other than the packed one takes along only what
    is true of the machine (-ngl, --gpu, --threads …).
    """
    before, after, typed = list(packed.before), list(packed.after), list(typed)
    own = before.pop(0) if before and before[0] in COMMANDS else ""
    command = own
    if typed and typed[0] in COMMANDS:
        command = typed.pop(0)
    elif own and any(flag and flag.dest == "mode" for flag, _ in _groups(typed, "")):
        command = ""
    mode = command or _mode([*before, *typed, *after])
    known = {flag.dest for flag in flags_of(mode)}
    allowed = known | {"mode"} if command == own else known & set(MACHINE)
    before, after = _kept(before, own, allowed), _kept(after, own, allowed)
    line = [command] if command else []
    if known & {"model", "models"}:
        line += ["-m", model]
    line += [*before, *typed, *after]
    if command in ON_FILES and not any(
        flag is None and words[0][:1] != "-" for flag, words in _groups(line[1:], command)
    ):
        line.insert(1, model)
    return line


def _words(text: str, label: str) -> Iterator[tuple[str, bool, int]]:
    """Words, whether any of it was quoted, and their lines."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        if text[at] == "#":
            at = (text + "\n").index("\n", at)
            continue
        word, quoted, start = "", False, at
        while at < len(text) and not text[at].isspace():
            match = _WORD.match(text, at)
            if match is None:
                what = "quote" if text[at] in "'\"" else "backslash"
                raise UserError(f"{label}, line {text.count(chr(10), 0, at) + 1}: a {what} without what must follow")
            single, double, escaped, plain = match.groups()
            if double is not None:
                word += re.sub(r'\\(["\\])', r"\1", double)
            else:
                word += single if single is not None else plain or escaped.replace("\n", "")
            quoted |= plain is None
            at = match.end()
        if word or (quoted and text[start:at].strip("\\\n")):
            yield word, quoted, text.count("\n", 0, start) + 1


def _groups(words: Sequence[str], command: str) -> Iterator[tuple[Flag | None, list[str]]]:
    """Flags with their values; (None, [word]) for anything else."""
    names = {name: flag for mode in _siblings(command) for flag in flags_of(mode) for name in flag.names}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield from ((None, [each]) for each in rest)
            return
        name, equals, _ = word.partition("=")
        flag = names.get(name.replace("_", "-") if name.startswith("--") else name) if word.startswith("-") else None
        group = [word]
        if flag and flag.kind and not equals and rest:
            group.append(rest.pop(0))
        yield flag, group


def _siblings(command: str) -> tuple[str, ...]:
    """A command alone, or all modes that a flag chooses."""
    return (command,) if command else tuple(mode for mode in MODES if mode not in COMMANDS)


def _mode(words: Sequence[str]) -> str:
    chosen = [flag.value for flag, _ in _groups(words, "") if flag and flag.dest == "mode"]
    return chosen[-1] if chosen else "chat"


def _kept(words: Sequence[str], command: str, allowed: set[str]) -> list[str]:
    return [word for flag, group in _groups(words, command) if flag is None or flag.dest in allowed for word in group]


def refuse_model(packed: PackedArgs) -> None:
    """The packed file is the model: a `-m` among its flags would name another. Raises UserError."""
    own = packed.before[0] if packed.before and packed.before[0] in COMMANDS else ""
    for flag, group in _groups([*packed.before[1 if own else 0 :], *packed.after], own):
        if flag in FLAGS and flag is not None and flag.dest in ("model", "models"):
            raise UserError(f"{group[0]} among the packed flags: the packed file is the model itself")
