"""Llama 2, 3, 3.1 and 3.2, and what shares their architecture: SmolLM, TinyLlama, Mistral.

Touvron et al. 2023 (arXiv:2307.09288), Grattafiori et al. 2024 (arXiv:2407.21783). GGUF stores the rows of q and k
so that the halves of a rotated pair are neighbours: rope is "norm".
"""

from __future__ import annotations

from dataclasses import dataclass

from ...backends.base import Array, AttnSpec, Backend, Linear, Norm, RopeSpec, Step
from ..gguf import GGUF
from ..tensors import Tensors
from . import config
from .config import Config


def read_config(gguf: GGUF) -> Config:
    return config.read_config(gguf, rope_style="norm")


@dataclass(frozen=True)
class Block:
    """One layer: attention and a gated feed-forward network, each added to the residual stream."""

    layer: int
    is_last: bool
    attn: AttnSpec
    rope: RopeSpec
    attn_norm: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    ffn_norm: Norm
    gate: Linear
    up: Linear
    down: Linear

    @classmethod
    def load(cls, tensors: Tensors, c: Config, layer: int) -> Block:
        name = f"blk.{layer}"
        heads, kv_heads = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        return cls(
            layer,
            layer == c.n_layers - 1,
            c.attn,
            c.rope,
            attn_norm=tensors.norm(f"{name}.attn_norm", c.d_model, c.norm_eps),
            q=tensors.linear(f"{name}.attn_q", heads, c.d_model),
            k=tensors.linear(f"{name}.attn_k", kv_heads, c.d_model),
            v=tensors.linear(f"{name}.attn_v", kv_heads, c.d_model),
            o=tensors.linear(f"{name}.attn_output", c.d_model, heads),
            ffn_norm=tensors.norm(f"{name}.ffn_norm", c.d_model, c.norm_eps),
            gate=tensors.linear(f"{name}.ffn_gate", c.d_ff, c.d_model),
            up=tensors.linear(f"{name}.ffn_up", c.d_ff, c.d_model),
            down=tensors.linear(f"{name}.ffn_down", c.d_model, c.d_ff),
        )

    def __call__(self, b: Backend, x: Array, step: Step) -> Array:
        kv = step.kv[self.layer]
        q = b.qkv(x, self.attn_norm, self.q, self.k, self.v, self.rope, kv, step)  # [T, heads * head_dim]
        if self.is_last and not len(step.outputs):
            return b.select(x, step.outputs)  # a prompt's inner chunk: the cache is filled, nothing else is wanted
        o = b.attend(q, kv, step, self.attn)  # [T, heads * head_dim]
        if self.is_last:
            o, x = b.select(o, step.outputs), b.select(x, step.outputs)  # [n_out, …]
        x = b.project_add(o, self.o, x)  # [T, d]
        h = b.gated(x, self.ffn_norm, self.gate, self.up, "silu")  # [T, d_ff]
        return b.project_add(h, self.down, x)  # [T, d]
