"""Finds a checkpoint's tokenizer by content, and what its settings say of special tokens and chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConvertError
from . import json_file, sentencepiece, tiktoken, tokenizer_json
from .vocabulary import SPECIAL, Vocabulary


def read(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """The tokenizer of a Hugging Face folder. Raises ConvertError where there is none that can be read."""
    settings = json_file.load_if_there(folder / "tokenizer_config.json")
    model, described = folder / "tokenizer.model", folder / "tokenizer.json"
    if described.is_file():
        vocab = tokenizer_json.read(described)
        if vocab.model == "llama" and model.is_file() and sentencepiece.is_model(model):
            vocab = _with_scores_of(sentencepiece.read(model), vocab)
    elif model.is_file():
        vocab = _read_model(model, has_tools=True)
        _add_tokens(vocab, settings, str(folder / "tokenizer_config.json"))
    else:
        raise ConvertError(f"{folder}: neither tokenizer.json nor tokenizer.model in it")
    generation = json_file.load_if_there(folder / "generation_config.json")
    ids = {text: id for id, text in enumerate(vocab.texts)}
    vocab.special |= _special(ids, settings, config, generation)
    for name in ("add_bos_token", "add_eos_token"):
        if isinstance(settings.get(name), bool):
            vocab.flags[name] = settings[name]
    if vocab.model == "llama" and isinstance(settings.get("add_prefix_space"), bool):
        vocab.flags["add_space_prefix"] = settings["add_prefix_space"]
    vocab.templates = _templates(folder, settings)
    vocab.fill(vocab_size, str(folder))
    return vocab


def read_meta(folder: Path, vocab_size: int, *, has_tools: bool) -> Vocabulary:
    """The tokenizer.model of Meta's folder; `has_tools` names the special tokens as Llama 3.1 and later do."""
    path = folder / "tokenizer.model"
    if not path.is_file():
        raise ConvertError(f"{path} is missing", hint="Meta publishes it beside the weights")
    vocab = _read_model(path, has_tools=has_tools)
    vocab.fill(vocab_size, str(folder))
    return vocab


def _read_model(path: Path, *, has_tools: bool) -> Vocabulary:
    return sentencepiece.read(path) if sentencepiece.is_model(path) else tiktoken.read(path, has_tools=has_tools)


def _with_scores_of(exact: Vocabulary, described: Vocabulary) -> Vocabulary:
    """SentencePiece's own scores, and the tokens that tokenizer.json adds behind them."""
    assert exact.scores is not None
    known = len(exact.texts)
    exact.texts += described.texts[known:]
    exact.scores += [-1000.0] * len(described.texts[known:])
    exact.kinds = exact.kinds + described.kinds[known:]
    exact.flags = {**described.flags, **exact.flags}
    return exact


def _add_tokens(vocab: Vocabulary, settings: Mapping[str, Any], label: str) -> None:
    """The tokens that tokenizer_config.json adds behind those of tokenizer.model."""
    added = settings.get("added_tokens_decoder") or {}
    entries = [{**entry, "id": int(id)} for id, entry in added.items() if str(id).isdigit()]
    for entry in sorted(entries, key=lambda entry: entry["id"]):
        if entry["id"] < len(vocab.texts):
            continue
        if entry["id"] > len(vocab.texts) or not isinstance(entry.get("content"), str):
            raise ConvertError(f"{label}: added token {entry['id']} follows on {len(vocab.texts)} tokens")
        vocab.texts.append(entry["content"])
        vocab.kinds.append(tokenizer_json.kind_of(entry))
        if vocab.scores is not None:
            vocab.scores.append(-1000.0)


def _special(
    ids: Mapping[str, int], settings: Mapping[str, Any], config: Mapping[str, Any], generation: Mapping[str, Any]
) -> dict[str, int]:
    """Ids of the special tokens: by text from the tokenizer's settings, else by number from the model's."""
    found = {}
    for name in SPECIAL:
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and text in ids:
            found[name] = ids[text]
            continue
        for source in (config, generation):
            id = source.get(f"{name}_token_id")
            id = id[0] if isinstance(id, list) and id else id
            if type(id) is int and 0 <= id < len(ids):
                found[name] = id
                break
    return found


def _templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; a file of its own counts more than the tokenizer's settings."""
    said = settings.get("chat_template") or json_file.load_if_there(folder / "chat_template.json").get("chat_template")
    found: dict[str, str] = {}
    if isinstance(said, str):
        found["default"] = said
    elif isinstance(said, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in said if isinstance(entry, dict)]
        found = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for file in files:
        if file.is_file():
            name = "default" if file.name == "chat_template.jinja" else file.name.removesuffix(".jinja")
            try:
                found[name] = file.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ConvertError(f"{file}: {error}") from None
    return found
