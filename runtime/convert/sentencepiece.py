"""Reads tokenizer.model as Llama 2 publishes it: SentencePiece's protobuf, of which a few fields are needed.

Format: github.com/google/sentencepiece, `sentencepiece_model.proto`; protobuf.dev, "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConvertError
from ..vocab import BYTE, CONTROL, UNKNOWN
from .vocabulary import Vocabulary

MAX_NBYTES = 64 << 20
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.model_type


def is_model(path: Path) -> bool:
    """Whether a file begins as a list of pieces does, and not as a line of base64."""
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"\x0a"
    except OSError:
        return False


def read(path: Path) -> Vocabulary:
    """Pieces, scores and kinds; the numbers of the kinds are GGUF's too. Raises ConvertError."""
    try:
        if path.stat().st_size > MAX_NBYTES:
            raise ConvertError(f"{path} has {path.stat().st_size} bytes; the limit is {MAX_NBYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ConvertError(f"{path}: {error.strerror or error}") from None
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    kind_of_model, prefix = _UNIGRAM, True
    try:
        for number, value in _fields(data):
            if number == _PIECES and isinstance(value, bytes):
                text, score, kind = _piece(value)
                texts.append(text)
                scores.append(score)
                kinds.append(kind)
            elif number == _TRAINER and isinstance(value, bytes):
                kind_of_model = dict(_fields(value)).get(3, _UNIGRAM)
            elif number == _NORMALIZER and isinstance(value, bytes):
                prefix = bool(dict(_fields(value)).get(3, 1))  # add_dummy_prefix
    except (ValueError, IndexError, struct.error) as error:
        raise ConvertError(f"{path}: a damaged SentencePiece model: {str(error)[:100]}") from None
    if kind_of_model != _BPE:
        raise ConvertError(f"{path}: a SentencePiece model of type {kind_of_model}; only byte pairs (2) are supported")
    if len(set(texts)) != len(texts) or BYTE not in kinds:
        raise ConvertError(f"{path}: pieces are missing or there twice")
    special = {"unk": kinds.index(UNKNOWN)} if UNKNOWN in kinds else {}
    special |= {name: texts.index(text) for name, text in (("bos", "<s>"), ("eos", "</s>")) if text in texts}
    special = {name: id for name, id in special.items() if kinds[id] in (CONTROL, UNKNOWN)}
    flags = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": prefix}
    return Vocabulary("llama", "default", texts, kinds, scores=scores, special=special, flags=flags)


def _piece(data: bytes) -> tuple[str, float, int]:
    """Text, score and kind of a SentencePiece message."""
    fields = dict(_fields(data))
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0\0\0\0"), fields.get(3, 1)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int) and 1 <= kind <= 6):
        raise ValueError("a piece without text, score or kind")
    return text.decode("utf-8"), struct.unpack("<f", score)[0], kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message: an int, or the bytes of whatever has a length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        length = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(f"field {tag >> 3} at byte {at} runs past the end")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {at}")
