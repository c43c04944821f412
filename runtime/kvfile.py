"""Saved sequences: the tokens and, layer by layer, their keys and values. Streams; never holds more than a group.

    magic 8 bytes, version u32, header length u32, header JSON
    tokens                      i32 [n]
    for each layer, for each group of GROUP tokens:
        keys, values            [group, n_kv_heads, head_dim] each
    sha256 of all the above     32 bytes

Everything is little-endian. Knows nothing of sequences or trees; the stores turn rows into arrays and back.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..backends.base import KVStore
from .errors import SessionError

MAGIC = b"LLIFTKV\n"
VERSION = 1
GROUP = 1024  # tokens read or written at once
MAX_HEADER = 1 << 20
PREAMBLE = struct.Struct("<8sII")
DTYPES = {"f16": np.dtype("<f2"), "bf16": np.dtype("<u2"), "f32": np.dtype("<f4")}
DIGEST_NBYTES = 32


@dataclass(frozen=True)
class Shape:
    """What a file and a cache must agree on."""

    fingerprint: str  # of the model
    dtype: str
    layers: tuple[tuple[int, int], ...]  # (n_kv_heads, head_dim) of each

    @classmethod
    def of(cls, fingerprint: str, stores: Sequence[KVStore]) -> Shape:
        dtype = stores[0].dtype if stores else "f16"
        return cls(fingerprint, dtype, tuple((store.n_kv_heads, store.head_dim) for store in stores))

    @property
    def token_nbytes(self) -> int:
        """Bytes of one token: its id, and its key and value in every layer."""
        return 4 + sum(2 * heads * dim for heads, dim in self.layers) * DTYPES[self.dtype].itemsize


# ---------------------------------------------------------------------------------------------------------------
# Writing


def save(
    path: str | PathLike[str],
    shape: Shape,
    tokens: NDArray[np.int32],
    shifted_at: int | None,
    stores: Sequence[KVStore],
    rows: NDArray[np.int32],
) -> None:
    """Writes `tokens` [n] and their `rows` [n] of every store. The old file stays until the new one is on disk."""
    header = {
        "fingerprint": shape.fingerprint,
        "dtype": shape.dtype,
        "layers": shape.layers,
        "tokens": len(tokens),
        "shifted_at": shifted_at,
    }
    try:
        with _replacing(os.path.realpath(path)) as file:
            digest = hashlib.sha256()
            for piece in _pieces(json.dumps(header).encode(), shape, tokens, stores, rows):
                digest.update(piece)
                file.write(piece)
            file.write(digest.digest())
    except OSError as error:
        raise SessionError(f"session {os.fspath(path)} cannot be written: {error.strerror or error}") from error


def _pieces(
    header: bytes, shape: Shape, tokens: NDArray[np.int32], stores: Sequence[KVStore], rows: NDArray[np.int32]
) -> Iterator[bytes | memoryview]:
    yield PREAMBLE.pack(MAGIC, VERSION, len(header)) + header
    yield tokens.astype("<i4").tobytes()
    dtype = DTYPES[shape.dtype]
    for store in stores:
        for start in range(0, len(rows), GROUP):
            for values in store.read(rows[start : start + GROUP]):  # keys, then values
                assert values.dtype == dtype, f"a {store.dtype} store gave {values.dtype}"
                yield np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8).data


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """A new file beside `path` that takes its place at the end, complete and on disk."""
    folder, name = os.path.split(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)  # the new name, too, survives a power cut
        finally:
            os.close(handle)


# ---------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Saved:
    """An open file, its digest verified, standing before the first layer."""

    path: str
    tokens: NDArray[np.int32]  # [n]
    shifted_at: int | None
    file: BinaryIO

    def restore(self, stores: Sequence[KVStore], rows: NDArray[np.int32]) -> None:
        """Writes keys and values to `rows` [n] of every store."""
        assert len(rows) == len(self.tokens)
        for store in stores:
            for start in range(0, len(rows), GROUP):
                group = rows[start : start + GROUP]
                shape = (len(group), store.n_kv_heads, store.head_dim)
                k, v = self._array(store, shape), self._array(store, shape)
                store.write(group, k, v)

    def _array(self, store: KVStore, shape: tuple[int, int, int]) -> NDArray[Any]:
        values = np.empty(shape, DTYPES[store.dtype])
        _fill(self.file, values.reshape(-1).view(np.uint8).data, self.path)
        return values


@contextmanager
def open_saved(path: str | PathLike[str], shape: Shape) -> Iterator[Saved]:
    """Opens a file and verifies all of it against its digest and against `shape`. Raises SessionError."""
    name = os.fspath(path)
    try:
        file = open(name, "rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise SessionError(f"session {name} cannot be read: {error.strerror or error}") from error
    with file:
        try:
            found, n, shifted_at, start = _read_header(file, name)
            _verify(file, name, start + n * found.token_nbytes)
            _compare(name, found, shape)
            file.seek(start)
            tokens = np.empty(n, "<i4")
            _fill(file, tokens.view(np.uint8).data, name)
        except OSError as error:
            raise SessionError(f"session {name} cannot be read: {error.strerror or error}") from error
        if (tokens < 0).any():
            raise SessionError(f"session {name} is damaged: token {int(tokens.min())}")
        yield Saved(name, tokens.astype(np.int32), shifted_at, file)


def _read_header(file: BinaryIO, name: str) -> tuple[Shape, int, int | None, int]:
    """What the header says, tokens, where they were shifted, and the offset behind it. All of it untrusted."""
    preamble = file.read(PREAMBLE.size)
    if not MAGIC.startswith(preamble[: len(MAGIC)]):
        raise SessionError(f"{name} is not a saved session")
    if len(preamble) < PREAMBLE.size:
        raise SessionError(f"session {name} is truncated: {len(preamble)} bytes")
    _, version, nbytes = PREAMBLE.unpack(preamble)
    if version != VERSION:
        raise SessionError(f"session {name} has version {version}, this program reads version {VERSION}")
    if nbytes > MAX_HEADER:
        raise SessionError(f"session {name} is damaged: a header of {nbytes} bytes")
    text = file.read(nbytes)
    if len(text) < nbytes:
        raise SessionError(f"session {name} is truncated: {PREAMBLE.size + len(text)} bytes")
    try:
        found, n, shifted_at = _parse_header(text)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SessionError(f"session {name} is damaged: its header cannot be read") from error
    return found, n, shifted_at, PREAMBLE.size + nbytes


def _parse_header(text: bytes) -> tuple[Shape, int, int | None]:
    header = json.loads(text)
    layers = tuple((_count(heads), _count(dim)) for heads, dim in header["layers"])
    found = Shape(str(header["fingerprint"]), header["dtype"], layers)
    _ = DTYPES[found.dtype]
    n, shifted_at = _count(header["tokens"]), header["shifted_at"]
    if shifted_at is not None and _count(shifted_at) >= n:
        raise ValueError("shifted behind the end")
    return found, n, shifted_at


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r} is not a count")
    return value


def _verify(file: BinaryIO, name: str, nbytes: int) -> None:
    """Checks the file's length and digest; `nbytes` are followed by the digest."""
    size = os.fstat(file.fileno()).st_size
    if size < nbytes + DIGEST_NBYTES:
        raise SessionError(f"session {name} is truncated: {size} of {nbytes + DIGEST_NBYTES} bytes")
    if size > nbytes + DIGEST_NBYTES:
        raise SessionError(f"session {name} is damaged: {size - nbytes - DIGEST_NBYTES} bytes too many")
    file.seek(0)
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    while nbytes:
        piece = block[: min(nbytes, len(block))]
        _fill(file, piece, name)
        digest.update(piece)
        nbytes -= len(piece)
    if file.read(DIGEST_NBYTES) != digest.digest():
        raise SessionError(f"session {name} is damaged: its sha256 does not match")


def _compare(name: str, found: Shape, shape: Shape) -> None:
    if found.fingerprint != shape.fingerprint:
        raise SessionError(
            f"session {name} is of another model: {found.fingerprint[:16]}, this one is {shape.fingerprint[:16]}",
            hint="load it with the model it was saved with",
        )
    if found.layers != shape.layers:
        raise SessionError(
            f"session {name} has {_layers(found)}, this model has {_layers(shape)} (key-value heads x size)"
        )
    if found.dtype != shape.dtype:
        raise SessionError(
            f"session {name} holds {found.dtype} keys and values, this cache holds {shape.dtype}",
            hint="use the cache type it was saved with",
        )


def _layers(shape: Shape) -> str:
    kinds = sorted({f"{heads}x{dim}" for heads, dim in shape.layers})
    return f"{len(shape.layers)} layers of {', '.join(kinds)}"


def _fill(file: BinaryIO, buffer: memoryview, name: str) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        except OSError as error:
            raise SessionError(f"session {name} cannot be read: {error.strerror or error}") from error
        if not count:
            raise SessionError(f"session {name} ended while it was read")
        done += count
