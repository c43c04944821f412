"""`layerlift --cli`: one prompt in, its completion on stdout. Knows nothing of chats or templates."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from .errors import ContextFull, UserError
from .interrupt import INTERRUPTED, interruptible
from .startup import open_engine, read_text, sampling_of, settle_grammar, typed_text, with_grammar
from .terminal import Terminal, share

if TYPE_CHECKING:
    from .arguments import Options
    from .engine import Engine
    from .request import Request
    from .session import Session


def complete(options: Options, terminal: Terminal) -> int:
    """Runs the mode; the exit code."""
    prompt = prompt_of(options)
    sampling = sampling_of(options)
    settle_grammar(options)
    check_cache(options)
    with open_engine(options, terminal) as engine:
        from .request import Request

        session = open_cache(engine, options, terminal)
        tokens = _prompt_tokens(engine, prompt, session)
        # The start token stays too, or what is left behind a shift would not begin like a text.
        keep = len(tokens) if options.keep < 0 else options.keep + engine.model.tokenizer.add_bos
        request = Request(
            tokens,
            with_grammar(sampling, options, engine.model.tokenizer),
            max_tokens=options.max_tokens,
            stop=tuple(typed_text(text, options) for text in options.stop if text),
            ignore_eos=options.ignore_eos,
            context_shift=options.context_shift and options.max_tokens != -2,
            keep=min(keep, len(tokens)),
            session=session,
            special=options.special,
        )
        return _run(engine, request, prompt if options.display_prompt else "", options, terminal)


def prompt_of(options: Options) -> str:
    """The prompt: -p or -f, whichever came last, or what is piped in. Raises UserError."""
    given = [dest for dest in options.given if dest in ("prompt", "file")]
    if given:
        return typed_text(options.prompt, options) if given[-1] == "prompt" else read_text(options.file)
    if not sys.stdin.isatty():
        return read_text("-")
    if options.prompt_cache:
        return ""
    raise UserError("no prompt", hint="layerlift --cli -p PROMPT, or -f FILE, or pipe one in")


def check_cache(options: Options) -> None:
    """Refuses what --prompt-cache could not do when the answer is there. Raises UserError."""
    if not options.prompt_cache:
        if options.prompt_cache_all or options.prompt_cache_ro:
            raise UserError("--prompt-cache-all and --prompt-cache-ro need --prompt-cache FILE")
        return
    file = os.path.abspath(options.prompt_cache)
    folder = os.path.dirname(file)
    if os.path.isdir(file):
        raise UserError(f"--prompt-cache {options.prompt_cache!r} is a folder", hint="name a file")
    if not options.prompt_cache_ro and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        what = "cannot be written to" if os.path.isdir(folder) else "does not exist"
        raise UserError(f"--prompt-cache {options.prompt_cache!r}: the folder {folder!r} {what}")


def open_cache(engine: Engine, options: Options, terminal: Terminal) -> Session | None:
    """The session of --prompt-cache, with what its file holds."""
    if not options.prompt_cache:
        return None
    session = engine.session()
    if os.path.exists(options.prompt_cache):
        session.load(options.prompt_cache)
        if terminal.verbose:
            terminal.say(f"prompt cache: {len(session.tokens)} tokens")
    return session


def _prompt_tokens(engine: Engine, prompt: str, session: Session | None) -> list[int]:
    """The prompt's tokens; with none, the start token, or the cached text to go on from."""
    tokenizer = engine.model.tokenizer
    if not prompt and session is not None and session.tokens:
        return session.tokens
    tokens = tokenizer.encode(prompt)
    if tokens:
        return tokens
    start = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
    if start is None:
        raise UserError("the prompt is empty, and this model has no start token")
    return [start]


def _run(engine: Engine, request: Request, prompt: str, options: Options, terminal: Terminal) -> int:
    """Streams prompt and answer; the prompt cache is written between them, or at the end with --prompt-cache-all."""
    if len(request.tokens) >= engine.context:
        raise ContextFull(len(request.tokens), 1, engine.context)
    writes = options.prompt_cache and not options.prompt_cache_ro
    if writes and not options.prompt_cache_all and request.session is not None:
        if _stream(engine, replace(request, max_tokens=0), prompt, options, terminal):
            return INTERRUPTED
        request.session.save(options.prompt_cache)
        prompt = ""
        if options.max_tokens == 0:
            return 0
    interrupted = _stream(engine, request, prompt, options, terminal)
    if writes and options.prompt_cache_all and request.session is not None:
        request.session.save(options.prompt_cache)
    return INTERRUPTED if interrupted else 0


def _stream(engine: Engine, request: Request, prompt: str, options: Options, terminal: Terminal) -> bool:
    """Writes the prompt, if the request is taken, and the text as it comes; whether Ctrl-C ended it."""
    from .request import Done, Prefill, Token

    wrote = False
    with interruptible() as interrupt:
        stream = engine.submit(request)
        interrupt.watch(stream)
        try:
            terminal.write(terminal.shown(prompt))
            for event in stream:
                if isinstance(event, Prefill):
                    terminal.status(f"loading prompt {share(event.done, event.total)}...")
                elif isinstance(event, Token):
                    terminal.write(terminal.shown(event.text))
                elif isinstance(event, Done):
                    terminal.write(terminal.shown(event.text))
                    _report(event, options, terminal)
                wrote = wrote or (isinstance(event, Token) and bool(event.text))
        finally:
            stream.cancel()
            terminal.clear_status()
    if terminal.stdout.isatty() and (wrote or interrupt.seen):
        terminal.write("\n")  # for the shell's prompt; a pipe gets the completion and nothing else
    return interrupt.seen


def _report(done, options: Options, terminal: Terminal) -> None:
    if done.reason == "context":
        terminal.say("the context is full; raise -c for more")
    if options.verbose:
        from .timings import describe

        terminal.say("\n" + describe(done.timings))
