"""Where a packed file's launcher hands over: from the packed flags and the typed ones to a command line.

`start(path, argv)` is called by files packed long ago: it keeps its name and its meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import LayerliftError
from .pack_args import compose, parse_args


def start(path: str, argv: Sequence[str]) -> int:
    """Runs the packed file `path` with the user's words; the exit code."""
    from .cli import main
    from .terminal import Terminal

    try:
        line = command_line(path, argv)
    except LayerliftError as error:
        Terminal().failure(error)
        return error.exit_code
    return main(line)


def command_line(path: str, argv: Sequence[str]) -> list[str]:
    """What a packed file with these words means. Raises LayerliftError."""
    from .pack_reader import opened, read_args

    with opened(Path(path)) as view:
        text = read_args(view, Path(path))
    return compose(parse_args(text, f".args of {path}"), argv, path)
