"""Importance matrices: the mean squared input of every column of a weight. Reads llama.cpp's two formats, writes one.

Knows nothing of models. The GGUF form has for each weight NAME the tensors NAME.in_sum2 [n, columns] and NAME.counts
[n, 1] (n: experts); the older one (.dat) is a run of name, calls and values with no magic number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...backends.numpy_decode import decode_rows
from ..errors import GGUFError, UserError
from ..gguf import GGUF, open_gguf
from ..gguf_writer import NewTensor, write_gguf

MAX_NAME = 256
SUFFIX, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Sums:
    """Of one weight: `squares` [n, columns] summed over `counts` [n] inputs."""

    squares: NDArray[np.float32]
    counts: NDArray[np.float32]


@dataclass(frozen=True)
class Imatrix:
    """Means [n * columns] by weight."""

    path: str
    means: dict[str, NDArray[np.float32]]
    dataset: str = ""
    chunks: int = 0


def read_imatrix(path: str) -> Imatrix:
    """Raises UserError where there is no such file, GGUFError where it is damaged or something else."""
    try:
        with open(path, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
            file.seek(0)
            data = b"" if is_gguf else file.read()
    except OSError as error:
        raise UserError(f"cannot read {path!r}: {error.strerror}") from None
    found = _read_gguf(path) if is_gguf else _read_dat(path, data)
    for name, mean in found.means.items():
        if not np.isfinite(mean).all() or (mean < 0).any():
            raise GGUFError(f"imatrix {path}: {name} holds a value that is negative or not finite")
    if not found.means:
        raise GGUFError(f"imatrix {path} has no entries")
    return found


def _read_gguf(path: str) -> Imatrix:
    with open_gguf(path) as gguf:
        kind = gguf.metadata.text("general.type", "")
        if kind != "imatrix":
            raise GGUFError(
                f"{path} is no importance matrix: its general.type is {kind!r}",
                hint="layerlift imatrix -m MODEL -f TEXT makes one",
            )
        datasets = gguf.metadata.array("imatrix.datasets", [], items="text")
        return Imatrix(
            path,
            {name.removesuffix(SUFFIX): _means(gguf, name) for name in gguf.tensors if name.endswith(SUFFIX)},
            next(iter(datasets), ""),
            gguf.metadata.integer("imatrix.chunk_count", 0, low=0),
        )


def _means(gguf: GGUF, name: str) -> NDArray[np.float32]:
    counts_name = name.removesuffix(SUFFIX) + COUNTS
    parts = []
    for each in (name, counts_name):
        info = gguf.tensors.get(each)
        if info is None:
            raise GGUFError(f"imatrix {gguf.path}: {each} missing")
        if info.fmt != "F32":
            raise GGUFError(f"imatrix {gguf.path}: {each} is {info.fmt}, wanted F32")
        parts.append(decode_rows(gguf.raw(each)[None], "F32", info.nbytes // 4)[0])
    sums, counts = parts
    if sums.size % counts.size:
        raise GGUFError(f"imatrix {gguf.path}: {name} has {sums.size} values for {counts.size} counts")
    sums, counts = sums.reshape(counts.size, -1), counts[:, None]
    # An expert that never had its turn: all its columns count alike.
    return np.where(counts > 0, sums / np.maximum(counts, 1e-30), np.float32(1)).astype(np.float32).reshape(-1)


def _read_dat(path: str, data: bytes) -> Imatrix:
    at = 0

    def fault(what: str) -> GGUFError:
        return GGUFError(f"{path} is no importance matrix, or damaged: {what} at byte {at}")

    def take(n: int, what: str) -> bytes:
        nonlocal at
        if n < 0 or n > len(data) - at:
            raise fault(f"{what} of {n} bytes")
        at += n
        return data[at - n : at]

    def integer(what: str) -> int:
        return struct.unpack("<i", take(4, what))[0]

    means = {}
    count = integer("the number of entries")
    if not 0 < count <= 0xFFFF:
        raise fault(f"{count} entries")
    for _ in range(count):
        length = integer("the length of a name")
        if not 0 < length <= MAX_NAME:
            raise fault(f"a name of {length} bytes")
        name = take(length, "a name").decode("utf-8", "replace")
        calls, values = integer("the number of calls"), integer("the number of values")
        if values < 1:
            raise fault(f"{values} values of {name!r}")
        mean = np.frombuffer(take(4 * values, f"values of {name!r}"), "<f4").astype(np.float32)
        means[name] = mean / np.float32(calls) if calls > 0 else mean
    if at == len(data):
        return Imatrix(path, means)
    chunks = integer("the number of chunks")
    dataset = take(integer("the length of the dataset's name"), "the dataset's name").decode("utf-8", "replace")
    return Imatrix(path, means, dataset, max(chunks, 0))


def write_imatrix(target: Path, sums: dict[str, Sums], *, dataset: str, chunks: int, chunk_size: int) -> None:
    """Writes llama.cpp's GGUF form. Raises PackError where the folder or the disk refuses."""
    keys = {
        "general.type": "imatrix",
        "imatrix.datasets": [dataset],
        "imatrix.chunk_count": chunks,
        "imatrix.chunk_size": chunk_size,
    }
    tensors = []
    for name, each in sums.items():
        for suffix, array in ((SUFFIX, each.squares), (COUNTS, each.counts[:, None])):
            data = np.ascontiguousarray(array, "<f4")
            tensors.append(NewTensor(name + suffix, "F32", data.shape, partial(_once, data.view(np.uint8).reshape(-1))))
    write_gguf(target, keys, tensors)


def _once(data: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [data]
