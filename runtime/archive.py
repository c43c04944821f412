"""Finds a GGUF that is stored, uncompressed, in a ZIP archive or a .llamafile, so that it can be used in place.

Also one that lies raw in front of a small zip which tells where (pack_manifest.py).
Reads the ZIP directory only; knows nothing of what the members hold.
Format: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3 (ZIP64).
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from .errors import GGUFError, UserError
from .pack_manifest import ALIGNMENT, MAX_NBYTES, Manifest, Weights, parse
from .pack_manifest import NAME as MANIFEST

__all__ = ["Member", "check", "find", "members", "packed", "places", "read", "split_name"]

IsModel = Callable[[memoryview], bool]

END = struct.Struct("<4s4H2IH")  # end of central directory
LOCATOR64 = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQ2H2I4Q")
CENTRAL = struct.Struct("<4s6H3I5H2I")
LOCAL = struct.Struct("<4s5H3I2H")

BLOCK = 4 << 20  # bytes under the checksum at a time
MAX_MEMBERS = 100_000  # listed in about 0.2 s; a .llamafile has some hundreds
_COMPRESSED = {8: "deflate", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz"}


@dataclass(frozen=True)
class Member:
    """One entry of the directory. `offset` is where its local header starts; `at`, where its entry starts."""

    name: str
    raw_name: bytes
    method: int
    encrypted: bool
    crc32: int
    packed: int
    nbytes: int
    offset: int
    at: int


@dataclass(frozen=True)
class Directory:
    """Where the central directory lies; `prefix` bytes stand before the archive's own first byte."""

    offset: int
    nbytes: int
    count: int
    prefix: int


def split_name(path: str) -> tuple[str, str | None]:
    """`archive@member` as (archive, member) where `archive` is a file, else (path, None)."""
    at = path.find("@")
    while at >= 0:
        if os.path.isfile(path[:at]) and path[at + 1 :]:
            return path[:at], path[at + 1 :]
        at = path.find("@", at + 1)
    return path, None


def find(
    view: memoryview, label: str, member: str | None = None, *, is_model: IsModel | None = None
) -> tuple[str, int, int] | None:
    """Name, offset and length of the GGUF in an archive: `member`, or the only one there is.

    Where there are several, those that are the later parts of a split set and those that are not `is_model` do not
    count. None if `view` is no ZIP archive or holds no GGUF. Raises GGUFError for a damaged archive or a compressed
    member, UserError where `member` is missing or there are several to choose from.
    """
    directory = _find_directory(view)
    if directory is None:
        if member is not None:
            raise UserError(f"zip: {label} is not a ZIP archive, so it has no member {member!r}")
        return None
    found = list(members(view, label, directory))
    manifest = _manifest(view, label, found, directory)
    places: list[Member] | list[Weights]
    if manifest is not None:
        places = list(manifest.weights)
        ggufs = places
    else:
        places = found
        ggufs = [m for m in found if m.name.lower().endswith(".gguf")]
    names = ", ".join(repr(m.name) for m in ggufs[:8]) or "none"

    def place(chosen: Member | Weights) -> tuple[str, int, int]:
        start = chosen.offset if isinstance(chosen, Weights) else _content(view, label, chosen, directory)
        return chosen.name, start, chosen.nbytes

    if member is None:
        chosen = _models(ggufs, lambda m: is_model is None or is_model(view[place(m)[1] :][: m.nbytes]))
        if len(chosen) > 1:
            raise UserError(f"zip: {label} holds {len(ggufs)} .gguf files: {names}", hint="name one as FILE@MEMBER")
        if not chosen:
            return None
    else:
        chosen = [m for m in places if m.name == member]
        if not chosen:
            raise UserError(f"zip: no member {member!r} in {label}", hint=f".gguf files in it: {names}")
        if len(chosen) > 1:
            _fail(f"{member!r} is listed {len(chosen)} times", label, getattr(chosen[1], "at", 0))
    return place(chosen[0])


def _models(ggufs: Sequence[Member | Weights], is_model: Callable[[Member | Weights], bool]) -> list[Member | Weights]:
    """Of several GGUFs those that a user can have meant; all of them where none stands out."""
    chosen = [m for m in ggufs if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", m.name, re.IGNORECASE)]
    if len(chosen) > 1:
        chosen = [m for m in chosen if is_model(m)]
    return chosen or list(ggufs)


def packed(view: memoryview, label: str) -> Manifest | None:
    """What a packed file says of itself; None for any other file. Raises GGUFError where it is damaged."""
    directory = _find_directory(view)
    found = list(members(view, label, directory)) if directory else []
    return _manifest(view, label, found, directory) if directory else None


def places(view: memoryview, label: str) -> dict[str, tuple[int, int]]:
    """Where each stored member's bytes start and how many there are; none if `view` is no ZIP archive.

    Raises GGUFError for a damaged archive, a compressed member or a name given twice.
    """
    directory, found = _find_directory(view), {}
    for member in members(view, label, directory) if directory else ():
        assert directory is not None
        if member.name in found:
            _fail(f"{member.name!r} is listed twice", label, member.at)
        found[member.name] = (_content(view, label, member, directory), member.nbytes)
    return found


def read(view: memoryview, label: str, name: str, *, limit: int = MAX_NBYTES) -> bytes | None:
    """The checked content of a small member; None if there is none of this name. Raises GGUFError."""
    directory = _find_directory(view)
    for member in members(view, label, directory) if directory else ():
        if directory and member.name == name:
            return _read(view, label, member, directory, limit)
    return None


def check(view: memoryview, label: str) -> int:
    """Reads every member and compares it with its CRC-32; how many there are. Raises GGUFError for the first damage."""
    directory = _find_directory(view)
    names: set[str] = set()
    for member in members(view, label, directory) if directory else ():
        if member.name in names:
            _fail(f"{member.name!r} is listed twice", label, member.at)
        names.add(member.name)
        assert directory is not None
        start = _start(view, label, member, directory)
        if member.encrypted or member.method not in (0, 8):
            continue
        nbytes, crc32 = _checksum(view[start : start + member.packed], member)
        if (nbytes, crc32) != (member.nbytes, member.crc32):
            was = f"it has {nbytes} bytes and CRC-32 {crc32:08x}, listed are {member.nbytes} and {member.crc32:08x}"
            _fail(f"{member.name!r} is damaged, {was},", label, start)
    return len(names)


def _checksum(data: memoryview, member: Member) -> tuple[int, int]:
    """Length and CRC-32 of a member's content."""
    inflate = zlib.decompressobj(-15) if member.method else None
    nbytes = crc32 = 0
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        while len(block) and nbytes <= member.nbytes:
            try:
                plain = inflate.decompress(block, BLOCK) if inflate else block
            except zlib.error:
                return nbytes, crc32
            nbytes, crc32 = nbytes + len(plain), zlib.crc32(plain, crc32)
            block = inflate.unconsumed_tail if inflate else b""
    return nbytes, crc32


def _manifest(view: memoryview, label: str, found: Sequence[Member], directory: Directory) -> Manifest | None:
    for member in found:
        if member.name == MANIFEST:
            manifest = parse(_read(view, label, member, directory, MAX_NBYTES), label)
            for weights in manifest.weights:
                if weights.offset % ALIGNMENT or weights.offset + weights.nbytes > directory.prefix:
                    _fail(f"{weights.name!r} of {weights.nbytes} bytes does not lie there", label, weights.offset)
            return manifest
    return None


def _read(view: memoryview, label: str, member: Member, directory: Directory, limit: int) -> bytes:
    if member.nbytes > limit or member.packed > limit:
        _fail(f"{member.name!r} has {member.nbytes} bytes; the limit is {limit}", label, member.at)
    start = _start(view, label, member, directory)
    data = bytes(view[start : start + member.packed])
    if member.method == 8:
        try:
            data = zlib.decompressobj(-15).decompress(data, limit + 1)
        except zlib.error:
            _fail(f"{member.name!r} is damaged", label, start)
    elif member.method:
        _fail(f"{member.name!r} is compressed with method {member.method}", label, member.at)
    if len(data) != member.nbytes or zlib.crc32(data) != member.crc32:
        _fail(f"{member.name!r} is damaged: its checksum differs", label, start)
    return data


def members(view: memoryview, label: str, directory: Directory | None = None) -> Iterator[Member]:
    """The entries of the central directory, in its order; none if `view` is no ZIP archive."""
    directory = directory or _find_directory(view)
    if directory is None:
        return
    if directory.count > MAX_MEMBERS:
        _fail(f"the directory has {directory.count} entries; the limit is {MAX_MEMBERS}", label, directory.offset)
    at, end = directory.offset, directory.offset + directory.nbytes
    for index in range(directory.count):
        if end - at < CENTRAL.size or view[at : at + 4] != b"PK\1\2":
            _fail(f"entry {index + 1} of {directory.count} in the directory is damaged", label, at)
        fields = CENTRAL.unpack_from(view, at)
        flags, method, crc32, packed, nbytes = fields[3], fields[4], *fields[7:10]
        name_length, extra_length, comment_length, offset = fields[10], fields[11], fields[12], fields[16]
        name_at = at + CENTRAL.size
        after = name_at + name_length + extra_length + comment_length
        if after > end:
            _fail(f"entry {index + 1} of {directory.count} runs past the directory", label, at)
        raw_name = bytes(view[name_at : name_at + name_length])
        if 0xFFFFFFFF in (packed, nbytes, offset):
            extra = bytes(view[name_at + name_length : name_at + name_length + extra_length])
            wide = _zip64(extra, nbytes, packed, offset)
            if wide is None:
                _fail(f"entry {index + 1} of {directory.count} lacks its ZIP64 sizes", label, at)
            nbytes, packed, offset = wide
        name = raw_name.decode("utf-8" if flags & 0x800 else "cp437", "replace")
        offset += directory.prefix
        yield Member(name, raw_name, method, bool(flags & 1), crc32, packed, nbytes, offset, at)
        at = after


def _find_directory(view: memoryview) -> Directory | None:
    """Looks backwards for the end record, which a comment of up to 65535 bytes may follow."""
    start = max(0, len(view) - END.size - 0xFFFF)
    tail = bytes(view[start:])
    at = tail.rfind(b"PK\5\6")
    while at >= 0:
        directory = _directory_before(view, start + at)
        if directory is not None:
            return directory
        at = tail.rfind(b"PK\5\6", 0, at + 3)
    return None


def _directory_before(view: memoryview, end: int) -> Directory | None:
    """The directory that the end record at `end` describes, or None where the record makes no sense."""
    if end + END.size > len(view):
        return None
    *_, count, nbytes, offset, _ = END.unpack_from(view, end)
    locator = end - LOCATOR64.size
    if locator >= 0 and view[locator : locator + 4] == b"PK\6\7":
        named = LOCATOR64.unpack_from(view, locator)[2]
        # Right before the locator is where every writer puts it; the offset is wrong where bytes were put in front.
        for record in (locator - END64.size, named):
            if 0 <= record <= locator - END64.size and view[record : record + 4] == b"PK\6\6":
                *_, count, nbytes, offset = END64.unpack_from(view, record)
                end = record
                break
    # Nothing stands between directory and end record, so a difference is what was put in front of the archive.
    for begin in (end - nbytes, offset):
        if begin >= offset and begin + nbytes <= end and (not count or view[begin : begin + 4] == b"PK\1\2"):
            return Directory(begin, nbytes, count, begin - offset)
    return None


def _zip64(extra: bytes, nbytes: int, packed: int, offset: int) -> tuple[int, int, int] | None:
    """Size, packed size and offset from the ZIP64 extra field, which has those of the three that overflowed."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(len(body) // 8, 3)}Q", body))
            values = [next(wide, None) if v == 0xFFFFFFFF else v for v in (nbytes, packed, offset)]
            first, second, third = values
            return None if first is None or second is None or third is None else (first, second, third)
        at += 4 + length
    return None


def _content(view: memoryview, label: str, member: Member, directory: Directory) -> int:
    """Where the bytes of a stored member start, after its local header."""
    name = member.name
    if member.encrypted:
        _fail(f"{name!r} is encrypted", label, member.at)
    if member.method or member.packed != member.nbytes:
        how = _COMPRESSED.get(member.method, f"method {member.method}")
        raise GGUFError(
            f"zip: {name!r} is compressed ({how}) in {label} at byte {member.at}, so it cannot be used in place",
            hint="store it with `zip -0`, or unpack it first",
        )
    return _start(view, label, member, directory)


def _start(view: memoryview, label: str, member: Member, directory: Directory) -> int:
    """Where a member's bytes start, compressed or not, after its local header."""
    name, at = member.name, member.offset
    if at + LOCAL.size > directory.offset or view[at : at + 4] != b"PK\3\4":
        _fail(f"{name!r} has no local header", label, at)
    fields = LOCAL.unpack_from(view, at)
    method, name_length, extra_length = fields[3], fields[9], fields[10]
    name_at = at + LOCAL.size
    if method != member.method or view[name_at : name_at + name_length] != member.raw_name:
        _fail(f"the local header of {name!r} differs from the directory", label, at)
    start = name_at + name_length + extra_length
    if start + member.packed > directory.offset:
        _fail(f"{name!r} needs {member.packed} bytes, {max(0, directory.offset - start)} left", label, start)
    return start


def _fail(reason: str, label: str, at: int) -> NoReturn:
    raise GGUFError(f"zip: {reason} in {label} at byte {at}")
