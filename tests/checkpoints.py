"""Writes small checkpoint folders as Hugging Face's and Meta's tools do, without those tools."""

from __future__ import annotations

import base64
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from layerlift.runtime.pretokenizers import PRETOKENIZERS
from layerlift.runtime.tokenizer import CHAR_OF_BYTE, cutter

SIZES = {"d": 48, "heads": 6, "kv_heads": 2, "d_ff": 80, "vocab": 300, "layers": 2}
HEAD = SIZES["d"] // SIZES["heads"]
CONFIG = {
    "hidden_size": SIZES["d"],
    "num_attention_heads": SIZES["heads"],
    "num_key_value_heads": SIZES["kv_heads"],
    "intermediate_size": SIZES["d_ff"],
    "num_hidden_layers": SIZES["layers"],
    "vocab_size": SIZES["vocab"],
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 20000.0,
    "hidden_act": "silu",
}
STORED = {"F32": np.float32, "F16": np.float16}


def weights(*, seed: int = 1, biases: tuple[str, ...] = (), tied: bool = False) -> dict[str, np.ndarray]:
    """Random float32 weights by transformers' names; the values are BF16's and F16's too."""
    s, rng = SIZES, np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (s["vocab"], s["d"])}
    for i in range(s["layers"]):
        for name, rows, columns in (
            ("self_attn.q_proj", s["d"], s["d"]),
            ("self_attn.k_proj", s["kv_heads"] * HEAD, s["d"]),
            ("self_attn.v_proj", s["kv_heads"] * HEAD, s["d"]),
            ("self_attn.o_proj", s["d"], s["d"]),
            ("mlp.gate_proj", s["d_ff"], s["d"]),
            ("mlp.up_proj", s["d_ff"], s["d"]),
            ("mlp.down_proj", s["d"], s["d_ff"]),
        ):
            shapes[f"model.layers.{i}.{name}.weight"] = (rows, columns)
            if name in biases:
                shapes[f"model.layers.{i}.{name}.bias"] = (rows,)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (s["d"],)
        shapes[f"model.layers.{i}.post_attention_layernorm.weight"] = (s["d"],)
    shapes["model.norm.weight"] = (s["d"],)
    if not tied:
        shapes["lm_head.weight"] = (s["vocab"], s["d"])
    # 1/64 … 1 in steps of 1/64: exact in every type
    return {name: (rng.integers(1, 65, shape) * rng.choice([-1, 1], shape) / 64.0).astype(np.float32)
            for name, shape in shapes.items()}  # fmt: skip


def bits(values: np.ndarray, fmt: str) -> bytes:
    """Numbers as a checkpoint stores them; BF16 is the upper half of F32."""
    if fmt == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype(STORED[fmt]).tobytes()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], fmt: str = "F32", **changes: Any) -> Path:
    """One file; `changes` replace a tensor's entry in the header."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = bits(values, fmt)
        header[name] = {
            "dtype": fmt,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
            **changes.get(name, {}),
        }
        data += raw
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def write_tokenizer(folder: Path, *, pre: str = "llama-bpe", n_tokens: int = 300, **settings: Any) -> None:
    """A tokenizer.json of bytes, a few merges and two special tokens, and its settings."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    texts = [CHAR_OF_BYTE[b] for b in range(256)]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("e", "r"), ("1", "2"), ("12", "3")]
    texts += [a + b for a, b in merges]
    model = models.BPE({t: i for i, t in enumerate(texts)}, merges, ignore_merges=PRETOKENIZERS[pre].ignore_merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = cutter(PRETOKENIZERS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|begin|>", special=True), AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "add_bos_token": True, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_hf(
    folder: Path,
    *,
    arch: str = "LlamaForCausalLM",
    fmt: str = "F32",
    shards: int = 1,
    tensors: dict[str, np.ndarray] | None = None,
    **config: Any,
) -> Path:
    """A whole Hugging Face folder; the weights are those of `weights()` unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights() if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps({"architectures": [arch], **CONFIG, **config}))
    write_tokenizer(folder)
    names = list(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, fmt)
        return folder
    places = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[i::shards]
        write_safetensors(folder / file, {name: tensors[name] for name in mine}, fmt)
        places |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


# -- Meta's --

META = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
PARAMS = {"dim": SIZES["d"], "n_layers": SIZES["layers"], "n_heads": SIZES["heads"], "n_kv_heads": SIZES["kv_heads"]}
PARAMS |= {"vocab_size": SIZES["vocab"], "norm_eps": 1e-5, "rope_theta": 500000.0, "multiple_of": 16}


def meta_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in META:
        return f"{META[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"layers.{layer}.{META[rest]}.weight"


def write_meta(
    folder: Path, tensors: dict[str, np.ndarray], *, shares: int = 1, fmt: str = "F32", **params: Any
) -> Path:
    """A whole Meta folder; `tensors` have transformers' names but q and k rows as Meta keeps them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    parts: list[dict[str, np.ndarray]] = [{} for _ in range(shares)]
    for name, values in tensors.items():
        axis = 1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0
        split = [values] * shares if values.ndim == 1 else np.split(values, shares, axis)
        for part, mine in zip(parts, split, strict=True):
            part[meta_name(name)] = mine
    for i, part in enumerate(parts):
        write_pth(folder / f"consolidated.{i:02d}.pth", part, fmt)
    # Bytes alone: with the 256 special tokens behind them the smallest vocabulary there can be, of 512.
    lines = [base64.b64encode(bytes([b])) + b" %d" % b for b in range(256)]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def write_pth(path: Path, tensors: dict[str, np.ndarray], fmt: str = "F32", *, pickle: bytes | None = None) -> Path:
    """What torch.save writes of a dictionary; `pickle` takes the place of its pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("consolidated/data.pkl", pickled(tensors, fmt) if pickle is None else pickle)
        archive.writestr("consolidated/byteorder", "little")
        for i, values in enumerate(tensors.values()):
            archive.writestr(f"consolidated/data/{i}", bits(values, fmt))
        archive.writestr("consolidated/version", "3\n")
    return path


def pickled(
    tensors: dict[str, np.ndarray], fmt: str = "F32", strides: dict[str, tuple[int, ...]] | None = None
) -> bytes:
    """The pickle of a dictionary of tensors, instruction by instruction."""
    kind = {"F32": b"FloatStorage", "F16": b"HalfStorage", "BF16": b"BFloat16Storage", "F64": b"DoubleStorage"}[fmt]
    out = b"\x80\x02}q\x00("
    for i, (name, values) in enumerate(tensors.items()):
        steps = tuple(n // values.itemsize for n in np.ascontiguousarray(values).strides)
        steps = (strides or {}).get(name, steps)
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += text("storage") + b"ctorch\n" + kind + b"\n" + text(str(i)) + text("cpu") + number(values.size) + b"tQ"
        out += number(0) + numbers(values.shape) + numbers(steps) + b"\x89ccollections\nOrderedDict\n)RtR"
    return out + b"u."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"
