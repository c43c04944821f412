"""Each architecture against its paper, on random models."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from fake import HOST, open_fake
from layerlift.runtime.errors import GGUFError, ModelError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.model import Model, model_sizes
from layerlift.runtime.models import architecture
from layerlift.runtime.rope import read_rope
from layerlift.runtime.scheduler import plan_layers
from paper import forward
from test_model import logits_of, step_over

TOKENS = [5, 17, 123, 42, 7, 250, 3, 99]
SIZES = {"d": 128, "heads": 4, "kv_heads": 2, "d_ff": 192, "vocab": 300, "layers": 2}


def load(path) -> Model:
    file = open_gguf(path)
    arch = architecture(file)
    plan = plan_layers(model_sizes(file, arch.read_config(file), "f32"), 0, 512, [], host=HOST)
    return Model(file, plan, open_device=open_fake)


def write_qwen2(path, *, tied=False, **changes):
    """A random Qwen2 of two layers, biases and all."""
    s, rng = SIZES, np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "qwen2")
    settings = {
        "block_count": s["layers"],
        "context_length": 512,
        "embedding_length": s["d"],
        "feed_forward_length": s["d_ff"],
        "attention.head_count": s["heads"],
        "attention.head_count_kv": s["kv_heads"],
        **changes,
    }
    for key, value in settings.items():
        if value is not None:
            writer.add_uint32(f"qwen2.{key}", value)
    writer.add_float32("qwen2.rope.freq_base", 1e6)
    writer.add_float32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
    head = s["d"] // s["heads"]
    shapes = {"token_embd.weight": (s["vocab"], s["d"]), "output_norm.weight": (s["d"],)}
    if not tied:
        shapes["output.weight"] = (s["vocab"], s["d"])
    for i in range(s["layers"]):
        for name, rows, columns in (
            ("attn_q", s["heads"] * head, s["d"]),
            ("attn_k", s["kv_heads"] * head, s["d"]),
            ("attn_v", s["kv_heads"] * head, s["d"]),
            ("attn_output", s["d"], s["heads"] * head),
            ("ffn_gate", s["d_ff"], s["d"]),
            ("ffn_up", s["d_ff"], s["d"]),
            ("ffn_down", s["d"], s["d_ff"]),
        ):
            shapes[f"blk.{i}.{name}.weight"] = (rows, columns)
            if name in ("attn_q", "attn_k", "attn_v"):
                shapes[f"blk.{i}.{name}.bias"] = (rows,)
        shapes[f"blk.{i}.attn_norm.weight"] = shapes[f"blk.{i}.ffn_norm.weight"] = (s["d"],)
    for name, shape in shapes.items():
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.5
        writer.add_tensor(name, (rng.standard_normal(shape) * scale + (len(shape) == 1)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("fmt", ["F32", "Q8_0", "Q4_K"])
def test_llama_equals_its_paper(tiny, fmt):
    path = tiny(fmt)
    with load(path) as model:
        got = logits_of(model, step_over(model, TOKENS))
    assert np.abs(got - forward(path, TOKENS)).max() < 1e-4 * np.abs(got).max()


def test_llama_equals_its_paper_at_far_positions(tiny):
    """With Llama 3's frequency factors, at positions where float32 angles would be wrong."""
    path, far = tiny("F32"), np.array([0, 1, 700, 701, 9000, 50_000, 99_999, 100_000], np.int32)
    with load(path) as model:
        step = step_over(model, TOKENS)
        step.positions[:] = far
        got = logits_of(model, step)
    assert np.abs(got - forward(path, TOKENS, far)).max() < 1e-4 * np.abs(got).max()


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2_equals_its_paper(tmp_path, tied):
    path = write_qwen2(tmp_path / "qwen2.gguf", tied=tied)
    with load(path) as model:
        got = logits_of(model, step_over(model, TOKENS))
    assert np.abs(got - forward(path, TOKENS, style="neox")).max() < 1e-4 * np.abs(got).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, "qwen2.block_count"),
        ({"attention.head_count": 0}, "qwen2.attention.head_count"),
        ({"attention.head_count_kv": 0}, "qwen2.attention.head_count_kv"),
        ({"attention.head_count": 256}, "qwen2.attention.head_count' is 256, more than"),
        ({"attention.head_count_kv": 3}, "is 3, among which 4 heads do not divide"),
        ({"block_count": 3}, "blk.2.attn_norm.weight missing"),
        ({"feed_forward_length": 64}, "ffn_gate.weight is .192, 128.*ask for .64, 128"),
        ({"expert_count": 8}, "mixture of experts"),
        ({"attention.value_length": 16}, "keys of 32 and values of 16"),
        ({"rope.dimension_count": 31}, "31 dimensions of a head"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, changes, message):
    path = write_qwen2(tmp_path / "qwen2.gguf", **changes)
    with pytest.raises((ModelError, GGUFError), match=message):
        load(path)


class Meta(dict):
    """Metadata with the getters that read_rope uses."""

    def get_or(self, key, default, **_):
        return self.get(key, default)

    integer = number = text = get_or


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [1.0, 0.1, 0.01, 0.001]),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, [0.25, 0.025, 0.0025, 0.00025]),
        ({"scale_linear": 2.0}, [0.5, 0.05, 0.005, 0.0005]),
    ],
)
def test_rope_frequencies_follow_the_settings(keys, expected):
    meta = Meta({f"llama.rope.{k}": v for k, v in keys.items()})
    assert read_rope(meta, "llama", 8, 4096, "norm", None).inv_freq == pytest.approx(expected)


def test_yarn_keeps_fast_frequencies_and_stretches_slow_ones():
    keys = {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 4096}
    meta = Meta({f"llama.rope.{k}": v for k, v in keys.items()})
    spec, plain = (read_rope(m, "llama", 128, 32768, "neox", None) for m in (meta, Meta()))
    assert spec.inv_freq[:10] == pytest.approx(plain.inv_freq[:10])
    assert spec.inv_freq[-5:] == pytest.approx(plain.inv_freq[-5:] / 8)
    assert spec.magnitude == pytest.approx(1 + 0.1 * np.log(8))


def test_an_unknown_rope_scaling_is_named():
    with pytest.raises(ModelError, match="'wobble'; known"):
        read_rope(Meta({"llama.rope.scaling.type": "wobble"}), "llama", 8, 4096, "norm", None)
