"""Reads a Hugging Face folder: config.json, the weights by transformers' names, the tokenizer.

The names of tensors and settings are those of transformers' `models/llama`, `models/mistral` and `models/qwen2`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConvertError, UserError
from . import json_file, pth, safetensors, tokenizer
from .checkpoint import Checkpoint, checked
from .settings import Reader, Settings, rope_scaling
from .tensors import Paired, Stored, Tensor

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in ("q", "k", "v")},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
_IGNORED = re.compile(r".*rotary_emb\.inv_freq")  # computed from the settings


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder has a config.json with architectures in it."""
    return (folder / "config.json").is_file()


def read(folder: Path, *, with_tensors: bool = True) -> Checkpoint:
    """The checkpoint in a folder. Raises ConvertError for what is damaged or not supported."""
    config = json_file.load(folder / "config.json")
    settings, notes = read_settings(config, str(folder / "config.json"))
    vocab = tokenizer.read(folder, config, settings.vocab_size)
    tensors: dict[str, Tensor] = {}
    if with_tensors:
        names = _renamed(_stored(folder), settings, folder)
        tied = True if config.get("tie_word_embeddings", False) else None
        tensors = checked(names, settings, folder, tied=tied)
    name = str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2] or folder.resolve().name
    return Checkpoint(name, settings, tensors, vocab.keys, (*notes, *vocab.notes))


def read_settings(config: Mapping[str, Any], label: str) -> tuple[Settings, list[str]]:
    """The settings in config.json, and what to tell the user about them."""
    names = config.get("architectures") or []
    arch = next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)
    if arch is None:
        found = ", ".join(str(name)[:60] for name in names) or "none"
        raise ConvertError(
            f"{label}: architecture {found} is not supported", hint=f"supported: {', '.join(ARCHITECTURES)}"
        )
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "")
        raise ConvertError(
            f"{label}: the weights are quantised already ({str(method)[:40]})",
            hint="convert the checkpoint that they were made from, then `layerlift quantize`",
        )
    reader = Reader(config, label)
    if (act := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise reader.fault("hidden_act", f"is {str(act)[:40]!r}; only 'silu' is supported")
    d_model, n_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    head_dim = reader.integer("head_dim", max(d_model // n_heads, 1))
    context = reader.integer("max_position_embeddings")
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = Reader({"rope_theta": config.get("rope_theta") or scaling.get("rope_theta")}, label)
    rope_base = base.number("rope_theta", 10000.0, low=1.0)
    rope, factors, note = rope_scaling(scaling, label, head_dim=head_dim, base=rope_base, context=context)
    settings = Settings(
        arch=arch,
        n_layers=reader.integer("num_hidden_layers", high=1 << 12),
        d_model=d_model,
        d_ff=reader.integer("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=reader.integer("num_key_value_heads", n_heads, high=n_heads),
        head_dim=head_dim,
        vocab_size=reader.integer("vocab_size"),
        context=context,
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope_base=rope_base,
        rope=rope,
        rope_factors=factors,
        window=_window(reader, arch),
    )
    return settings, [note] if note else []


def _window(reader: Reader, arch: str) -> int:
    """Tokens that each layer attends back to; 0 for all."""
    config = reader.values
    if not config.get("sliding_window") or (arch == "qwen2" and not config.get("use_sliding_window", False)):
        return 0
    window = reader.integer("sliding_window")
    if arch == "qwen2":  # the first max_window_layers attend to everything
        n_layers, full = reader.integer("num_hidden_layers"), reader.integer("max_window_layers", 28, low=0)
        if full >= n_layers:
            return 0
        if full:
            raise reader.fault("max_window_layers", f"is {full} of {n_layers}; layers that differ are not supported")
    return window


# -- the weights --


def _stored(folder: Path) -> Iterator[Stored]:
    """Every tensor of the folder's weight files: .safetensors, or else PyTorch's .bin."""
    for stem, suffix, read_header in (
        ("model", "safetensors", safetensors.read_header),
        ("pytorch_model", "bin", pth.read_header),
    ):
        index, alone = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.is_file():
            yield from _indexed(index, read_header)
            return
        files = [alone] if alone.is_file() else []
        if not files and suffix == "safetensors":
            files = sorted(folder.glob("*.safetensors"))
        for file in files:
            yield from read_header(file).values()
        if files:
            return
    raise UserError(
        f"folder {str(folder)!r} has no model.safetensors", hint="nor shards of it, nor a pytorch_model.bin"
    )


def _indexed(index: Path, read_header: Callable[[Path], dict[str, Stored]]) -> Iterator[Stored]:
    """Every tensor that an index names, from the file that it says has it."""
    places = _places(index)
    files = {index.parent / file for file in places.values()}
    if missing := sorted(file.name for file in files if not file.is_file()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConvertError(
            f"{index.parent / missing[0]} is missing{more}", hint=f"{index.name} names {len(files)} files"
        )
    for file in sorted(files):
        stored = read_header(file)
        for name in (name for name, place in places.items() if place == file.name):
            if name not in stored:
                raise ConvertError(
                    f"{index}: {file.name} has no tensor {name[:80]!r}", hint="the index is of another model"
                )
            yield stored[name]


def _places(index: Path) -> dict[str, str]:
    """The file of every tensor that an index names; each must lie beside it."""
    places = json_file.load(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConvertError(f"{index}: 'weight_map' is missing")
    for file in places.values():
        if not (isinstance(file, str) and re.fullmatch(r"[A-Za-z0-9][\w.\-]*", file)):
            raise ConvertError(f"{index}: names the file {str(file)[:80]!r}, which is not beside it")
    return places


def _renamed(stored: Iterator[Stored], settings: Settings, folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for tensor in stored:
        if _IGNORED.fullmatch(tensor.name):
            continue
        name = _gguf_name(tensor.name)
        if name in tensors:
            raise ConvertError(f"{folder}: tensor {tensor.name!r} is there twice")
        is_qk = re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", name)
        whole_heads = tensor.shape and tensor.shape[0] % settings.head_dim == 0 and settings.head_dim % 2 == 0
        swap = is_qk and whole_heads and settings.arch == "llama"
        tensors[name] = Paired(tensor, settings.head_dim) if swap else tensor
    return tensors


def _gguf_name(name: str) -> str:
    """GGUF's name of a tensor; an unknown one stays as it is, and has no place later."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if (match := re.fullmatch(r"model\.layers\.(\d{1,4})\.(.+)", stem)) and match[2] in _LAYER:
        return f"blk.{int(match[1])}.{_LAYER[match[2]]}.{kind}"
    return name
