"""`layerlift quantize`: a GGUF with its weights in other types, written some rows at a time.

The plan says what every tensor becomes (mixes.py) before anything is written; the numbers are backends/quantize.py's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends.formats import BY_NAME
from ...backends.quantize import SOURCES, TARGETS, Quantizer, WrongNumber
from ..errors import GGUFError, ModelError, UserError
from ..gguf import GGUF, TensorInfo
from ..gguf_writer import Encoded, NewTensor, file_nbytes, write_open
from ..pack_writer import replacing
from ..weight_types import Mix, mix_named
from .imatrix import Imatrix, read_imatrix
from .mixes import PLAIN, Shape, Weight, Wishes, choose

__all__ = ["Imatrix", "Mix", "Plan", "Wishes", "format_named", "mix_named", "plan", "read_imatrix", "write"]

AT_ONCE = 1 << 22  # weights
QUANTIZATION_VERSION = 2  # ggml's
DROPPED = ("split.no", "split.count", "split.tensors.count", "general.alignment")


@dataclass(frozen=True)
class Change:
    """One tensor: what it is and what it becomes; `importance` [n, columns] where there is some."""

    info: TensorInfo
    fmt: str
    importance: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.info.shape[:-1]) * BY_NAME[self.fmt].row_nbytes(self.info.shape[-1])


@dataclass(frozen=True)
class Plan:
    """What would be written: the tensors of each file, and the keys of the first."""

    gguf: GGUF
    keys: dict[str, Any]
    parts: list[list[Change]]
    notes: list[str]

    @property
    def changes(self) -> list[Change]:
        return [change for part in self.parts for change in part]

    @property
    def nbytes(self) -> int:
        return sum(change.nbytes for change in self.changes)


def plan(
    gguf: GGUF,
    mix: Mix,
    wishes: Wishes = Wishes(),  # noqa: B008  (frozen)
    *,
    imatrix: Imatrix | None = None,
    requantize: bool = False,
    keep_split: bool = False,
) -> Plan:
    """Decides every tensor's type, and checks that it can be made. Raises UserError, GGUFError, ModelError."""
    kind = gguf.metadata.text("general.type", "model")
    if kind not in ("model", "adapter"):
        raise ModelError(f"gguf: {gguf.path} is a {kind}, not a model")
    weights = [Weight(info.name, info.fmt, info.shape) for info in gguf.tensors.values()]
    if not weights:
        raise ModelError(f"gguf: {gguf.path} has no tensors")
    formats = choose(weights, mix, _shape_of(gguf), wishes, has_imatrix=imatrix is not None)
    changes, notes = [], []
    for info in gguf.tensors.values():
        change = Change(info, formats[info.name])
        if change.fmt != info.fmt:
            _check(gguf, info, requantize)
            if imatrix and change.fmt not in PLAIN:
                change = replace(change, importance=_importance(imatrix, info, notes))
        changes.append(change)
    n_parts = len(gguf.parts) if keep_split else 1
    parts = [[c for c in changes if n_parts == 1 or c.info.part == part] for part in range(n_parts)]
    return Plan(gguf, _keys(gguf, mix, imatrix), parts, notes)


def format_named(word: str) -> str:
    """A tensor format that can be written, in any case. Raises UserError."""
    if word.upper() not in TARGETS:
        raise UserError(f"unknown tensor type {word!r}", hint="types: " + ", ".join(TARGETS))
    return word.upper()


def write(plan: Plan, target: Path, *, threads: int | None = None, progress: Callable[[int, int], None]) -> list[Path]:
    """Writes the file, or every part of a split one; their paths. All take their names together, at the end.

    `progress` hears of bytes read and in all. Raises ModelError for a weight that is no number, PackError where the
    folder or the disk refuses.
    """
    done, total = 0, sum(c.info.nbytes for c in plan.changes)

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    targets = _targets(target, len(plan.parts))
    _refuse_own_input(plan.gguf, targets)
    with Quantizer(threads) as quantizer, ExitStack() as open_files:
        tensors = [
            [
                NewTensor(c.info.name, c.fmt, c.info.shape, partial(_chunks, plan.gguf, c, quantizer, advance))
                for c in part
            ]
            for part in plan.parts
        ]
        keys = [_part_keys(plan, index) for index in range(len(targets))]
        sizes = [file_nbytes(k, t) for k, t in zip(keys, tensors, strict=True)]
        for index, path in enumerate(targets):
            file = open_files.enter_context(replacing(path, sizes[index] if index else sum(sizes)))
            write_open(file, keys[index], tensors[index])
    return targets


# -----------------------------------------------------------------------------------------------------------
# The plan


def _shape_of(gguf: GGUF) -> Shape:
    meta = gguf.metadata
    arch = meta.text("general.architecture")

    def count(key: str, default: int) -> int:
        """The value, or the first where layers differ."""
        name = f"{arch}.{key}"
        value = meta[name] if name in meta else default  # noqa: SIM401  (Metadata has no get)
        first = value[0] if isinstance(value, np.ndarray) and len(value) else value
        return int(first) if isinstance(first, int | np.integer) else default

    heads = count("attention.head_count", 1)
    kv_heads = count("attention.head_count_kv", heads)
    return Shape(arch, count("block_count", 1), heads, kv_heads, count("expert_count", 0))


def _check(gguf: GGUF, info: TensorInfo, requantize: bool) -> None:
    if info.fmt not in SOURCES:
        raise ModelError(f"gguf: {gguf.path}: tensor {info.name} is {info.fmt}, which cannot be decoded")
    if BY_NAME[info.fmt].block > 1 and not requantize:
        raise UserError(
            f"tensor {info.name} is {info.fmt}, quantised already",
            hint="start from the F16 or F32 file; --allow-requantize does it all the same, at a loss",
        )


def _importance(imatrix: Imatrix, info: TensorInfo, notes: list[str]) -> NDArray[np.float32] | None:
    """[n, columns], or None where the matrix does not have the tensor."""
    found = imatrix.means.get(info.name)
    columns, experts = info.shape[-1], info.shape[0] if len(info.shape) == 3 else 1
    if found is None:
        notes.append(f"{info.name} is not in {imatrix.path}: its columns count alike")
        return None
    if found.size != columns * experts:
        raise GGUFError(
            f"imatrix {imatrix.path}: {info.name} has {found.size} values, the tensor {columns * experts} columns",
            hint="it was made with another model",
        )
    # A column that never had an input would be free to take any value.
    floor = found.mean() * np.float32(1e-4)
    return np.maximum(found, floor if floor > 0 else np.float32(1)).reshape(experts, columns)


def _keys(gguf: GGUF, mix: Mix, imatrix: Imatrix | None) -> dict[str, Any]:
    keys: dict[str, Any] = {key: Encoded(gguf.metadata.encoded(key)) for key in gguf.metadata if key not in DROPPED}
    keys["general.quantization_version"] = QUANTIZATION_VERSION
    keys["general.file_type"] = mix.file_type
    if imatrix:
        keys["quantize.imatrix.file"] = imatrix.path
        if imatrix.dataset:
            keys["quantize.imatrix.dataset"] = imatrix.dataset
        keys["quantize.imatrix.entries_count"] = len(imatrix.means)
        if imatrix.chunks:
            keys["quantize.imatrix.chunks_count"] = imatrix.chunks
    return keys


def _part_keys(plan: Plan, index: int) -> dict[str, Any]:
    count = len(plan.parts)
    if count == 1:
        return plan.keys
    # In the widths that llama.cpp reads: uint16, and int32 for the tensors.
    split = {
        "split.no": Encoded(struct.pack("<IH", 2, index)),
        "split.count": Encoded(struct.pack("<IH", 2, count)),
        "split.tensors.count": Encoded(struct.pack("<Ii", 5, len(plan.changes))),
    }
    return (plan.keys if index == 0 else {}) | split


def _targets(target: Path, count: int) -> list[Path]:
    if count == 1:
        return [target]
    stem = target.name.removesuffix(".gguf")
    return [target.with_name(f"{stem}-{index + 1:05}-of-{count:05}.gguf") for index in range(count)]


def _refuse_own_input(gguf: GGUF, targets: list[Path]) -> None:
    sources = {os.path.realpath(file) for file, *_ in gguf.extents}
    for target in targets:
        if os.path.realpath(target) in sources:
            raise UserError(f"{str(target)!r} is the file that is read", hint="give the new file another name")


# -----------------------------------------------------------------------------------------------------------
# The bytes


def _chunks(
    gguf: GGUF, change: Change, quantizer: Quantizer, advance: Callable[[int], None]
) -> Iterator[NDArray[np.uint8]]:
    info, columns = change.info, change.info.shape[-1]
    rows = gguf.raw(info.name).reshape(-1, BY_NAME[info.fmt].row_nbytes(columns))
    step = max(1, AT_ONCE // columns)
    groups = 1 if change.importance is None else len(change.importance)
    length = len(rows) // groups
    for group in range(groups):
        importance = None if change.importance is None else change.importance[group]
        for first in range(group * length, (group + 1) * length, step):
            part = rows[first : min(first + step, (group + 1) * length)]
            if change.fmt == info.fmt:
                yield part.reshape(-1)
            else:
                yield _quantized(quantizer, part, first, change, importance).reshape(-1)
            advance(part.nbytes)
    gguf.release(info.name)


def _quantized(
    quantizer: Quantizer, part: NDArray[np.uint8], first: int, change: Change, importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    info = change.info
    try:
        return quantizer.rows(part, info.fmt, info.shape[-1], change.fmt, importance)
    except WrongNumber as error:
        reach = "not finite" if change.fmt in ("F32", "BF16") else "not finite, or above 65504"
        raise ModelError(
            f"tensor {info.name}, row {first + error.row}: a number is {reach}; {change.fmt} cannot hold it",
            hint="the file is damaged, or its model was" if reach == "not finite" else "bf16 holds large numbers",
        ) from None
