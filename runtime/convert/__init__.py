"""`layerlift convert`: a checkpoint folder as it was published, written as one GGUF file.

The floor plan: a reader for each kind of folder (huggingface.py, meta.py) gives a Checkpoint, whose tensors are read
and written some rows at a time; nothing that a folder holds is ever run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..gguf_writer import NewTensor, file_nbytes, write_gguf
from . import huggingface, meta
from .checkpoint import Checkpoint
from .outtype import FILE_TYPES, chunks, format_of, outtype_of
from .source import template_text

__all__ = ["Plan", "is_checkpoint", "plan", "write"]


@dataclass(frozen=True)
class Plan:
    """A file that could be written: `outtype` is the format of its matrices, `nbytes` its length."""

    checkpoint: Checkpoint
    outtype: str
    keys: dict[str, Any]
    tensors: list[NewTensor]

    @property
    def nbytes(self) -> int:
        return file_nbytes(self.keys, self.tensors)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of one of the two kinds."""
    return huggingface.is_checkpoint(folder) or meta.is_checkpoint(folder)


def plan(folder: Path, *, outtype: str = "auto", vocab_only: bool = False, template: str | None = None) -> Plan:
    """Reads headers and settings, and checks that every tensor is there. Raises UserError, ConvertError.

    `template` is a chat template's name or file, which takes the place of the folder's own.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{str(folder)!r} {what}", hint="layerlift convert FOLDER -o model.gguf")
    reader = next((kind for kind in (huggingface, meta) if kind.is_checkpoint(folder)), None)
    if reader is None:
        raise UserError(
            f"folder {str(folder)!r} holds no checkpoint",
            hint="Hugging Face's have a config.json, Meta's a params.json and consolidated.00.pth",
        )
    checkpoint = reader.read(folder, with_tensors=not vocab_only)
    if template is not None:
        vocab = {**checkpoint.vocab, "tokenizer.chat_template": template_text(template)}
        checkpoint = replace(checkpoint, vocab=vocab)
    fmt = outtype_of(outtype, dict(checkpoint.tensors))
    tensors = [
        NewTensor(name, kind, tensor.shape, partial(chunks, name, tensor, kind))
        for name, tensor in checkpoint.tensors.items()
        for kind in (format_of(tensor, fmt),)
    ]
    return Plan(checkpoint, fmt, _keys(checkpoint, fmt), tensors)


def write(plan: Plan, target: Path, *, progress: Callable[[int, int], None]) -> None:
    """Writes the file; `progress` hears of bytes done and in all. Raises ConvertError, PackError."""
    done, total = 0, sum(tensor.nbytes for tensor in plan.tensors)

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    write_gguf(target, plan.keys, plan.tensors, advance=advance)


def _keys(checkpoint: Checkpoint, fmt: str) -> dict[str, Any]:
    general: dict[str, Any] = {
        "general.architecture": checkpoint.settings.arch,
        "general.type": "model",
        "general.name": checkpoint.name,
    }
    if checkpoint.tensors:
        general["general.size_label"] = _size_label(checkpoint.n_parameters)
        general["general.file_type"] = FILE_TYPES[fmt]
        general["general.quantization_version"] = 2
    return general | checkpoint.settings.keys() | dict(checkpoint.vocab)


def _size_label(n_parameters: int) -> str:
    """The number of weights in short: 135M, 1.2B."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if n_parameters >= size:
            number = n_parameters / size
            return f"{number:.1f}{letter}" if number < 10 and letter == "B" else f"{number:.0f}{letter}"
    return f"{n_parameters / 1e3:.0f}K"
