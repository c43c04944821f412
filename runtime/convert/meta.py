"""Reads Meta's own checkpoint folder: params.json, consolidated.NN.pth, tokenizer.model.

Each file holds one share of every matrix, as the ranks of a tensor-parallel run had them (fairscale's layers in
Meta's llama3 `model.py`). Rows of q and k lie as GGUF wants them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import ConvertError
from . import json_file, pth, tokenizer
from .checkpoint import Checkpoint, checked
from .settings import Reader, Settings, llama3_factors
from .tensors import Joined, Tensor

_TOP = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
_TOP |= {"output.weight": "output.weight"}
_LAYER = {
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
_ROWS = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "output")  # shared out by rows
_COLUMNS = ("attn_output", "ffn_down")
_LLAMA3_VOCAB = 128256


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder has Meta's files."""
    return (folder / "params.json").is_file() and any(folder.glob("consolidated.*.pth"))


def read(folder: Path, *, with_tensors: bool = True) -> Checkpoint:
    """The checkpoint in a folder. Raises ConvertError for what is damaged or not supported."""
    params = json_file.load(folder / "params.json")
    shares = [pth.read_header(file) for file in _files(folder)]
    names = sorted(set().union(*shares))
    d_model = Reader(params, str(folder / "params.json")).integer("dim")
    tensors = {
        _gguf_name(name): _whole(name, [share.get(name) for share in shares], d_model, folder)
        for name in names
        if name != "rope.freqs"  # computed from the settings
    }
    settings = read_settings(params, tensors, folder)
    vocab = tokenizer.read_meta(folder, settings.vocab_size, has_tools=settings.rope_factors is not None)
    found = checked(tensors, settings, folder) if with_tensors else {}
    return Checkpoint(folder.resolve().name, settings, found, vocab.keys, vocab.notes)


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("consolidated.*.pth"))
    expected = [f"consolidated.{i:02d}.pth" for i in range(len(files))]
    if missing := sorted(set(expected) - {file.name for file in files}):
        raise ConvertError(f"{folder / missing[0]} is missing; there are {len(files)} other shares")
    return files


def _whole(name: str, parts: list[Any], d_model: int, folder: Path) -> Tensor:
    """A tensor put together from its shares."""
    if None in parts:
        raise ConvertError(f"{folder}: tensor {name!r} is not in consolidated.{parts.index(None):02d}.pth")
    if len({(part.fmt, part.shape) for part in parts}) > 1:
        raise ConvertError(f"{folder}: the shares of tensor {name!r} differ in shape or type")
    gguf = _gguf_name(name).removesuffix(".weight").rpartition(".")[2]
    if len(parts) == 1 or len(parts[0].shape) != 2:
        return parts[0]
    if gguf in _ROWS:
        return Joined(parts, 0)
    if gguf in _COLUMNS:
        return Joined(parts, 1)
    # The embedding is shared out by rows since Llama 3, by columns before.
    return Joined(parts, 1 if parts[0].shape[1] * len(parts) == d_model else 0)


def _gguf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    match = re.fullmatch(r"layers\.(\d{1,4})\.(.+)\.weight", name)
    return f"blk.{int(match[1])}.{_LAYER[match[2]]}.weight" if match and match[2] in _LAYER else name


def read_settings(params: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Settings:
    """The settings in params.json; what it does not say is read off the tensors or known of the Llama family."""
    reader = Reader(params, str(folder / "params.json"))
    if "moe_args" in params or "moe" in params or "quantization_args" in params:
        what = "a mixture of experts" if "quantization_args" not in params else "quantised weights"
        raise ConvertError(f"{reader.label}: {what} is not supported")
    d_model, n_heads = reader.integer("dim"), reader.integer("n_heads")
    embedding, gate = tensors.get("token_embd.weight"), tensors.get("blk.0.ffn_gate.weight")
    if embedding is None or gate is None:
        raise ConvertError(f"{folder}: tensors 'tok_embeddings.weight' and 'layers.0.feed_forward.w1.weight' missing")
    rope_base, scaled = reader.number("rope_theta", 10000.0, low=1.0), bool(params.get("use_scaled_rope"))
    head_dim, norm_eps = reader.integer("head_dim", d_model // n_heads), reader.number("norm_eps", 1e-5)
    factors = None
    if scaled:
        # Llama 3.1 stretches by 8; 3.2's text models of 1B and 3B, the only ones narrower than 4096, by 32.
        usual = {
            "factor": params.get("rope_scaling_factor") or (8.0 if d_model >= 4096 else 32.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": params.get("rope_high_freq_factor") or 4.0,
            "original_max_position_embeddings": 8192,
        }
        factors = llama3_factors(Reader(usual, reader.label), head_dim=head_dim, base=rope_base)
    return Settings(
        arch="llama",
        n_layers=reader.integer("n_layers", high=1 << 12),
        d_model=d_model,
        d_ff=gate.shape[0],
        n_heads=n_heads,
        n_kv_heads=reader.integer("n_kv_heads", n_heads, high=n_heads),
        head_dim=head_dim,
        vocab_size=embedding.shape[0],
        context=_context(scaled=scaled, vocab_size=embedding.shape[0], rope_base=rope_base, norm_eps=norm_eps),
        norm_eps=norm_eps,
        rope_base=rope_base,
        rope_factors=factors,
    )


def _context(*, scaled: bool, vocab_size: int, rope_base: float, norm_eps: float) -> int:
    """Tokens that the model was trained for, which params.json does not say."""
    if scaled:
        return 131072  # Llama 3.1 and 3.2
    if vocab_size == _LLAMA3_VOCAB:
        return 8192
    if rope_base == 1e6:
        return 16384  # Code Llama
    return 2048 if norm_eps == 1e-6 else 4096  # Llama, Llama 2
