"""Reads a command line by the table of flags. Knows nothing of models; touches no file.

Not argparse: a value may begin with a dash (`-p '-hello'`), which argparse takes for a missing value, and one
dash may carry a long name (`-ngl 8`), which it takes for `-n gl`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from . import foreign_flags
from .errors import UserError
from .flags import COMMANDS, MODES, Flag, flags_of

if TYPE_CHECKING:
    from collections.abc import Mapping

# Commands with words of their own, and those for which what follows `--` is somebody else's command line.
TAKE_WORDS = ("completions", "pull", "convert", "quantize", "pack", "unpack", "verify", "repack")
PASS_ON = ("pack", "repack")
# Modes in which flags of other programs that change nothing are taken: those that load a model.
LOADING = tuple(mode for mode in MODES if mode not in COMMANDS or mode in ("bench", "perplexity"))


class Options(SimpleNamespace):
    """The parsed command line: an attribute for each dest, `mode`, `words`, and `given` (dests as typed).

    `notes` are lines for the user on flags that change nothing; `rest` is what followed `--`.
    """


def parse(argv: Sequence[str]) -> Options:
    """Options of a command line without the program's name. Raises UserError."""
    if argv and argv[0] in COMMANDS:
        return _read(argv[0], argv[1:])
    options = _read("chat", argv)  # the three modes share their names, so each reads the line
    if options.mode != "chat":
        options = _read(options.mode, argv)
    return _refuse_other_mode(options)


def _read(mode: str, argv: Sequence[str]) -> Options:
    known = _names(mode)
    options = Options(mode=mode, words=[], rest=[], given=[], notes=[])
    for flag in flags_of(mode):
        if flag.dest != "mode" and not (flag.kind is None and flag.default is None):
            setattr(options, flag.dest, flag.default_for(mode))
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            options.rest = rest
            options.words += rest if mode not in PASS_ON else []
            break
        if not word.startswith("-") or word == "-":
            options.words.append(word)
            continue
        name, equals, attached = _split(word)
        flag = known.get(name)
        if flag is None:
            note = foreign_flags.take(name, attached if equals else None, rest) if mode in LOADING else None
            if note is None:
                raise _unknown(name, mode, known)
            options.notes.append(note)
            continue
        _store(options, flag, name, attached if equals else None, rest)
    return _check(options)


def _names(mode: str) -> Mapping[str, Flag]:
    modes = ("server", "cli", "chat") if mode in ("chat", "cli", "server") else (mode,)
    return {name: flag for each in modes for flag in flags_of(each) for name in flag.names}


def _split(word: str) -> tuple[str, str, str]:
    name, equals, attached = word.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name), equals, attached


def _store(options: Options, flag: Flag, name: str, attached: str | None, rest: list[str]) -> None:
    options.given.append(flag.dest)
    if flag.kind is None:
        if attached is not None:
            raise UserError(f"{name} takes no value, got {attached!r}")
        setattr(options, flag.dest, flag.value)
        return
    if attached is None:
        if not rest:
            hint = _help_hint(options.mode)
            raise UserError(f"{name} needs a value: {name} {flag.kind.metavar}", hint=hint)
        attached = rest.pop(0)
    try:
        value = flag.kind.convert(attached)
    except ValueError as reason:
        raise UserError(f"{name} takes {reason}, not {attached!r}") from None
    setattr(options, flag.dest, (*getattr(options, flag.dest), value) if flag.repeat else value)


def _unknown(name: str, mode: str, known: Mapping[str, Flag]) -> UserError:
    message = f"unknown flag {name}" + (f" for '{mode}'" if mode in COMMANDS else "")
    if hint := foreign_flags.INSTEAD.get(name):
        return UserError(message, hint=hint)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    return UserError(message, hint=f"did you mean {' or '.join(close)}?" if close else _help_hint(mode))


def _help_hint(mode: str) -> str:
    return f"layerlift {mode + ' ' if mode in COMMANDS else ''}--help lists the flags"


def _check(options: Options) -> Options:
    """What one flag alone cannot say: stray words, and flags that contradict each other."""
    if options.words and options.mode not in TAKE_WORDS and not getattr(options, "help", False):
        word = options.words[0]
        close = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
        hint = f"did you mean 'layerlift {close[0]}'?" if close else _help_hint(options.mode)
        hint = foreign_flags.COMMANDS.get(word, hint)
        if word.endswith((".gguf", ".llamafile", ".llm", ".zip")):
            hint = f"layerlift -m {word}"
        raise UserError(f"unexpected argument {word!r}", hint=hint)
    if file := getattr(options, "hf_file", None):
        if not (options.model or "").startswith("hf:"):
            raise UserError("-hff names a file in the repository of -hf, which is not given")
        options.model = ":".join([*options.model.split(":")[:2], file])
    key, value = getattr(options, "kv_dtype_k", None), getattr(options, "kv_dtype_v", None)
    if key and value and key != value:
        raise UserError(f"-ctk {key} and -ctv {value} differ; cached keys and values have one type")
    forms = [name for name in ("grammar", "grammar_file", "json_schema") if getattr(options, name, None) is not None]
    if len(forms) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in forms)
        raise UserError(f"{names} cannot both decide what the answer looks like")
    return options


def _refuse_other_mode(options: Options) -> Options:
    """A flag that this mode does not know and another does is refused, rather than ignored."""
    here = {flag.dest for flag in flags_of(options.mode)}
    for flag in (*flags_of("chat"), *flags_of("cli"), *flags_of("server")):
        if flag.dest in options.given and flag.dest not in here:
            if "chat" in flag.modes:
                raise UserError(f"{flag.names[-1]} works without --{options.mode} only")
            raise UserError(f"{flag.names[-1]} works with --{flag.modes[-1]} only")
    return options
