"""GGUF metadata: a bounds-checked cursor over the file, and typed access to the key-value section.

Knows the value types and where each value lies; knows no key by name. Only scalars are decoded when a file is
opened: texts and arrays are checked against the file length, and decoded when they are asked for.
Format: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterator, KeysView, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from .errors import GGUFError, ModelError

__all__ = ["Cursor", "Metadata", "Texts", "show"]

Default = TypeVar("Default")
_REQUIRED = cast(NoReturn, object())  # typed so that a getter without default never seems to return it

# In the order of their ids, with their codes for `struct`.
_CODES: dict[str, str] = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "float32": "f",
    "boolean": "B",
    "text": "",
    "array": "",
    "uint64": "Q",
    "int64": "q",
    "float64": "d",
}
KINDS = tuple(_CODES)
INTEGERS = frozenset(k for k in KINDS if "int" in k)
FLOATS = frozenset({"float32", "float64"})

MAX_KEY = 0xFFFF  # bytes, from the specification
MAX_TEXT = 16 << 20  # bytes; the longest real text is a chat template of some 20 kB
MAX_TEXTS = 1 << 22  # array elements scanned per file, about 0.3 s; the largest vocabularies have 800,000


def show(name: str) -> str:
    """A key or tensor name for a message: quoted, on one line, not too long."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


class Cursor:
    """Reads numbers and names in order; every length is checked against the file before anything is taken.

    `subject` says in errors what is being read.
    """

    def __init__(self, view: memoryview, label: str):
        self.view, self.label, self.order = view, label, "<"
        self.pos = 0
        self.subject = "the header"
        self.texts_left = MAX_TEXTS

    def fault(self, reason: str, at: int | None = None) -> GGUFError:
        """The error that `subject` has `reason` at byte `at`, by default here."""
        return GGUFError(f"gguf: {self.subject} {reason} in {self.label} at byte {self.pos if at is None else at}")

    def left(self) -> int:
        return len(self.view) - self.pos

    def take(self, nbytes: int, what: str) -> int:
        """Passes over `nbytes` bytes; where they start."""
        if nbytes > self.left():
            raise self.fault(f"is cut off: {what} needs {nbytes} bytes, {self.left()} left")
        self.pos += nbytes
        return self.pos - nbytes

    def number(self, code: str, what: str) -> Any:
        """One number; `code` as in `struct`."""
        code = self.order + code
        return struct.unpack_from(code, self.view, self.take(struct.calcsize(code), what))[0]

    def name(self, what: str, limit: int) -> str:
        """A text of 1 to `limit` bytes, which must be UTF-8."""
        at = self.pos
        length = self.number("Q", what)
        start = self.take(length, what)
        if not 0 < length <= limit:
            raise self.fault(f"has a name of {length} bytes; 1 to {limit} allowed", at)
        try:
            return str(self.view[start : self.pos], "utf-8")
        except UnicodeDecodeError as e:
            raise self.fault("has a name that is not UTF-8", start + e.start) from None

    def skip_texts(self, count: int) -> None:
        """Passes over an array of texts."""
        self.texts_left -= count
        if self.texts_left < 0:
            raise self.fault(f"brings the texts in arrays above the limit of {MAX_TEXTS}")
        # This loop is most of the time of opening a file: 400,000 texts in 0.04 s.
        unpack, view, pos, size = struct.Struct(self.order + "Q").unpack_from, self.view, self.pos, len(self.view)
        index = before = 0
        last = size - 8
        for index in range(count):  # noqa: B007  (named in the message)
            if pos > last:
                break
            before = pos
            pos += 8 + unpack(view, pos)[0]
        else:
            if pos <= size:
                self.pos = pos
                return
            index += 1
        if pos > size:
            index, pos = index - 1, before
        raise self.fault(f"is cut off: text {index} of {count} runs past the end of the file", pos)


@dataclass(frozen=True)
class Entry:
    """One value: scalars are here; of a text (in bytes) or an array (in elements) only place and length."""

    kind: str
    at: int
    value: int | float | bool = 0
    items: str = ""  # an array's element kind
    count: int = 0


class Texts(Sequence[str]):
    """An array of texts in the mapped file. `list(texts)` is the fast way to have them all.

    Bytes that are not UTF-8 become U+FFFD; `raw(i)` gives them as they are.
    """

    def __init__(self, view: memoryview, order: str, at: int, count: int):
        self._view, self._order, self._at, self._count = view, order, at, count
        self._unpack = struct.Struct(order + "Q").unpack_from
        self._starts: NDArray[np.int64] | None = None  # of the length fields; made when one text is asked for

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<{self._count} texts>"

    def __iter__(self) -> Iterator[str]:
        view, unpack, end = self._view, self._unpack, self._at
        for _ in range(self._count):
            start = end + 8
            end = start + unpack(view, end)[0]
            yield str(view[start:end], "utf-8", "replace")

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        return str(self.raw(index), "utf-8", "replace")

    def raw(self, index: int) -> bytes:
        """The bytes of one text."""
        if self._starts is None:
            self._starts = np.fromiter(self._places(), np.int64, self._count)
        start = int(self._starts[index])
        return bytes(self._view[start + 8 : start + 8 + self._unpack(self._view, start)[0]])

    def encoded(self) -> bytes:
        """All of them as a little-endian file holds them, each with its length in front."""
        if self._order != "<":
            raws = map(self.raw, range(self._count))
            return b"".join(struct.pack("<Q", len(raw)) + raw for raw in raws)
        last = deque(self._places(), 1)
        return bytes(self._view[self._at : last[0] + 8 + self._unpack(self._view, last[0])[0]]) if last else b""

    def _places(self) -> Iterator[int]:
        at = self._at
        for _ in range(self._count):
            yield at
            at += 8 + self._unpack(self._view, at)[0]


class Metadata:
    """The key-value section. Each getter raises ModelError where a key without default is missing, and
    GGUFError where a value has the wrong type or lies out of bounds. Values are decoded from the mapped file,
    so texts and arrays must be read before the file is closed.
    """

    def __init__(self, cursor: Cursor, count: int):
        """Reads `count` entries at the cursor."""
        self._cursor = cursor
        self._entries: dict[str, Entry] = {}
        for index in range(count):
            cursor.subject = f"key {index + 1} of {count}"
            at = cursor.pos
            key = cursor.name("its name", MAX_KEY)
            cursor.subject = show(key)
            if key in self._entries:
                raise cursor.fault("is there twice,", at)
            self._entries[key] = _read_entry(cursor)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> KeysView[str]:
        return self._entries.keys()

    def __getitem__(self, key: str) -> int | float | bool | str | Texts | NDArray[Any]:
        entry = self._entry(key)
        if entry.kind == "array":
            return self.array(key)
        return self.text(key) if entry.kind == "text" else entry.value

    def fault(self, key: str, reason: str) -> GGUFError:
        """The error that the value of `key` has `reason`: raise metadata.fault(key, "has 5 values for 6 tokens")."""
        where = f" at byte {self._entries[key].at}" if key in self._entries else ""
        return GGUFError(f"gguf: {show(key)} {reason} in {self._cursor.label}{where}")

    def integer(
        self, key: str, default: Default = _REQUIRED, *, low: int | None = None, high: int | None = None
    ) -> int | Default:
        """An integer of any width, from `low` to `high`."""
        if default is not _REQUIRED and key not in self:
            return default
        return self._within(key, self._scalar(key, INTEGERS, "an integer"), low, high)

    def number(
        self, key: str, default: Default = _REQUIRED, *, low: float | None = None, high: float | None = None
    ) -> float | Default:
        """A finite number, from `low` to `high`; integers count as numbers."""
        if default is not _REQUIRED and key not in self:
            return default
        value = self._scalar(key, INTEGERS | FLOATS, "a number")
        if not math.isfinite(value):
            raise self.fault(key, f"is {value}")
        return float(self._within(key, value, low, high))

    def boolean(self, key: str, default: Default = _REQUIRED) -> bool | Default:
        if default is not _REQUIRED and key not in self:
            return default
        return self._scalar(key, frozenset({"boolean"}), "true or false")

    def text(self, key: str, default: Default = _REQUIRED) -> str | Default:
        """A text; bytes that are not UTF-8 become U+FFFD."""
        if default is not _REQUIRED and key not in self:
            return default
        entry = self._entry(key)
        if entry.kind != "text":
            raise self._mismatch(key, "a text")
        if entry.count > MAX_TEXT:
            raise self.fault(key, f"is a text of {entry.count} bytes; the limit is {MAX_TEXT}")
        return str(self._cursor.view[entry.at : entry.at + entry.count], "utf-8", "replace")

    def array(
        self,
        key: str,
        default: Default = _REQUIRED,
        *,
        items: Literal["text", "integer", "number", "boolean"] | None = None,
        length: int | None = None,
    ) -> Any | Default:
        """An array: `Texts`, or a read-only NumPy array (a view of the file where the byte order allows it).

        `items` and `length`, where given, are checked.
        """
        if default is not _REQUIRED and key not in self:
            return default
        entry = self._entry(key)
        if entry.kind != "array" or (items and entry.items not in _ITEMS[items]):
            raise self._mismatch(key, f"an array of {items}s" if items else "an array")
        if length is not None and entry.count != length:
            raise self.fault(key, f"has {entry.count} values, wanted {length},")
        view, order = self._cursor.view, self._cursor.order
        if entry.items == "text":
            return Texts(view, order, entry.at, entry.count)
        dtype = np.dtype(order + _CODES[entry.items])
        values = np.frombuffer(view, dtype, entry.count, entry.at) if entry.count else np.empty(0, dtype)
        values = values != 0 if entry.items == "boolean" else values.astype(dtype.newbyteorder("="), copy=False)
        values.flags.writeable = False
        return values

    def encoded(self, key: str) -> bytes:
        """A value of any type as a little-endian file holds it, its type in front."""
        entry = self._entry(key)
        kind = struct.pack("<I", KINDS.index(entry.kind))
        if entry.kind == "text":
            return kind + struct.pack("<Q", entry.count) + self._cursor.view[entry.at : entry.at + entry.count]
        if entry.kind != "array":
            return kind + struct.pack("<" + _CODES[entry.kind], entry.value)
        head = kind + struct.pack("<IQ", KINDS.index(entry.items), entry.count)
        values = self.array(key)
        if isinstance(values, Texts):
            return head + values.encoded()
        return head + values.astype("<" + ("u1" if values.dtype == bool else values.dtype.str[1:])).tobytes()

    def _entry(self, key: str) -> Entry:
        entry = self._entries.get(key)
        if entry is None:
            raise ModelError(f"gguf: {show(key)} missing in {self._cursor.label}")
        return entry

    def _scalar(self, key: str, kinds: frozenset[str], wanted: str) -> Any:
        entry = self._entry(key)
        if entry.kind not in kinds:
            raise self._mismatch(key, wanted)
        return entry.value

    def _within(self, key: str, value: Any, low: float | None, high: float | None) -> Any:
        if low is not None and value < low:
            raise self.fault(key, f"is {value}, wanted {low} or more,")
        if high is not None and value > high:
            raise self.fault(key, f"is {value}, wanted {high} or less,")
        return value

    def _mismatch(self, key: str, wanted: str) -> GGUFError:
        entry = self._entry(key)
        return self.fault(key, f"is {entry.kind}{' of ' + entry.items if entry.items else ''}, wanted {wanted},")


_ITEMS = {
    "text": {"text"},
    "integer": INTEGERS,
    "number": INTEGERS | FLOATS,
    "boolean": {"boolean"},
}


def _read_entry(cursor: Cursor) -> Entry:
    """The type and value at the cursor, left right behind them."""
    kind = _read_kind(cursor)
    if kind == "text":
        length = cursor.number("Q", "its length")
        return Entry(kind, cursor.take(length, "its text"), count=length)
    if kind == "array":
        return _read_array(cursor)
    at = cursor.pos
    value = cursor.number(_CODES[kind], f"its {kind} value")
    if kind == "boolean":
        if value > 1:
            raise cursor.fault(f"is boolean {value}, wanted 0 or 1,", at)
        value = bool(value)
    return Entry(kind, at, value)


def _read_array(cursor: Cursor) -> Entry:
    items = _read_kind(cursor)
    if items == "array":
        raise cursor.fault("is an array of arrays, which GGUF readers refuse,", cursor.pos - 4)
    at = cursor.pos
    count = cursor.number("Q", "its length")
    size = 8 if items == "text" else struct.calcsize("=" + _CODES[items])  # a text has at least its length field
    if count * size > cursor.left():
        raise cursor.fault(f"has {count} values of {size} bytes or more, {cursor.left()} bytes left,", at)
    start = cursor.pos
    if items == "text":
        cursor.skip_texts(count)
    else:
        cursor.take(count * size, "its values")
    return Entry("array", start, items=items, count=count)


def _read_kind(cursor: Cursor) -> str:
    at = cursor.pos
    kind = cursor.number("I", "its type")
    if kind >= len(KINDS):
        raise cursor.fault(f"has type {kind}; known are 0 to {len(KINDS) - 1},", at)
    return KINDS[kind]
