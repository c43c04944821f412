"""The command `layerlift`: reads the flags, starts the mode, turns failures into one line and an exit code.

Imports nothing heavy, so that --version and --help answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from .arguments import Options, parse
from .errors import LayerliftError
from .interrupt import INTERRUPTED
from .terminal import OutputError, Terminal, abandon

DONE, FAILED = 0, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    _prepare_streams()
    terminal = Terminal()
    try:
        code = _run(parse(sys.argv[1:] if argv is None else argv), terminal)
        sys.stdout.flush()
        return code
    except LayerliftError as error:
        terminal.failure(error)
        return error.exit_code
    except KeyboardInterrupt:
        terminal.clear_status()
        return INTERRUPTED
    except BrokenPipeError:
        abandon(sys.stdout)  # the reader has enough
        return DONE
    except OutputError as error:
        terminal.error(str(error))
        return FAILED
    except MemoryError:
        terminal.error("out of memory", hint="a smaller model, or a smaller context with -c")
        return FAILED


def _prepare_streams() -> None:
    """No character fails to be read or written; a stream that was closed by who started us is an empty one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _run(options: Options, terminal: Terminal) -> int:
    if options.help:
        from .usage import usage

        terminal.write(usage(options.mode, whole=options.help == "all") + "\n")
        return DONE
    if options.version:
        from . import __version__

        terminal.write(f"layerlift {__version__}\n")
        return DONE
    if options.mode == "cli":
        from .complete import complete

        return complete(options, _terminal(options))
    if options.mode == "chat":
        from .chat import chat

        return chat(options, _terminal(options))
    if options.mode == "server":
        from .server.serve import serve

        return serve(options, _terminal(options))
    from .commands import run

    return run(options, _terminal(options))


def _terminal(options: Options) -> Terminal:
    """The terminal as the flags want it, after a line on each flag that changes nothing."""
    terminal = Terminal(
        color=getattr(options, "color", False),
        quiet=getattr(options, "log_disable", False),
        verbose=getattr(options, "verbose", False),
    )
    for note in options.notes:
        terminal.say(f"note: {note}")
    return terminal


if __name__ == "__main__":
    sys.exit(main())
