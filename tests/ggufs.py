"""Builds GGUF files for tests: sound ones through the `gguf` package, and raw bytes with every field in reach."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


@dataclass
class Key:
    """One key-value entry. `length` overrides the length field of a text or array."""

    name: str | bytes
    kind: int
    value: Any
    items: int = U32  # an array's element type
    length: int | None = None
    name_length: int | None = None

    def pack(self, order: str) -> bytes:
        head = text(self.name, order, self.name_length) + struct.pack(order + "I", self.kind)
        if self.kind == TEXT:
            return head + text(self.value, order, self.length)
        if self.kind == ARRAY:
            count = len(self.value) if self.length is None else self.length
            items = (
                b"".join(v if isinstance(v, bytes) else text(v, order) for v in self.value)
                if self.items == TEXT
                else b"".join(struct.pack(order + CODES.get(self.items, "B"), v) for v in self.value)
            )
            return head + struct.pack(order + "IQ", self.items, count) + items
        return head + struct.pack(order + CODES.get(self.kind, "I"), self.value)


@dataclass
class Tensor:
    """One tensor description, dims in file order; `offset` None lays it out after the one before."""

    name: str | bytes
    dims: Sequence[int] = (32, 2)
    kind: int = 0
    offset: int | None = None
    nbytes: int | None = None
    n_dims: int | None = None
    name_length: int | None = None


@dataclass
class Raw:
    """A whole file; counts and data can lie."""

    keys: list[Key] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    order: str = "<"
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32
    data: bytes | None = None

    def header(self) -> bytes:
        order = self.order
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        out = self.magic + struct.pack(order + "IQQ", self.version, n_tensors, n_keys)
        out += b"".join(k.pack(order) for k in self.keys)
        at = 0
        for t in self.tensors:
            offset = at if t.offset is None else t.offset
            out += text(t.name, order, t.name_length)
            out += struct.pack(order + "I", len(t.dims) if t.n_dims is None else t.n_dims)
            out += struct.pack(f"{order}{len(t.dims)}Q", *t.dims) + struct.pack(order + "IQ", t.kind, offset)
            at = padded(at + self._nbytes(t), self.alignment)
        return out

    def pack(self) -> bytes:
        out = self.header()
        if not self.tensors:
            return out
        total = sum(padded(self._nbytes(t), self.alignment) for t in self.tensors)
        data = bytes(i % 251 for i in range(total)) if self.data is None else self.data
        return out.ljust(padded(len(out), self.alignment), b"\0") + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pack())
        return path

    @staticmethod
    def _nbytes(t: Tensor) -> int:
        return t.nbytes if t.nbytes is not None else int(np.prod(t.dims)) * 4


def text(value: str | bytes, order: str = "<", length: int | None = None) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack(order + "Q", len(value) if length is None else length) + value


def padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def small(**changes: Any) -> Raw:
    """A sound file of some 500 bytes with a key of each sort and three tensors."""
    keys = [
        Key("general.architecture", TEXT, "llama"),
        Key("llama.block_count", U32, 2),
        Key("llama.rope.freq_base", F32, 10000.0),
        Key("tokenizer.ggml.add_bos_token", BOOL, 1),
        Key("tokenizer.ggml.tokens", ARRAY, ["<s>", "</s>", "é", ""], items=TEXT),
        Key("tokenizer.ggml.scores", ARRAY, [0.0, -1.0, -2.0, -3.0], items=F32),
    ]
    tensors = [Tensor("token_embd.weight", (32, 4)), Tensor("norm.weight", (32,)), Tensor("output.weight", (32, 4))]
    return Raw(**{"keys": keys, "tensors": tensors, **changes})


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray | tuple[np.ndarray, str]],
    keys: Mapping[str, Any] | None = None,
    *,
    arch: str = "llama",
    big_endian: bool = False,
    split: int = 0,
) -> Path:
    """Writes a sound file with the `gguf` package; a tensor is an array, or packed bytes [rows, n] and a format.

    `split` tensors go into each file of a set, whose first file is returned.
    """
    import gguf

    endian = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, arch, endianess=endian, split_max_tensors=split)
    for key, value in (keys or {}).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=gguf.GGMLQuantizationType[tensor[1]])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))
    return parts[0] if parts else path
