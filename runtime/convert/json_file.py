"""Reads the JSON files of a checkpoint. A key given twice is a fault, and so is what is no object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConvertError

MAX_NBYTES = 256 << 20  # the largest tokenizer.json have some 40 MB


def load(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ConvertError."""
    try:
        if path.stat().st_size > MAX_NBYTES:
            raise ConvertError(f"{path} has {path.stat().st_size} bytes; the limit is {MAX_NBYTES}")
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ConvertError(f"{path}: {error.strerror or error}") from None


def load_if_there(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is no such file."""
    return load(path) if path.is_file() else {}


def parse(data: bytes, label: str) -> dict[str, Any]:
    """The object in `data`. Raises ConvertError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ConvertError(f"{label}: {twice[:80]!r} is given twice")
        return entries

    try:
        found = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{label}: no sound JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ConvertError(f"{label}: a JSON object expected, found {type(found).__name__}")
    return found
