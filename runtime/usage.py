"""The help text, made from the table of flags. Knows nothing of how flags are read."""

from __future__ import annotations

import textwrap

from .flags import COMMANDS, Flag, flags_of
from .weight_types import MIXES, Mix

WIDTH = 100
LEFT = 34
SHARED = ("chat", "cli", "server")  # modes whose flags share their names

EXAMPLES = {
    "chat": (
        "layerlift                                    talk with the default model, fetched once",
        "layerlift -m model.gguf -p SYSTEM -ngl 20    talk, with the first 20 layers on the GPU",
        "layerlift --cli -m model.gguf -p PROMPT      complete a prompt; the text goes to stdout",
        "layerlift --server -m model.gguf             a web page, and OpenAI's API at /v1",
    ),
    "bench": ("layerlift bench -m model.gguf -p 512 -n 16 -r 3",),
    "perplexity": ("layerlift perplexity -m model.gguf -f text.txt -c 512",),
    "tokenize": ("layerlift tokenize -m model.gguf -p 'Hello world'   (or -f FILE, or the text on stdin)",),
    "devices": ("layerlift devices --json",),
    "pull": ("layerlift pull [NAME]     the default model, or hf:org/repo:file.gguf",),
    "list": ("layerlift list",),
    "convert": (
        "layerlift convert Llama-3.2-1B-Instruct -o model.gguf",
        "layerlift convert hf:org/repo --outtype q8_0",
    ),
    "completions": ("layerlift completions bash > ~/.local/share/bash-completion/completions/layerlift",),
    "man": ("layerlift man > ~/.local/share/man/man1/layerlift.1",),
    "quantize": (
        "layerlift quantize model-f16.gguf model-q4.gguf Q4_K_M",
        "layerlift quantize --imatrix imatrix.gguf model-f16.gguf model-q2.gguf Q2_K",
    ),
    "imatrix": ("layerlift imatrix -m model-f16.gguf -f text.txt -o imatrix.gguf",),
    "pack": (
        "layerlift pack model.gguf -o model.llm && ./model.llm",
        "layerlift pack model.gguf -o model.llm --bundle-deps -- --cli --temp 0",
    ),
    "unpack": ("layerlift unpack model.llm [-o model.gguf]",),
    "verify": ("layerlift verify model.llm",),
    "repack": ("layerlift repack model.llm [-o other.llm] [-- FLAGS]",),
}


# What the short help of the modes that share their flags lists: what most first weeks need.
SHORT = {
    *("mode", "help", "model", "context", "ngl", "gpu", "threads", "prompt", "file", "max_tokens", "stop"),
    *("temperature", "top_p", "seed", "grammar", "json_schema", "prompt_cache", "log_disable", "verbose"),
    *("host", "port", "api_key", "browser"),
}


def usage(mode: str, *, whole: bool = True) -> str:
    """The help of a mode; modes that share their flags have one in common, which is short unless `whole`."""
    lines = [] if mode in SHARED else [f"layerlift {mode}: {COMMANDS[mode]}", ""]
    lines += ["usage:", *(f"  {line}" for line in EXAMPLES["chat" if mode in SHARED else mode])]
    if mode in SHARED:
        lines += ["", "commands (layerlift COMMAND --help says more):"]
        lines += [_entry(f"layerlift {name}", text) for name, text in COMMANDS.items()]
    if mode == "quantize":
        lines += ["", "TYPE, the format that most weights get, and its bits a weight", *map(_type, MIXES)]
    group = ""
    is_short = mode in SHARED and not whole
    for flag in _listed(mode):
        if is_short and (flag.dest not in SHORT or (flag.dest == "model" and "-m" not in flag.names)):
            continue
        if _group(flag, mode) != group:
            group = _group(flag, mode)
            lines += ["", f"{group}:"]
        lines.append(_entry(_signature(flag), flag.help + _default(flag, mode)))
    if is_short:
        lines += ["", "layerlift --help-all lists every flag"]
    return "\n".join(lines)


def _listed(mode: str) -> list[Flag]:
    """A mode's flags: a command's own, those it shares, then help; for modes with one help in common, by groups."""
    if mode not in SHARED:
        return sorted(flags_of(mode), key=lambda flag: (flag.group == "mode", not flag.group.startswith(mode)))
    both = {flag: None for each in SHARED for flag in flags_of(each)}
    order = list(dict.fromkeys(flag.group for flag in both))
    return sorted(both, key=lambda flag: order.index(flag.group))


def _group(flag: Flag, mode: str) -> str:
    """The heading that a flag stands under: a command has one for its own, whichever modes it shares them with."""
    if mode in SHARED:
        return flag.group
    own = [each.group for each in flags_of(mode) if each.group.startswith(mode)]
    return "help" if flag.group == "mode" else own[0] if own else "flags"


def _type(mix: Mix) -> str:
    return f"  {mix.name:<8} {mix.fmt:<8} {mix.bits:>6.4g}"


def _signature(flag: Flag) -> str:
    names = ", ".join(flag.names)
    return f"{names} {flag.kind.metavar}" if flag.kind else names


def _default(flag: Flag, mode: str) -> str:
    """The default in words, where the help has not said it already."""
    if flag.kind is None or "default" in flag.help:
        return ""
    if mode in SHARED and isinstance(flag.default, dict):
        chat, cli = flag.default_for("chat"), flag.default_for("cli")
        return f" (default: {chat}, with --cli {cli})" if chat != cli else f" (default: {chat})"
    default = flag.default_for(mode)
    if default in (None, ()):
        return ""
    return f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"


def _entry(left: str, right: str) -> str:
    """Two columns; a left side that is too long gets a line of its own."""
    body = textwrap.wrap(right, WIDTH - LEFT)
    first = f"  {left}".ljust(LEFT - 1) + " "
    if len(first) > LEFT:
        return "\n".join([first.rstrip(), *(" " * LEFT + line for line in body)])
    return "\n".join([first + body[0], *(" " * LEFT + line for line in body[1:])])
