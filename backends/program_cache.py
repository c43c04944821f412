"""Compiled GPU programs on disk, so that the second start compiles nothing. Knows no driver.

An entry's name is a hash of everything its content depends on; the content begins with a hash of itself, so that a
damaged entry is found out and made again. Writes are atomic: any number of processes may fill one folder.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .cache_folder import cache_dir

MAGIC = b"layerlift program 1\n"


def default_folder() -> Path:
    """`programs` in layerlift's cache. May not exist yet."""
    return cache_dir() / "programs"


class ProgramCache:
    """Entries in one folder. Nothing here raises for a folder that cannot be read or written: programs get compiled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def key(self, parts: Iterable[str]) -> str:
        """A name from everything the program depends on: source, options, device, driver."""
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode()
            digest.update(f"{len(data)}:".encode() + data)
        return digest.hexdigest()

    def read(self, key: str) -> bytes | None:
        """The program, or None where there is none or a damaged one."""
        try:
            data = (self.folder / key).read_bytes()
        except OSError:
            return None
        head = len(MAGIC) + 32
        if data[: len(MAGIC)] != MAGIC or hashlib.sha256(data[head:]).digest() != data[len(MAGIC) : head]:
            return None
        return data[head:]

    def write(self, key: str, program: bytes) -> None:
        """Keeps a program under its key."""
        name = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".new-")
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + hashlib.sha256(program).digest() + program)
            os.replace(name, self.folder / key)
        except OSError:
            if name:
                Path(name).unlink(missing_ok=True)
