"""Models that transformers saves compute the same here after `layerlift convert`, and PyTorch's files read the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from layerlift.runtime import convert
from layerlift.runtime.convert import pth
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.tokenizer import Tokenizer
from test_architectures import load
from test_model import logits_of, step_over

torch = pytest.importorskip("torch", reason="PyTorch and transformers come with the extra 'convert-test'")
transformers = pytest.importorskip("transformers", reason="transformers comes with the extra 'convert-test'")
pytestmark = pytest.mark.slow

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SIZES = {
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "initializer_range": 0.2,
}
CASES = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama 3 scaling": ("Llama", {"rope_scaling": LLAMA3}),
    "llama linear scaling": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama yarn": ("Llama", {"rope_scaling": YARN}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("Llama", {"head_dim": 32, "num_key_value_heads": 6}),
    "mistral window": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("Qwen2", {"rope_scaling": YARN}),
}


def saved(folder, name, settings, dtype=torch.float32):
    """A random model with random biases, saved with a byte-level tokenizer beside it."""
    from checkpoints import write_tokenizer

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().to(dtype)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    model = saved(tmp_path / "hf", *CASES[case])
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], 40).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    path = tmp_path / "m.gguf"
    convert.write(convert.plan(tmp_path / "hf"), path, progress=lambda done, total: None)
    with load(path) as converted:
        got = logits_of(converted, step_over(converted, tokens))
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"{error:.1e}"


def test_bf16_weights_are_kept_exactly_across_shards(tmp_path):
    model = saved(tmp_path / "hf", "Llama", {}, torch.bfloat16)
    model.save_pretrained(tmp_path / "hf", max_shard_size="200KB")
    (tmp_path / "hf" / "model.safetensors").unlink(missing_ok=True)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    path = tmp_path / "m.gguf"
    convert.write(convert.plan(tmp_path / "hf"), path, progress=lambda done, total: None)
    weight = model.model.layers[1].mlp.down_proj.weight.detach().view(torch.uint16).numpy()
    with open_gguf(path) as g:
        assert g.tensors["blk.1.ffn_down.weight"].fmt == "BF16"
        assert (g.raw("blk.1.ffn_down.weight").view(np.uint16).reshape(weight.shape) == weight).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_torch_saves_is_read_without_torch(tmp_path, dtype):
    torch.manual_seed(1)
    base = torch.randn(10, 7, dtype=getattr(torch, dtype))
    given = {"whole": base, "part": base[2:5], "vector": base[3], "parameter": torch.nn.Parameter(base.float())}
    path = tmp_path / "x.pth"
    torch.save(given, path)
    found = pth.read_header(path)
    assert set(found) == set(given)
    for name, value in given.items():
        kind = torch.uint16 if found[name].fmt == "BF16" else value.dtype
        assert (found[name].read(0, len(value)) == value.detach().view(kind).numpy()).all(), name


def test_a_llama_tokenizer_saved_by_transformers_cuts_texts_the_same(tmp_path, llama_vocab):
    """Llama 3's 128,256 tokens as a tokenizer.json, through transformers and into a GGUF."""
    from layerlift.runtime.vocab import CONTROL
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as HF

    with open_gguf(llama_vocab) as g:
        texts = list(g.metadata.array("tokenizer.ggml.tokens"))
        merges = [tuple(line.split(" ")) for line in g.metadata.array("tokenizer.ggml.merges")]
        kinds = list(g.metadata.array("tokenizer.ggml.token_type"))
        ours = Tokenizer.from_gguf(g)
    plain = {t: i for i, (t, kind) in enumerate(zip(texts, kinds, strict=True)) if kind != CONTROL}
    truth = HF(models.BPE(plain, merges, ignore_merges=True))
    truth.pre_tokenizer = ours.hf.pre_tokenizer
    truth.decoder = decoders.ByteLevel()
    truth.add_special_tokens(
        [AddedToken(t, special=True) for t, kind in zip(texts, kinds, strict=True) if kind == CONTROL]
    )
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=truth, **names).save_pretrained(tmp_path / "hf")
    config = {"architectures": ["LlamaForCausalLM"], **SIZES, "vocab_size": len(texts), "rms_norm_eps": 1e-5}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    path = tmp_path / "m.gguf"
    convert.write(convert.plan(tmp_path / "hf", vocab_only=True), path, progress=lambda done, total: None)
    cases = llama_vocab.with_name(llama_vocab.name + ".inp").read_text(encoding="utf-8")
    with open_gguf(path) as g:
        assert g.metadata.text("tokenizer.ggml.pre") == "llama-bpe"
        assert list(g.metadata.array("tokenizer.ggml.tokens")) == texts
        got = Tokenizer.from_gguf(g)
        assert got.eos == truth.token_to_id("<|eot_id|>")
    for text in cases.split("\n__ggml_vocab_test__\n"):
        assert got.encode(text, add_special=False) == truth.encode(text, add_special_tokens=False).ids, text
