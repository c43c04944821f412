"""The chat's slash commands: one function each, in a table. Knows the chat, nothing of models."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .startup import read_text
from .terminal import BOLD

if TYPE_CHECKING:
    from .chat import Chat

Action = Callable[["Chat", list[str]], "bool | None"]
MAX_UPLOAD = 64 << 20  # bytes; more text than any context holds
GLYPHS = {"bos": "§", "eos": "∎", "eog": "⌟", "control": "∷", "newline": "↵", "nothing": "↯"}


@dataclass(frozen=True)
class Command:
    """`run` gets the chat and the words behind the name; True ends the chat."""

    name: str
    arguments: str
    summary: str
    details: str
    run: Action


COMMANDS: dict[str, Command] = {}


def command(name: str, arguments: str, summary: str) -> Callable[[Action], Action]:
    def register(run: Action) -> Action:
        COMMANDS[name] = Command(name, arguments, summary, (run.__doc__ or summary).strip(), run)
        return run

    return register


def is_command(line: str) -> bool:
    """A slash and a letter, or /?; a path such as /etc/hosts counts too, and is then an unknown command."""
    return re.match(r"/([A-Za-z]|\?\s*$)", line) is not None


def run(chat: Chat, line: str) -> bool:
    """Runs a command line; True if the chat is to end. Raises UserError."""
    name, *words = line.split()
    found = COMMANDS.get(name)
    if found is None:
        raise UserError(f"{name}: unrecognized command", hint="/help lists the commands")
    most = 0 if not found.arguments else None if found.name == "/upload" else 1
    if most is not None and len(words) > most:
        raise UserError(f"{name}: too many arguments", hint=f"{name} {found.arguments}".strip())
    return bool(found.run(chat, words))


# ------------------------------------------------------------------------------------------------------------
# The commands


@command("/help", "[COMMAND]", "show the commands, or more on one")
def _help(chat: Chat, words: list[str]) -> None:
    """Lists the commands; with the name of one, says more on it."""
    if not words:
        lines = [f"  {f'{c.name} {c.arguments}':<18}{c.summary}" for c in dict.fromkeys(COMMANDS.values())]
        chat.terminal.say("\n".join(["commands:", *lines, '\n""" opens and ends a message of several lines']))
        return
    found = COMMANDS.get("/" + words[0].removeprefix("/"))
    if found is None:
        raise UserError(f"{words[0]}: unknown command", hint="/help lists the commands")
    chat.terminal.say(f"usage: {found.name} {found.arguments}".rstrip() + f"\n{_unindent(found.details)}")


COMMANDS["/?"] = COMMANDS["/help"]


@command("/stats", "", "show timings and the seed")
def _stats(chat: Chat, words: list[str]) -> None:
    """Shows the times of this session, summed over all answers, and the seed of the random choice."""
    from .timings import describe

    chat.terminal.say(describe(chat.timings, load_seconds=chat.load_seconds) + f"\nseed = {chat.sampling.seed}")


@command("/context", "", "show how much of the context is in use")
def _context(chat: Chat, words: list[str]) -> None:
    """Shows how many tokens the conversation takes of the context, and how many are left."""
    used, size = chat.conversation.n_tokens, chat.engine.context
    chat.terminal.say(f"{used} out of {size} context tokens used ({max(size - used, 0)} tokens remaining)")
    if size < chat.engine.model.config.context:
        chat.terminal.say("use the `-c MAX` flag at startup for maximum context")


@command("/clear", "", "start over behind the system prompt")
def _clear(chat: Chat, words: list[str]) -> None:
    """Forgets the conversation but for the system prompt, and empties the stack."""
    chat.rewind(chat.conversation.n_opening)
    chat.stack.clear()
    chat.undo_marks.clear()


@command("/undo", "", "take back the last question and its answer")
def _undo(chat: Chat, words: list[str]) -> None:
    """Takes back the last question with its answer; in manual mode, the last message."""
    if not chat.undo_marks:
        raise UserError("no further undo actions possible")
    chat.rewind(chat.undo_marks[-1])
    chat.notice(f"restoring conversation to: {describe(chat, len(chat.conversation.messages))}")


@command("/forget", "", "drop the oldest message, to free some context")
def _forget(chat: Chat, words: list[str]) -> None:
    """Drops the oldest message that is not the system prompt; what follows stays as it is."""
    conversation, session = chat.conversation, chat.session
    before = conversation.tokens
    gone, span = conversation.forget()
    if not gone:
        raise UserError("nothing left to forget")
    if span and session.tokens[: span[1]] == before[: span[1]]:
        session.forget(*span)  # what is cached behind the message moves up and is not evaluated again
    first, count = conversation.n_opening, len(gone)
    chat.undo_marks = [mark - count for mark in chat.undo_marks if mark - count >= first]
    chat.stack = [max(mark - count, first) for mark in chat.stack]
    chat.notice("forgetting: " + " ".join(_glyphs(message.content) or GLYPHS["nothing"] for message in gone)[:63])


@command("/push", "", "note this point of the conversation")
def _push(chat: Chat, words: list[str]) -> None:
    """Notes this point of the conversation on a stack; /pop comes back to it."""
    chat.stack.append(len(chat.conversation.messages))
    _stack(chat, [])


@command("/pop", "", "come back to the point noted last")
def _pop(chat: Chat, words: list[str]) -> None:
    """Comes back to the point that /push noted last; what was said since is forgotten."""
    if not chat.stack:
        raise UserError("context length stack is empty", hint="/push notes a point to come back to")
    mark = chat.stack.pop()
    chat.rewind(min(mark, len(chat.conversation.messages)))
    tokens = chat.conversation.n_tokens
    chat.terminal.say(f"{tokens:12d} restored ({describe(chat, len(chat.conversation.messages))})", BOLD)


@command("/stack", "", "show the points noted")
def _stack(chat: Chat, words: list[str]) -> None:
    """Shows the points that /push noted, the newest first: tokens, and the last words."""
    if not chat.stack:
        chat.terminal.say("stack is currently empty (try using /push)")
    for mark in reversed(chat.stack):
        tokens = sum(len(message.tokens) for message in chat.conversation.messages[:mark])
        chat.terminal.say(f"{tokens:12d} ({describe(chat, mark)})")


@command("/manual", "[on|off]", "write messages of any role yourself")
def _manual(chat: Chat, words: list[str]) -> None:
    """In manual mode a message is added with the role shown and is not answered.

    Enter on an empty line changes the role.
    """
    if chat.conversation.is_base:
        raise UserError("a base model has no roles")
    if words and words[0] not in ("on", "off"):
        raise UserError(f"/manual takes on or off, not {words[0]!r}")
    chat.manual = words[0] == "on" if words else not chat.manual
    if not chat.manual:
        chat.role = "user"
    chat.notice(f"manual mode {'enabled' if chat.manual else 'disabled'}")


@command("/dump", "[FILE]", "write the conversation as the model sees it")
def _dump(chat: Chat, words: list[str]) -> None:
    """Writes the whole conversation with its special tokens to a file or to stdout."""
    text = chat.conversation.tokenizer.decode(chat.conversation.tokens, special=True) + "\n"
    if not words:
        chat.terminal.write(chat.terminal.shown(text))
        return
    try:
        Path(words[0]).expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {words[0]!r}: {error.strerror}") from None


@command("/upload", "FILE", "add a text file to the conversation")
def _upload(chat: Chat, words: list[str]) -> None:
    """Adds a text file to the conversation as a system message, for the next question to refer to."""
    if not words:
        raise UserError("/upload needs a file", hint="/upload FILE")
    path = Path(" ".join(words)).expanduser()  # a path with spaces needs no quotes
    text = _read_upload(path)
    mark = len(chat.conversation.messages)
    chat.conversation.add("system", document(path, text))
    if chat.take_in("loading file", rewind_to=mark):
        chat.undo_marks.append(mark)
        tokens = len(chat.conversation.messages[-1].tokens)
        chat.notice(f"{path.name}: {tokens} tokens")


@command("/exit", "", "leave")
def _exit(chat: Chat, words: list[str]) -> bool:
    """Leaves the chat, as Ctrl-D and Ctrl-C at the prompt do."""
    return True


@command("/bye", "", "leave")
def _bye(chat: Chat, words: list[str]) -> bool:
    """Leaves the chat."""
    return True


NAMES = tuple(COMMANDS)


# ------------------------------------------------------------------------------------------------------------
# Words for conversations and files


def document(path: Path, text: str) -> str:
    """A file as a message: its name, its date, and its text in a fence longer than any inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = [f"- **Filename**: `{path.name}`"]
    if path.is_file():
        modified = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc)
        lines.append(f"- **Last modified**: {modified:%Y-%m-%dT%H:%M:%SZ}")
    return "\n".join([*lines, "", f"{fence}{path.suffix.removeprefix('.')}", text.removesuffix("\n"), fence])


def _read_upload(path: Path) -> str:
    """A text file's text. Raises UserError for what is no text file."""
    try:
        if not path.is_file():
            raise UserError(f"{str(path)!r} is not a file" if path.exists() else f"no file {str(path)!r}")
        if path.stat().st_size > MAX_UPLOAD:
            raise UserError(f"{str(path)!r} is larger than {MAX_UPLOAD >> 20} MiB")
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return plain_text(path, read_text(str(path)))


def plain_text(path: Path, text: str) -> str:
    """The text of a file, if it is one. Raises UserError."""
    if "\0" in text:
        raise UserError(f"{path.name} is not a text file", hint="images and other binary files cannot be read")
    return text


def describe(chat: Chat, n_messages: int, *, width: int = 63) -> str:
    """The last words of the first `n_messages`, on one line, special tokens as glyphs."""
    tokenizer = chat.conversation.tokenizer
    tokens = [t for message in chat.conversation.messages[:n_messages] for t in message.tokens][-4 * width :]
    data = b""
    for token in tokens:
        if token == tokenizer.bos:
            data += GLYPHS["bos"].encode()
        elif token == tokenizer.eos:
            data += GLYPHS["eos"].encode()
        elif token in tokenizer.eog:
            data += GLYPHS["eog"].encode()
        elif tokenizer.is_control(token):
            data += GLYPHS["control"].encode()
        else:
            data += tokenizer.piece(token)
    text = _glyphs(data.decode("utf-8", "replace"))
    return ("… " if len(text) > width else "") + text[-width:] if text else GLYPHS["nothing"]


def _glyphs(text: str) -> str:
    return text.replace("\n", GLYPHS["newline"])


def _unindent(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())
