"""Reads the pickle in a PyTorch checkpoint without running anything: no name in it is ever looked up in Python.

A small machine for the few instructions that a dictionary of tensors needs. Names stand for themselves, and what a
pickle calls is compared with the four calls that such a dictionary is made of; every other name and instruction is
refused. Instructions: CPython's Lib/pickletools.py. The calls: torch/_utils.py and torch/serialization.py.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ConvertError

MAX_NBYTES = 16 << 20  # of a pickle; the 1,100 tensors of a 405B model take 0.3 MB
STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_MARK = object()


@dataclass(frozen=True)
class Name:
    """A global by name: nothing but the name."""

    text: str


@dataclass(frozen=True)
class Storage:
    """A run of `count` numbers in the archive's member `data/KEY`."""

    key: str
    fmt: str
    count: int


@dataclass(frozen=True)
class View:
    """A tensor: its place in a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_ORDERED_DICT = "collections.OrderedDict"
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
KNOWN = {_ORDERED_DICT, _TENSOR, _PARAMETER, *(f"torch.{name}" for name in STORAGES)}


def read(data: bytes, label: str) -> dict[str, View]:
    """The tensors of a pickled dictionary by name; entries that are no tensors are left out. Raises ConvertError."""
    if len(data) > MAX_NBYTES:
        raise ConvertError(f"{label}: a pickle of {len(data)} bytes; the limit is {MAX_NBYTES}")
    machine = _Machine(label)
    try:
        for opcode, argument, at in pickletools.genops(data):
            machine.step(opcode.name, argument, at or 0)
    except ConvertError:
        raise
    except Exception as error:  # pickletools raises what int(), struct and the codecs raise
        raise ConvertError(f"{label}: a damaged pickle: {str(error)[:120]}") from None
    if not isinstance(machine.result, dict):
        raise ConvertError(f"{label}: the pickle holds no dictionary of tensors")
    return {name: view for name, view in machine.result.items() if isinstance(name, str) and isinstance(view, View)}


class _Machine:
    """The stack and the memo; `result` is what is left at the end."""

    def __init__(self, label: str):
        self.label, self.at = label, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None
        self._steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys(_CONSTANTS, self.stack.append),
            **{name: lambda _, value=value: self.stack.append(value) for name, value in _SINGLES.items()},
            "MARK": lambda _: self.stack.append(_MARK),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "TUPLE": lambda _: self.stack.append(tuple(self._to_mark())),
            "LIST": lambda _: self.stack.append(self._to_mark()),
            "TUPLE1": lambda _: self.stack.append((self._pop(),)),
            "TUPLE2": lambda _: self.stack.append(tuple(self._take(2))),
            "TUPLE3": lambda _: self.stack.append(tuple(self._take(3))),
            "APPEND": lambda _: self._append([self._pop()]),
            "APPENDS": lambda _: self._append(self._to_mark()),
            "SETITEM": lambda _: self._set(self._take(2)),
            "SETITEMS": lambda _: self._set(self._to_mark()),
            "MEMOIZE": lambda _: self._put(len(self.memo)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self._get),
            "GLOBAL": lambda argument: self._name(argument.replace(" ", ".", 1)),
            "STACK_GLOBAL": lambda _: self._stack_name(),
            "BINPERSID": lambda _: self.stack.append(self._storage(self._pop())),
            "REDUCE": lambda _: self.stack.append(self._call(*self._take(2))),
            "BUILD": lambda _: self._build(),
            "POP": lambda _: self._drop(),
            "STOP": lambda _: self._stop(),
        }

    def step(self, name: str, argument: Any, at: int) -> None:
        self.at = at
        run = self._steps.get(name)
        if run is None:
            raise self._fault(f"the instruction {name}, which a dictionary of tensors does not need")
        run(argument)

    def _fault(self, what: str) -> ConvertError:
        return ConvertError(
            f"{self.label}: {what}, at byte {self.at} of its pickle",
            hint="a checkpoint of tensors alone is read; nothing in this file was run",
        )

    # -- the stack --

    def _pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self._fault("an instruction without its operands")
        return self.stack.pop()

    def _take(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        self._drop()  # the mark
        return items[::-1]

    def _drop(self) -> None:
        if not self.stack:
            raise self._fault("an instruction without its operands")
        self.stack.pop()

    def _top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise self._fault(f"an instruction that wants a {kind.__name__} and finds none")
        return self.stack[-1]

    def _append(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise self._fault("a key without its value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # hashing what is nested may be endless
                raise self._fault("a key that is neither text nor number")
            target[key] = value

    def _put(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise self._fault("an instruction without its operands")
        self.memo[int(index)] = self.stack[-1]

    def _get(self, index: int) -> None:
        if int(index) not in self.memo:
            raise self._fault(f"a look at place {index} of the memo, which is empty")
        self.stack.append(self.memo[int(index)])

    # -- names and calls --

    def _name(self, text: str) -> None:
        if text not in KNOWN:
            raise self._fault(f"it asks for {text[:100]!r}, which is refused")
        self.stack.append(Name(text))

    def _stack_name(self) -> None:
        module, name = self._take(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise self._fault("a name that is no text")
        self._name(f"{module}.{name}")

    def _storage(self, id: Any) -> Storage:
        """Of the tuple ("storage", type, key, device, count)."""
        if isinstance(id, tuple) and len(id) == 5 and id[0] == "storage" and isinstance(id[1], Name):
            _, kind, key, _, count = id
            fmt = STORAGES.get(kind.text.removeprefix("torch."))
            if fmt and isinstance(key, str) and key.isalnum() and type(count) is int and count >= 0:
                return Storage(key, fmt, count)
        raise self._fault("a reference that is no tensor's storage")

    def _call(self, what: Any, arguments: Any) -> Any:
        if not isinstance(what, Name) or not isinstance(arguments, tuple):
            raise self._fault("a call of what is no name")
        if what.text == _ORDERED_DICT and not arguments:
            return {}
        if what.text == _PARAMETER and arguments and isinstance(arguments[0], View):
            return arguments[0]
        if what.text == _TENSOR and len(arguments) >= 4:
            storage, offset, shape, strides = arguments[:4]
            if isinstance(storage, Storage) and _counts((offset,)) and _counts(shape) and _counts(strides):
                return View(storage, offset, shape, strides)
        raise self._fault(f"a call of {what.text} with arguments that make no tensor")

    def _build(self) -> None:
        """What PyTorch hangs on a dictionary, its version notes, is not needed."""
        self._pop()
        self._top(dict)

    def _stop(self) -> None:
        self.result = self._pop()


_CONSTANTS = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "UNICODE"),
)
_SINGLES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def _counts(values: Any) -> bool:
    """Whether this is a tuple of a few counts."""
    return isinstance(values, tuple) and len(values) <= 8 and all(type(n) is int and n >= 0 for n in values)
