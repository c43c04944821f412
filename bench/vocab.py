"""Vocabularies for written models: taken from another GGUF, or made up. Knows nothing of weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import Any

NORMAL, CONTROL = 1, 3  # GGUF token types


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.*` says of a byte-level BPE."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int
    eos: int
    settings: dict[str, int | bool | str] = field(default_factory=dict)  # further keys, without the prefix

    def write(self, writer: Any) -> None:
        """Adds the keys to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        for key, value in self.settings.items():
            if isinstance(value, bool):
                writer.add_bool(f"tokenizer.{key}", value)
            elif isinstance(value, int):
                writer.add_uint32(f"tokenizer.{key}", value)
            else:
                writer.add_string(f"tokenizer.{key}", value)


def read_vocabulary(path: str | PathLike[str]) -> Vocabulary:
    """The byte-level BPE vocabulary of a GGUF."""
    from ..runtime.gguf import open_gguf

    with open_gguf(path) as g:
        meta, ggml = g.metadata, "tokenizer.ggml"
        settings: dict[str, int | bool | str] = {}
        for name in ("ggml.eot_token_id", "ggml.padding_token_id", "ggml.add_bos_token", "chat_template"):
            if f"tokenizer.{name}" in meta:
                value = meta[f"tokenizer.{name}"]
                assert isinstance(value, int | bool | str)
                settings[name] = value
        return Vocabulary(
            meta.text(f"{ggml}.pre", "default"),
            list(meta.array(f"{ggml}.tokens")),
            [int(t) for t in meta.array(f"{ggml}.token_type")],
            list(meta.array(f"{ggml}.merges")),
            meta.integer(f"{ggml}.bos_token_id", 0, low=0, high=1 << 31),
            meta.integer(f"{ggml}.eos_token_id", 0, low=0, high=1 << 31),
            settings,
        )


def synthetic_vocabulary(size: int) -> Vocabulary:
    """A byte-level BPE of `size` tokens (at least 260): the bytes, two-letter merges, control tokens."""
    if size < 260:
        raise ValueError(f"a byte-level vocabulary needs at least 260 tokens, {size} asked")
    letters = byte_characters()
    tokens, merges = list(letters), []
    for a in "Ġetaoinshr":
        for b in "etaoinshrdlu":
            if len(tokens) < size - 3:
                tokens.append(a + b)
                merges.append(f"{a} {b}")
    types = [NORMAL] * len(tokens)
    control = ["<|begin_of_text|>", "<|end_of_text|>"]
    control += [f"<|reserved_{i}|>" for i in range(size - len(tokens) - 2)]
    bos = len(tokens)
    return Vocabulary(
        "llama-bpe",
        tokens + control,
        types + [CONTROL] * len(control),
        merges,
        bos,
        bos + 1,
        {"ggml.add_bos_token": True},
    )


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in GPT-2's vocabulary (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters, extra = [], 256
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(extra))
            extra += 1
    return characters
