"""Writes a large file so that it is whole under its name or not there. Knows nothing of what is in it.

The bytes go to `.NAME.*.part` in the same folder, which is locked, synced and then renamed. A part that a killed
process left is removed by the next one that writes the same name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import LayerliftError
from .pack_manifest import CRC_BLOCK, PackError

Advance = Callable[[int], None]  # bytes done since the last call

STALE_SECONDS = 10  # a younger part may be about to be locked by its owner


@contextlib.contextmanager
def replacing(target: Path, nbytes: int, *, executable: bool = False) -> Iterator[BinaryIO]:
    """A file that becomes `target` when the block ends well; `nbytes` of free space are asked for first.

    Raises PackError where the folder or the disk refuses.
    """
    target = Path(os.path.realpath(target))  # a link goes on pointing to what it names
    if target.exists() and not target.is_file():
        raise PackError(f"{str(target)!r} is not a regular file")
    prefix = "." + os.fsdecode(os.fsencode(target.name)[:100]) + "."
    part = ""
    try:
        _remove_leftovers(target.parent, prefix)
        free = shutil.disk_usage(target.parent).free
        if nbytes > free:
            raise PackError(
                f"{target}: {nbytes / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free in {target.parent}",
                hint="free some space, or name another place with -o",
            )
        fd, part = tempfile.mkstemp(prefix=prefix, suffix=".part", dir=target.parent)
        with open(fd, "w+b") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(fd)
            umask = os.umask(0)
            os.umask(umask)
            if sys.platform != "win32":
                os.fchmod(fd, (0o777 if executable else 0o666) & ~umask)
        os.replace(part, target)
        part = ""
        _sync_folder(target.parent)
    except LayerliftError:
        raise
    except OSError as error:
        raise PackError(f"{target}: {error.strerror or error}") from error
    finally:
        if part:
            with contextlib.suppress(OSError):
                os.unlink(part)


def copy_checked(
    source: int, start: int, nbytes: int, file: BinaryIO | None, advance: Advance
) -> tuple[str, list[str]]:
    """Copies a range of the descriptor `source` to `file`'s position; its SHA-256 and a CRC-32 per CRC_BLOCK.

    Blocks of zeros become holes, and holes are not read. Without a `file` the range is only read. Raises PackError if
    it ends early.
    """
    digest, crcs = hashlib.sha256(), []
    zeros = bytes(CRC_BLOCK)
    end = start + nbytes
    extents = _extents(source, start, end)
    data = next(extents, None)
    while start < end:
        size = min(CRC_BLOCK, end - start)
        while data and data[1] <= start:
            data = next(extents, None)
        inside = start + size <= os.fstat(source).st_size
        block = _read(source, start, size) if not inside or (data and data[0] < start + size) else zeros[:size]
        digest.update(block)
        crcs.append(f"{zlib.crc32(block):08x}")
        if file is not None:
            if block == zeros[: len(block)]:
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
        start += len(block)
        advance(len(block))
    return digest.hexdigest(), crcs


def copy_range(source: int, start: int, nbytes: int, file: BinaryIO, advance: Advance) -> None:
    """Copies a range of the descriptor `source` to `file`'s position inside the system where it can.

    File systems with shared extents (btrfs, XFS and others) then copy nothing at all.
    """
    file.flush()
    at, end = file.tell(), start + nbytes
    shift = at - start
    for begin, stop in _extents(source, start, end):
        while begin < stop:
            done = _copy_inside(source, file.fileno(), begin, min(4 * CRC_BLOCK, stop - begin), begin + shift)
            if not done:
                block = _read(source, begin, min(CRC_BLOCK, stop - begin))
                file.seek(begin + shift)
                file.write(block)
                file.flush()
                done = len(block)
            begin += done
            advance(done)
    file.seek(at + nbytes)


def _read(source: int, start: int, nbytes: int) -> bytes:
    pieces, left = [], nbytes
    while left:
        if sys.platform == "win32":
            os.lseek(source, start, os.SEEK_SET)
            piece = os.read(source, left)
        else:
            piece = os.pread(source, left, start)
        if not piece:
            raise PackError(f"the source ends at byte {start}, {left} bytes early: it was changed while it was read")
        pieces.append(piece)
        start, left = start + len(piece), left - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _copy_inside(source: int, target: int, start: int, nbytes: int, to: int) -> int:
    """Bytes that the system copied by itself; 0 where it cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, nbytes, start, to)
    except OSError:  # other file systems, old kernels
        return 0


def _extents(source: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that are no holes."""
    if not hasattr(os, "SEEK_DATA"):
        yield start, end
        return
    while start < end:
        try:
            begin = min(os.lseek(source, start, os.SEEK_DATA), end)
            stop = min(os.lseek(source, begin, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no word of holes; ENXIO: nothing but a hole up to the end
                yield start, end
            return
        if begin < stop:
            yield begin, stop
        start = max(stop, begin)


def _remove_leftovers(folder: Path, prefix: str) -> None:
    now = time.time()
    for entry in os.scandir(folder):
        if not (entry.name.startswith(prefix) and entry.name.endswith(".part")):
            continue
        with contextlib.suppress(OSError):
            if now - entry.stat(follow_symlinks=False).st_mtime < STALE_SECONDS:
                continue
            with open(entry.path, "r+b") as file:
                if not _lock(file):
                    continue
            os.unlink(entry.path)


def _lock(file: BinaryIO) -> bool:
    """Whether this process now holds the file, until it closes it or dies."""
    if sys.platform == "win32":  # where a file in use cannot be removed anyway
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
