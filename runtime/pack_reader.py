"""Opens a packed file and reads what it says of itself. Knows nothing of models; imports nothing heavy."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import archive
from .errors import GGUFError, UserError
from .pack_manifest import ARGS, Manifest


@contextmanager
def opened(path: Path) -> Iterator[memoryview]:
    """A view of a whole file. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise GGUFError(f"pack: {path} is empty")
            map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    with map, memoryview(map) as view:
        yield view


def manifest_of(view: memoryview, path: Path) -> Manifest:
    """The manifest of a packed file. Raises UserError for any other file."""
    manifest = archive.packed(view, str(path))
    if manifest is None:
        raise UserError(
            f"{str(path)!r} was not packed by layerlift, or its end is missing",
            hint=f"layerlift pack {path} -o FILE packs the model in it",
        )
    return manifest


def read_args(view: memoryview, path: Path) -> str:
    """The text of `.args`, "" without one."""
    data = archive.read(view, str(path), ARGS, limit=1 << 20)
    return (data or b"").decode("utf-8", "replace")
