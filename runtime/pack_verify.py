"""Reads a model file to the last bit and says what it is and whether it is sound: a GGUF, an archive, a packed file.

Nothing in the file is executed; the `.args` of a file are shown as they are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import archive
from .errors import GGUFError
from .gguf import GGUF, open_gguf
from .pack import HEAD, compare
from .pack_manifest import ALIGNMENT, ARGS, WHEELS, Manifest
from .pack_reader import opened, read_args
from .pack_writer import copy_checked

PAGE = 16384  # the coarsest page in common use; a GGUF at a multiple of it can be mapped by itself


@dataclass(frozen=True)
class Part:
    """One GGUF of the file."""

    name: str
    offset: int
    nbytes: int
    tensors: int
    sha256: str


@dataclass(frozen=True)
class Report:
    path: str
    kind: str
    architecture: str
    parts: tuple[Part, ...]
    members: int  # of the zip
    args: str
    platform: str = ""
    wheels: int = 0
    pythons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """The report in lines."""
        lines = [f"{self.path}: {self.kind}, sound"]
        for part in self.parts:
            lines.append(
                f"  {part.name}: {self.architecture}, {part.tensors} tensors, {part.nbytes} bytes at {part.offset}"
            )
            lines.append(f"    sha256 {part.sha256}")
        if self.members:
            lines.append(f"  zip: {self.members} members, checksums right")
        if self.wheels:
            lines.append(f"  carries {self.wheels} wheels for {self.platform}, Python {', '.join(self.pythons)}")
        if self.args.strip():
            used = "" if self.kind.startswith("packed") else ", which -m does not use"
            lines.append(f"  {ARGS}{used}:")
            lines += [f"    {_visible(line)}" for line in self.args.strip().splitlines()]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines) + "\n"


def verify(path: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None) -> Report:
    """Checks a file. Raises GGUFError with the fact and the place for damage, UserError for what is no model file."""
    name = os.fspath(path)
    container = Path(archive.split_name(name)[0])
    with opened(container) as view:
        manifest = archive.packed(view, str(container))
        if manifest is None and view[: len(HEAD)] == HEAD:
            raise GGUFError(
                f"pack: the zip at the end of {container} is missing or damaged; the file ends at byte {len(view)}",
                hint="the file is incomplete: fetch or pack it again",
            )
        members = archive.check(view, str(container))
        args = read_args(view, container) if members else ""
        if manifest is not None:
            _check_launcher(view, str(container), manifest)
    with open_gguf(name) as g:
        parts = _check_weights(g, manifest, name, progress)
        architecture = g.metadata.text("general.architecture", "")
        kind = f"packed by layerlift {manifest.layerlift}" if manifest else "archive" if members else "GGUF"
        report = Report(name, kind, architecture, parts, members, args, warnings=_warnings(parts, g))
    if manifest is None or manifest.bundle is None:
        return report
    b = manifest.bundle
    return Report(**{**vars(report), "platform": b.platform, "wheels": len(b.wheels), "pythons": tuple(b.pythons)})


def _check_weights(
    g: GGUF, manifest: Manifest | None, label: str, progress: Callable[[int, int], None] | None
) -> tuple[Part, ...]:
    """Every byte of every part read, and compared with what was packed."""
    known = {w.offset: w for w in manifest.weights} if manifest else {}
    total, done, parts = sum(nbytes for *_, nbytes in g.extents), 0, []

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    for index, (file, name, start, nbytes) in enumerate(g.extents):
        fd = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            digest, crcs = copy_checked(fd, start, nbytes, None, advance)
        finally:
            os.close(fd)
        if start in known:
            compare(known[start], digest, crcs, label)
        parts.append(Part(name, start, nbytes, sum(t.part == index for t in g.tensors.values()), digest))
    return tuple(parts)


def _check_launcher(view: memoryview, label: str, manifest: Manifest) -> None:
    """What the zip's checksums leave open: the first lines, the gaps, and that the wheels are those once packed."""
    head = bytes(view[:ALIGNMENT]).partition(b"\0")[0]
    if head[:2] != b"#!" or b"python" not in head[:80].partition(b"\n")[0]:
        raise GGUFError(f"pack: {label} has no #! line with python at byte 0, so it does not start")
    if not re.fullmatch(rb"(#[^\n]*\n)+", head):
        raise GGUFError(f"pack: the first {len(head)} bytes of {label} are not the lines that start it")
    end = len(head)
    for weights in manifest.weights:
        rest = bytes(view[end : weights.offset]).lstrip(b"\0")
        if rest:
            at = weights.offset - len(rest)
            raise GGUFError(f"pack: {label} is damaged at byte {at}, where nothing but zeros was packed")
        end = weights.offset + weights.nbytes
    if archive.read(view, label, "__main__.py") is None:
        raise GGUFError(f"pack: {label} has no __main__.py in the zip at its end, so it does not start")
    for name, digest in (manifest.bundle.wheels if manifest.bundle else {}).items():
        data = archive.read(view, label, WHEELS + name, limit=1 << 30)
        if data is None:
            raise GGUFError(f"pack: the wheel {name} is missing in {label}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise GGUFError(f"pack: the wheel {name} in {label} is not the one that was packed")


def _warnings(parts: Sequence[Part], g: GGUF) -> tuple[str, ...]:
    found = []
    for part in parts:
        if part.offset % PAGE:
            found.append(
                f"{part.name} starts at byte {part.offset}, not at a multiple of {PAGE}; it is used all the same"
            )
        elif part.offset % ALIGNMENT:
            found.append(f"{part.name} starts at byte {part.offset}, not at a multiple of {ALIGNMENT}")
    if not g.tensors:
        found.append("there are no tensors in it")
    return tuple(found)


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
