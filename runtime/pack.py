"""Makes one file of a model and what runs it, takes it apart again, and gives it a newer engine.

Knows the order of things in the file (pack_manifest.py says what it is); how wheels are found is pack_bundle.py's.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from . import __version__, archive
from .errors import GGUFError, UserError
from .gguf import open_gguf
from .pack_args import parse_args, refuse_model
from .pack_bundle import Wheels
from .pack_manifest import ALIGNMENT, ARGS, NAME, WHEELS, Manifest, PackError, Weights
from .pack_reader import manifest_of, opened, read_args
from .pack_writer import copy_checked, copy_range, replacing

Progress = Callable[[int, int], None]  # bytes done, bytes in all

HEAD = b"#!/usr/bin/env python3\n# A language model and what runs it: start it, or open it with layerlift -m FILE.\n"
LAUNCHER = Path(__file__).with_name("packed")
FILES = {"__main__.py": "main.py", "layerlift_unbundle.py": "unbundle.py"}  # name in the zip, name here


@dataclass(frozen=True)
class Source:
    """Where the bytes of a GGUF are now, and where they go."""

    file: str
    name: str
    start: int
    nbytes: int
    offset: int


def pack(
    model: str | os.PathLike[str],
    target: Path,
    *,
    args: str = "",
    wheels: Wheels | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Writes `model` (a GGUF, a split set, or the one in an archive) as an executable file to `target`.

    `args` is the text of `.args`. Raises GGUFError for an unsound model, UserError for flags that are no flags,
    PackError for what the disk refuses.
    """
    check_args(args)
    with open_gguf(model) as g:
        sources, offset = [], ALIGNMENT
        for file, name, start, nbytes in g.extents:
            sources.append(Source(file, name, start, nbytes, offset))
            offset = -(-(offset + nbytes) // ALIGNMENT) * ALIGNMENT
    _refuse_source(target, sources)
    total = sum(s.nbytes for s in sources)
    step = _counter(progress, total)
    weights: list[Weights] = []
    with replacing(target, ALIGNMENT + _space(sources) + _nbytes(wheels), executable=True) as file:
        file.write(HEAD)
        for s in sources:
            file.seek(s.offset)
            with _descriptor(s.file) as fd:
                digest, crcs = copy_checked(fd, s.start, s.nbytes, file, step)
            weights.append(Weights(s.name, s.offset, s.nbytes, digest, tuple(crcs)))
        manifest = Manifest(__version__, tuple(weights), wheels.bundle if wheels else None)
        file.write(_tail(manifest, args, _wheel_bytes(wheels)))
    return manifest


def repack(
    packed: str | os.PathLike[str],
    target: Path | None = None,
    *,
    args: str | None = None,
    wheels: Wheels | bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Writes a packed file anew, to `target` or in its own place: same weights, this layerlift's launcher.

    `args` None keeps the flags; `wheels` True keeps the wheels, False drops them. The weights are not read: their
    checksums go along as they are, so that damage stays visible to `verify`.
    """
    path = Path(packed)
    with opened(path) as view:
        old = manifest_of(view, path)
        text = args if args is not None else read_args(view, path)
        carried = _carried(view, path, old) if wheels is True else {}
    check_args(text)
    bundle = old.bundle if wheels is True else wheels.bundle if wheels else None
    carried = carried if isinstance(wheels, bool) else _wheel_bytes(wheels)
    new = replace(old, layerlift=__version__, bundle=bundle)
    sources = [Source(str(path), w.name, w.offset, w.nbytes, w.offset) for w in old.weights]
    step = _counter(progress, sum(s.nbytes for s in sources))
    space = ALIGNMENT + _space(sources) + sum(map(len, carried.values()))
    with replacing(target or path, space, executable=True) as file, _descriptor(str(path)) as fd:
        file.write(HEAD)
        for s in sources:
            file.seek(s.offset)
            copy_range(fd, s.start, s.nbytes, file, step)
        file.write(_tail(new, text, carried))
    return new


def unpack(
    packed: str | os.PathLike[str], target: Path | None = None, *, progress: Progress | None = None
) -> list[Path]:
    """Writes the model in a packed file or an archive as GGUF, to `target` (file or folder) or to its own name here.

    What layerlift packed is compared with its checksum first of all, and a damaged model leaves no file.
    """
    path = Path(packed)
    with open_gguf(path) as g:
        extents = g.extents
    if len(extents) == 1 and extents[0][2] == 0:
        raise UserError(f"{str(path)!r} is a plain GGUF; there is nothing to unpack")
    with opened(Path(extents[0][0])) as view:
        manifest = archive.packed(view, str(path))
    known = {w.offset: w for w in manifest.weights} if manifest else {}
    folder = target if target is not None and (target.is_dir() or len(extents) > 1) else None
    if target is None or folder is not None:
        names = [(folder or Path()) / _plain(name) for _, name, _, _ in extents]
        for name in names:
            if name.exists():
                raise UserError(f"{str(name)!r} exists already", hint="name another file with -o")
    else:
        names = [target]
    for name in names:
        if name.exists() and path.exists() and name.samefile(path):
            raise UserError(f"{str(name)!r} is the packed file itself", hint="name another file with -o")
    step = _counter(progress, sum(nbytes for *_, nbytes in extents))
    for (file, _, start, nbytes), name in zip(extents, names, strict=True):
        with replacing(name, nbytes) as out, _descriptor(file) as fd:
            digest, crcs = copy_checked(fd, start, nbytes, out, step)
            out.truncate(nbytes)
            if start in known:
                compare(known[start], digest, crcs, str(path))
    return names


def compare(weights: Weights, digest: str, crcs: Sequence[str], label: str) -> None:
    """Raises GGUFError with the place where weights differ from what was packed."""
    if digest == weights.sha256:
        return
    from .pack_manifest import CRC_BLOCK

    wrong = [i for i, (a, b) in enumerate(zip(weights.crc32, crcs, strict=True)) if a != b]
    start = weights.offset + CRC_BLOCK * (wrong[0] if wrong else 0)
    end = (
        weights.offset + min(CRC_BLOCK * (wrong[-1] + 1), weights.nbytes) if wrong else weights.offset + weights.nbytes
    )
    raise GGUFError(
        f"pack: the weights {weights.name!r} are damaged in {label} between bytes {start} and {end}: "
        f"sha256 is {digest}, packed was {weights.sha256}",
        hint="fetch or pack the file again",
    )


def check_args(text: str) -> None:
    """Raises UserError unless `.args` is a command line that layerlift takes."""
    from .arguments import parse

    packed = parse_args(text)
    refuse_model(packed)
    parse([*packed.before, *packed.after])


# ---------------------------------------------------------------------------------------------------------------
# Writing


def _tail(manifest: Manifest, args: str, wheels: dict[str, bytes]) -> bytes:
    """The zip at the end; its offsets count from its own first byte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=False) as z:

        def add(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name)  # of 1980: the same input makes the same file
            info.external_attr = 0o644 << 16
            z.writestr(info, data)

        for name, file in FILES.items():
            if name == "__main__.py" or manifest.bundle is not None:
                add(name, (LAUNCHER / file).read_bytes())
        add(NAME, manifest.dump())
        add(ARGS, args.encode())
        for name, data in wheels.items():
            add(WHEELS + name, data)
    return buffer.getvalue()


def _carried(view: memoryview, path: Path, manifest: Manifest) -> dict[str, bytes]:
    """The wheels in a packed file."""
    found: dict[str, bytes] = {}
    for name in manifest.bundle.wheels if manifest.bundle else ():
        data = archive.read(view, str(path), WHEELS + name, limit=1 << 30)
        if data is None:
            raise GGUFError(f"pack: the wheel {name} is missing in {path}", hint="repack with --bundle-deps")
        found[name] = data
    return found


def _wheel_bytes(wheels: Wheels | None) -> dict[str, bytes]:
    return {name: (wheels.folder / name).read_bytes() for name in wheels.bundle.wheels} if wheels else {}


def _nbytes(wheels: Wheels | None) -> int:
    return sum((wheels.folder / name).stat().st_size for name in wheels.bundle.wheels) if wheels else 0


def _space(sources: Sequence[Source]) -> int:
    """Bytes that a copy takes: what is a hole in a source stays one."""
    total = 0
    for s in sources:
        status = os.stat(s.file)
        held = getattr(status, "st_blocks", None)
        total += s.nbytes if held is None else min(s.nbytes, held * 512)
    return total


def _refuse_source(target: Path, sources: Sequence[Source]) -> None:
    for s in sources:
        if target.exists() and target.samefile(s.file):
            raise UserError(f"{str(target)!r} is the model itself", hint="name another file with -o")


@contextmanager
def _descriptor(path: str):
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        yield fd
    finally:
        os.close(fd)


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    return advance


def _plain(name: str) -> str:
    """A member's name as a file name: no folders, never empty, always .gguf."""
    name = name.replace("\\", "/").rpartition("/")[2]
    if not name.isprintable() or name in ("", ".", ".."):
        raise PackError(f"the model in the archive is called {name!r}", hint="name the file with -o")
    return name if name.lower().endswith(".gguf") else name + ".gguf"
