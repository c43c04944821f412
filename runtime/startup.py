"""From flags to an engine that is ready: the model found and loaded, sampling settings checked, texts read."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .terminal import Terminal, share

if TYPE_CHECKING:
    from ..backends.kernel_settings import KernelSettings
    from .arguments import Options
    from .engine import Engine
    from .model import Model
    from .sampler import Sampling
    from .template import ChatTemplate
    from .tokenizer import Tokenizer

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "0": "\0"}
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|([ntr\\'\"0]))")


@contextmanager
def open_engine(
    options: Options, terminal: Terminal, *, context: int | None = None, slots: int = 1
) -> Iterator[Engine]:
    """An engine for `slots` talkers with its model loaded; both are closed at the end."""
    from .sources import resolve

    size: int = options.context if context is None else context
    kv_dtype = options.kv_dtype_k or options.kv_dtype_v or "f16"
    path = resolve(options.model, progress=(lambda done, total: None) if terminal.quiet else None)
    terminal.status("loading model...")
    from .engine import Engine
    from .model import Model

    model = Model.load(
        path,
        ngl=options.ngl,
        gpu=options.gpu,
        context=size,
        kv_dtype=kv_dtype,
        threads=options.threads,
        tensor_split=options.tensor_split,
        main_gpu=options.main_gpu,
        kernels=kernels_of(options),
        progress=lambda done, total: terminal.status(f"loading model {share(done, total)}..."),
        notify=terminal.say,
    )
    with model, Engine(model, context=size, slots=slots, batch=options.batch, kv_dtype=kv_dtype) as engine:
        terminal.clear_status()
        if "context" in options.given and engine.context < size:
            terminal.say(f"the context is {engine.context} tokens, as many as the model was trained for")
        if model.tokenizer.warning:
            terminal.say(f"warning: {model.tokenizer.warning}")
        yield engine


def kernels_of(options: Options) -> KernelSettings:
    """What the flags say of kernels. Raises UserError for a contradiction."""
    from ..backends.kernel_settings import KernelSettings

    if options.recompile and options.nocompile:
        raise UserError("--recompile builds kernels and --nocompile forbids it", hint="give one of them")
    return KernelSettings(options.recompile, options.tinyblas, options.nocompile)


def template_of(wanted: str, model: Model) -> ChatTemplate:
    """The chat template of --chat-template: a built-in's name or a file. Raises UserError."""
    from .template import BUILTIN, ChatTemplate

    tokenizer = model.tokenizer
    bos, eos = (tokenizer.piece(t).decode() if t is not None else "" for t in (tokenizer.bos, tokenizer.eos))
    if wanted in BUILTIN:
        return ChatTemplate.builtin(wanted, bos=bos, eos=eos)
    if not Path(wanted).is_file():
        hint = f"built-in ones are {', '.join(BUILTIN)}"
        raise UserError(f"--chat-template {wanted!r} is neither a built-in template nor a file", hint=hint)
    return ChatTemplate.from_source(read_text(wanted), bos=bos, eos=eos)


def sampling_of(options: Options) -> Sampling:
    """The sampling settings, with a seed chosen if none was given, and without a grammar, which needs a tokenizer."""
    from .sampler import Sampling

    names = (
        *("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "min_keep"),
        *("presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "logit_bias"),
    )
    given = {name: getattr(options, name) for name in names}
    if options.samplers is not None:
        given["samplers"] = options.samplers
    seed = options.seed if options.seed not in (None, -1) else time.time_ns() & 0x7FFFFFFF
    return Sampling(**given, seed=seed)


def settle_grammar(options: Options) -> None:
    """Reads --grammar-file and checks grammar or schema, before a model is loaded. Raises GrammarError, UserError."""
    if options.grammar_file is not None:
        options.grammar, options.grammar_file = read_text(options.grammar_file), None
    if options.grammar is options.json_schema is None:
        return
    from .grammar import check_gbnf, check_json_schema

    check_gbnf(options.grammar) if options.grammar is not None else check_json_schema(options.json_schema)


def with_grammar(sampling: Sampling, options: Options, tokenizer: Tokenizer) -> Sampling:
    """The settings with the grammar or schema of settled options. Raises GrammarError."""
    if options.grammar is options.json_schema is None:
        return sampling
    from .grammar import compile_gbnf, compile_json_schema

    if options.json_schema is not None:
        return replace(sampling, grammar=compile_json_schema(options.json_schema, tokenizer))
    return replace(sampling, grammar=compile_gbnf(options.grammar, tokenizer))


def read_text(path: str) -> str:
    """A file's text ("-" is stdin), without one newline at its end. Raises UserError."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                data = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path!r}: {reason}") from None
    return data.decode("utf-8-sig", "replace").replace("\r\n", "\n").removesuffix("\n")


def typed_text(text: str, options: Options) -> str:
    """A text from the command line, its escapes resolved unless --no-escape."""
    return unescape(text) if options.escape else text


def unescape(text: str) -> str:
    r"""Resolves \n \t \r \\ \' \" \0 and \xHH (bytes of UTF-8); other backslashes stay."""
    if "\\" not in text:
        return text

    def byte_or_char(match: re.Match[str]) -> str:
        # \xHH is a byte: a lone surrogate carries it until the whole text is decoded
        return bytes.fromhex(match[1]).decode("utf-8", "surrogateescape") if match[1] else _ESCAPES[match[2]]

    return _ESCAPE.sub(byte_or_char, text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
