"""A vocabulary on its way to GGUF's `tokenizer.*` keys, whatever file it came from. Knows no file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ConvertError
from ..vocab import UNUSED

# GGUF's names of the special tokens by transformers' names ("seperator" is how the specification writes it).
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}


@dataclass
class Vocabulary:
    """Texts in the order of their ids, a kind of vocab.py for each, and merges ("gpt2") or scores ("llama")."""

    model: str
    pre: str
    texts: list[str]
    kinds: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    special: dict[str, int] = field(default_factory=dict)  # by the names of SPECIAL
    flags: dict[str, bool] = field(default_factory=dict)  # add_bos_token and the like
    templates: Mapping[str, str] = field(default_factory=dict)  # "default" and others
    notes: tuple[str, ...] = ()

    def fill(self, vocab_size: int, label: str) -> None:
        """Brings the texts to the number of rows that the embedding has. Raises ConvertError where there are more."""
        if len(self.texts) > vocab_size:
            raise ConvertError(
                f"{label}: {len(self.texts)} tokens, the model has embeddings for {vocab_size}",
                hint="tokens were added without resizing the model, or the tokenizer is another model's",
            )
        missing = range(len(self.texts), vocab_size)
        self.texts += [f"[PAD{i}]" for i in missing]
        self.kinds += [UNUSED] * len(missing)
        if self.scores is not None:
            self.scores += [-1000.0] * len(missing)

    @property
    def keys(self) -> dict[str, Any]:
        """The `tokenizer.*` keys."""
        keys: dict[str, Any] = {"model": self.model, "pre": self.pre, "tokens": self.texts}
        if self.scores is not None:
            keys["scores"] = np.array(self.scores, np.float32)
        keys["token_type"] = np.array(self.kinds, np.int32)
        if self.merges is not None:
            keys["merges"] = self.merges
        keys |= {f"{SPECIAL[name]}_token_id": id for name, id in self.special.items()}
        found = {f"tokenizer.ggml.{name}": value for name, value in (keys | self.flags).items()}
        for name, template in self.templates.items():
            found[f"tokenizer.chat_template{'' if name == 'default' else '.' + name}"] = template
        if others := [name for name in self.templates if name != "default"]:
            found["tokenizer.chat_templates"] = others
        return found


def in_order(ids: Mapping[str, int], label: str) -> list[str]:
    """Texts by id; an id that no text has becomes a placeholder. Raises ConvertError for ids that cannot be."""
    if not ids:
        raise ConvertError(f"{label}: the vocabulary is empty")
    most = max(4 * len(ids), 1 << 16)  # a few holes are usual
    bad = next((t for t, i in ids.items() if type(i) is not int or not 0 <= i < most), None)
    if bad is not None:
        raise ConvertError(f"{label}: token {bad[:60]!r} has the impossible id {str(ids[bad])[:40]}")
    texts = [f"[PAD{i}]" for i in range(max(ids.values()) + 1)]
    taken: dict[int, str] = {}
    for text, id in ids.items():
        if id in taken:
            raise ConvertError(f"{label}: tokens {taken[id][:60]!r} and {text[:60]!r} both have the id {id}")
        taken[id] = texts[id] = text
    return texts
