"""Llama as its papers write it, in float64, token by token, over a GGUF's tensors. An oracle for tests."""

from __future__ import annotations

import numpy as np
from layerlift.backends.numpy_decode import decode_rows
from layerlift.runtime.gguf import open_gguf


def forward(path, tokens, positions=None, *, style="norm"):
    """Logits [T, vocab] of all tokens; `style` "norm" or "neox" as in RopeSpec."""
    with open_gguf(path) as g:
        m, arch = g.metadata, g.metadata.text("general.architecture")
        n_layers, heads = m.integer(f"{arch}.block_count"), m.integer(f"{arch}.attention.head_count")
        kv_heads, eps = (
            m.integer(f"{arch}.attention.head_count_kv"),
            m.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        )
        base = m.number(f"{arch}.rope.freq_base")

        def tensor(name):
            info = g.tensors[name]
            rows = g.raw(name).reshape(info.shape[0] if len(info.shape) > 1 else 1, -1)
            return decode_rows(rows, info.fmt, info.shape[-1]).astype(np.float64).reshape(info.shape)

        def linear(h, name):
            bias = tensor(f"{name}.bias") if f"{name}.bias" in g.tensors else 0.0
            return h @ tensor(f"{name}.weight").T + bias

        def norm(h, name):
            return h / np.sqrt((h**2).mean(-1, keepdims=True) + eps) * tensor(f"{name}.weight")

        x = tensor("token_embd.weight")[tokens]
        head_dim = x.shape[1] // heads
        freq = base ** (-np.arange(0, head_dim, 2) / head_dim)
        if "rope_freqs.weight" in g.tensors:
            freq = freq / tensor("rope_freqs.weight")
        positions = np.arange(len(tokens)) if positions is None else np.asarray(positions)
        turn = np.exp(1j * positions[:, None, None] * freq)

        def rope(h):
            h = h.reshape(len(tokens), -1, head_dim)
            pairs = h.reshape(*h.shape[:2], -1, 2) if style == "norm" else np.stack(np.split(h, 2, -1), -1)
            z = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
            return np.stack([z.real, z.imag], -1 if style == "norm" else -2).reshape(h.shape)

        hidden = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
        for i in range(n_layers):
            h = norm(x, f"blk.{i}.attn_norm")
            q, k = rope(linear(h, f"blk.{i}.attn_q")), rope(linear(h, f"blk.{i}.attn_k"))
            v = linear(h, f"blk.{i}.attn_v").reshape(len(tokens), kv_heads, head_dim)
            k, v = np.repeat(k, heads // kv_heads, 1), np.repeat(v, heads // kv_heads, 1)
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim) + hidden
            p = np.exp(scores - scores.max(-1, keepdims=True))
            o = np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v).reshape(len(tokens), -1)
            x = x + linear(o, f"blk.{i}.attn_output")
            h = norm(x, f"blk.{i}.ffn_norm")
            gate = linear(h, f"blk.{i}.ffn_gate")
            x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"blk.{i}.ffn_up"), f"blk.{i}.ffn_down")
        name = "output" if "output.weight" in g.tensors else "token_embd"
        return linear(norm(x, "output_norm"), name)
