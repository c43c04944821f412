"""Opens GGUF files: one mapped file, a split set, or a member stored in an archive; checks everything it says.

Knows the container only: no key, tensor or format has a meaning here beyond its place and size.
Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3. Writing goes through the `gguf` package.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.formats import BY_ID, BY_NAME, FORMATS
from . import archive, byteorder
from .errors import GGUFError, ModelError, UserError
from .metadata import Cursor, Metadata, Texts, show

__all__ = ["GGUF", "GGUFError", "Metadata", "TensorInfo", "Texts", "open_gguf"]

MAX_KEYS = MAX_TENSORS = 0xFFFF  # about 0.3 s to read; the largest models have some 100 keys and 2,000 tensors
MAX_NAME = 64  # bytes, from the specification
MAX_DIMS = 4
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20

_RETIRED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4"}
_RETIRED |= {37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
_FOREIGN = (  # what people mistake for a GGUF
    (b"lmgg", "a GGML file from before GGUF"),
    (b"fmgg", "a GGMF file from before GGUF"),
    (b"tjgg", "a GGJT file from before GGUF"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for"),
    (b"#!", "a script; as a packed model its end is missing or damaged"),
    (b"<", "a web page, not a model"),
    (b"PK", "a ZIP archive, damaged or without a .gguf file in it"),
    (b"MZ", "a program; as a .llamafile it is damaged or holds no .gguf file"),
)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `offset` counts from the first byte of its GGUF, `part` is the file of a split set."""

    name: str
    fmt: str  # a name of backends/formats.py
    shape: tuple[int, ...]  # NumPy order: the last is the one whose weights lie side by side
    offset: int
    nbytes: int
    part: int = 0


def open_gguf(path: str | os.PathLike[str], *, member: str | None = None) -> GGUF:
    """Opens a GGUF, the whole set where `path` is one part of it, or the one in an archive.

    `archive@member` in `path` is the same as `member`. Raises GGUFError, or UserError where there is no such file.
    """
    name = os.fspath(path)
    if member is None and "@" in name and not os.path.exists(name):
        name, member = archive.split_name(name)
    first = _Part(name, member)
    parts = [first]
    try:
        if first.metadata.integer("split.count", 1, low=0) > 1:
            parts = _open_split(first)
        return GGUF(parts)
    except BaseException:
        for part in parts:
            part.close()
        raise


class GGUF:
    """An open file: metadata, and tensors as views of the map. A context manager."""

    def __init__(self, parts: list[_Part]):
        first = parts[0]
        self._parts = parts
        self.path = first.label
        self.version, self.big_endian, self.alignment = first.version, first.big_endian, first.alignment
        self.metadata = first.metadata
        self.tensors: dict[str, TensorInfo] = {}
        for index, part in enumerate(parts):
            for name, info in part.tensors.items():
                if name in self.tensors:
                    other = parts[self.tensors[name].part].label
                    raise GGUFError(f"gguf: tensor {show(name)} is both in {other} and in {part.label}")
                self.tensors[name] = replace(info, part=index) if index else info
        self.nbytes = sum(t.nbytes for t in self.tensors.values())

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the files, in order; one for a file that is not split."""
        return tuple(part.label for part in self._parts)

    @property
    def extents(self) -> tuple[tuple[str, str, int, int], ...]:
        """File, own name, first byte and length of each part: all of a plain file, or what an archive holds."""
        return tuple((p.file, os.path.basename(p.member or p.file), p.base, len(p.view)) for p in self._parts)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor [nbytes], read-only and little-endian: a view that keeps the map alive.

        Big-endian files give a converted copy. Raises ModelError where there is no such tensor.
        """
        info = self._find(name)
        part = self._parts[info.part]
        part.check_length()
        data = np.frombuffer(part.view, np.uint8, info.nbytes, info.offset)
        if part.big_endian:
            data = byteorder.swapped(data, info.fmt)
            data.flags.writeable = False
        return data

    def release(self, name: str) -> None:
        """Tells the system that a tensor's pages are not needed soon; `raw` still works and reads them again."""
        info = self._find(name)
        part = self._parts[info.part]
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        page = mmap.PAGESIZE
        start = -(-(part.base + info.offset) // page) * page
        end = (part.base + info.offset + info.nbytes) // page * page
        if start < end:
            part.map.madvise(mmap.MADV_DONTNEED, start, end - start)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that tell models apart: a SHA-256 of all headers, file sizes and a sample of the weights.

        The sample, 4 KiB of 16 tensors, tells fine-tunes apart whose headers are alike.
        """
        digest = hashlib.sha256()
        for part in self._parts:
            part.check_length()
            digest.update(b"%d %d " % (len(part.view), part.header_end))
            digest.update(part.view[: part.header_end])
        infos = list(self.tensors.values())
        for info in infos[:: max(1, len(infos) // 16)]:
            middle = info.offset + info.nbytes // 2
            digest.update(self._parts[info.part].view[middle : min(middle + 4096, info.offset + info.nbytes)])
        return digest.hexdigest()[:32]

    def close(self) -> None:
        """Gives the map back, or leaves that to the last array that views it."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"gguf: tensor {show(name)} missing in {self.path}")
        return info


class _Part:
    """One mapped file and what its header says. `base` is where the GGUF starts in the file."""

    def __init__(self, path: str, member: str | None):
        self.file, self.member = path, member
        self.label, self.base = _printable(path), 0
        self.map = _map(path, self.label)
        self._whole = self.view = memoryview(self.map)
        try:
            self._locate()
            self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        try:
            self.view.release()
            self._whole.release()
            self.map.close()
        except BufferError:
            pass  # arrays still view the map, and the last of them unmaps it

    def check_length(self) -> None:
        """Raises if the file has become shorter than its map: reading the missing pages would kill the process."""
        if self.map.size() < len(self.map):
            raise GGUFError(f"gguf: {self.label} was cut to {self.map.size()} bytes while in use")

    def _locate(self) -> None:
        """Narrows `view` to the GGUF, whether it is the file or in an archive."""
        if self.member is None and self.view[:4] == b"GGUF":
            return
        found = archive.find(self.view, self.label, self.member, is_model=lambda view: _is_model(view, self.label))
        if found is None:
            head = bytes(self.view[:24])
            what = next((text for magic, text in _FOREIGN if head.startswith(magic)), f"it starts with {head[:4]!r}")
            raise GGUFError(f"gguf: no GGUF magic in {self.label} at byte 0: {what}")
        self.member, self.base, nbytes = found
        self.label = f"{self.label}@{_printable(self.member)}"
        self.view = self._whole[self.base : self.base + nbytes]
        if self.view[:4] != b"GGUF":
            raise GGUFError(f"gguf: no GGUF magic in {self.label} at byte 0: it starts with {bytes(self.view[:4])!r}")

    def _read(self) -> None:
        cursor = Cursor(self.view, self.label)
        cursor.take(4, "its magic")
        self.version = _read_version(cursor)
        self.big_endian = cursor.order == ">"
        n_tensors = _read_count(cursor, "tensors", 24, MAX_TENSORS)
        n_keys = _read_count(cursor, "keys", 13, MAX_KEYS)
        self.metadata = Metadata(cursor, n_keys)
        self.alignment = _alignment(self.metadata)
        places = [_read_tensor(cursor, f"tensor {i + 1} of {n_tensors}") for i in range(n_tensors)]
        self.header_end = cursor.pos
        data = -(-cursor.pos // self.alignment) * self.alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, fmt, shape, offset, at in places:
            cursor.subject = f"tensor {show(name)}"
            if name in self.tensors:
                raise cursor.fault("is there twice,", at)
            self.tensors[name] = self._place(cursor, name, fmt, shape, data, offset, at)
        _check_overlap(cursor, self.tensors)

    def _place(
        self, cursor: Cursor, name: str, fmt: str, shape: tuple[int, ...], data: int, offset: int, at: int
    ) -> TensorInfo:
        nbytes = BY_NAME[fmt].row_nbytes(shape[-1])
        for n in shape[:-1]:
            nbytes *= n
        if offset % self.alignment:
            raise cursor.fault(f"has offset {offset}, which is not a multiple of {self.alignment},", at)
        if data + offset + nbytes > len(self.view):
            size = f"{fmt} {list(shape)} needs bytes {data + offset} to {data + offset + nbytes}"
            raise cursor.fault(f"({size}) ends past the file of {len(self.view)} bytes", at)
        return TensorInfo(name, fmt, shape, data + offset, nbytes)


def _is_model(view: memoryview, label: str) -> bool:
    """Whether a GGUF can be a text model, by its own word: no image encoder, adapter or importance matrix."""
    try:
        cursor = Cursor(view, label)
        if view[: cursor.take(4, "its magic") + 4] != b"GGUF":
            return True
        _read_version(cursor)
        _read_count(cursor, "tensors", 24, MAX_TENSORS)
        metadata = Metadata(cursor, _read_count(cursor, "keys", 13, MAX_KEYS))
        kind, architecture = metadata.text("general.type", "model"), metadata.text("general.architecture", "")
    except (GGUFError, ModelError):
        return True  # opening it says what is wrong
    return kind == "model" and architecture != "clip"


def _map(path: str, label: str) -> mmap.mmap:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"gguf: {label} is a directory", hint="name a .gguf file in it")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise UserError(f"gguf: {label} is not a regular file")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise GGUFError(f"gguf: no GGUF magic in {label} at byte 0: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"gguf: no such file: {label}", hint="check the path given to -m") from None
    except PermissionError:
        raise GGUFError(f"gguf: no permission to read {label}", hint="check the file's owner and mode") from None
    except (OSError, ValueError, OverflowError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise GGUFError(f"gguf: {label} cannot be opened: {reason}") from None


def _printable(path: str) -> str:
    return path if path and path.isprintable() else repr(path)


def _read_version(cursor: Cursor) -> int:
    at = cursor.pos
    version = cursor.number("I", "its version")
    if version and not version & 0xFFFF:
        cursor.order, cursor.pos = ">", at
        version = cursor.number("I", "its version")
    if version == 1:
        raise cursor.fault("says GGUF version 1, which was in use in August 2023 only; 2 and 3 can be read;", at)
    if version not in (2, 3):
        raise cursor.fault(f"says GGUF version {version}; 2 and 3 can be read;", at)
    return version


def _read_count(cursor: Cursor, what: str, size: int, limit: int) -> int:
    """A number of entries of at least `size` bytes each."""
    at = cursor.pos
    count = cursor.number("Q", f"its number of {what}")
    if count * size > cursor.left() or count > limit:
        bound = f"{cursor.left()} bytes are left" if count * size > cursor.left() else f"the limit is {limit}"
        raise cursor.fault(f"says {count} {what}, but {bound}", at)
    return count


def _alignment(metadata: Metadata) -> int:
    key = "general.alignment"
    alignment = metadata.integer(key, DEFAULT_ALIGNMENT, low=8, high=MAX_ALIGNMENT)
    if alignment & (alignment - 1):
        raise metadata.fault(key, f"is {alignment}, which is not a power of two,")
    return alignment


def _read_tensor(cursor: Cursor, subject: str) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, format, shape, offset in the data and place in the file of one tensor description."""
    at, cursor.subject = cursor.pos, subject
    name = cursor.name("its name", MAX_NAME)
    cursor.subject = f"tensor {show(name)}"
    n_dims = cursor.number("I", "its number of dimensions")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.fault(f"has {n_dims} dimensions; 1 to {MAX_DIMS} allowed", cursor.pos - 4)
    dims: list[int] = [cursor.number("Q", "its shape") for _ in range(n_dims)]
    if 0 in dims:
        raise cursor.fault(f"has shape {dims[::-1]}, which is empty,", cursor.pos - 8 * n_dims)
    kind = cursor.number("I", "its type")
    fmt = BY_ID.get(kind)
    if fmt is None:
        was = f" ({_RETIRED[kind]}, retired)" if kind in _RETIRED else ""
        error = cursor.fault(f"has the unknown type {kind}{was}", cursor.pos - 4)
        error.hint = "known types: " + ", ".join(f"{f.id} {f.name}" for f in FORMATS)
        raise error
    if dims[0] % fmt.block:
        raise cursor.fault(f"has rows of {dims[0]}, not a multiple of {fmt.name}'s block of {fmt.block},", at)
    if cursor.order == ">" and not byteorder.can_swap(fmt.name):
        raise cursor.fault(f"is {fmt.name}, whose big-endian form is not supported,", at)
    return name, fmt.name, tuple(reversed(dims)), cursor.number("Q", "its offset"), at


def _check_overlap(cursor: Cursor, tensors: dict[str, TensorInfo]) -> None:
    ordered = sorted(tensors.values(), key=lambda t: t.offset)
    for a, b in pairwise(ordered):
        if a.offset + a.nbytes > b.offset:
            cursor.subject = f"tensor {show(b.name)}"
            raise cursor.fault(f"overlaps {show(a.name)}, which ends at byte {a.offset + a.nbytes},", b.offset)


_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


def _open_split(opened: _Part) -> list[_Part]:
    """All parts of the set that `opened` belongs to, in order; all are closed where one fails."""
    count = opened.metadata.integer("split.count")
    place: Any = _SPLIT.fullmatch(opened.member or opened.file)
    if place is None or int(place[3]) != count:
        raise GGUFError(
            f"gguf: {opened.label} is part of a set of {count}, but its name does not end in -of-{count:05}.gguf",
            hint=f"give the parts their names back: NAME-00001-of-{count:05}.gguf and so on",
        )
    mine, parts = int(place[2]) - 1, []
    try:
        for index in range(count):
            name = f"{place[1]}-{index + 1:05}-of-{place[3]}{place[4]}"
            file, member = (opened.file, name) if opened.member else (name, None)
            try:
                part = opened if index == mine else _Part(file, member)
            except UserError as e:
                raise GGUFError(
                    f"gguf: part {index + 1} of {count} is missing: {e}", hint="all parts belong in one folder"
                ) from None
            parts.append(part)
            _check_part(part, index, count, opened)
        _check_total(parts)
    except BaseException:
        for part in parts:
            part.close()
        raise
    return parts


def _check_part(part: _Part, index: int, count: int, opened: _Part) -> None:
    meta = part.metadata
    number, total = meta.integer("split.no"), meta.integer("split.count")
    if number != index:
        raise meta.fault("split.no", f"is {number}, but the file's name says {index} (counted from 0),")
    if total != count:
        raise meta.fault("split.count", f"is {total}, but {count} in {opened.label},")
    if (part.version, part.big_endian) != (opened.version, opened.big_endian):
        raise GGUFError(f"gguf: {part.label} and {opened.label} differ in version or byte order")


def _check_total(parts: list[_Part]) -> None:
    meta = parts[0].metadata
    wanted, found = meta.integer("split.tensors.count"), sum(len(p.tensors) for p in parts)
    if wanted != found:
        raise meta.fault("split.tensors.count", f"is {wanted}, but the {len(parts)} parts hold {found} tensors,")
