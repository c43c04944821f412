"""Facts about `layerlift convert`: every weight arrives where it belongs, bit for bit, and what is wrong is named."""

from __future__ import annotations

import json

import gguf as gguf_package
import numpy as np
import pytest
from checkpoints import HEAD, SIZES, bits, weights, write_hf, write_meta, write_safetensors
from layerlift.runtime import convert
from layerlift.runtime.cli import main
from layerlift.runtime.errors import ConvertError, UserError
from layerlift.runtime.gguf import open_gguf
from paper import forward
from test_architectures import load
from test_model import logits_of, step_over

TOKENS = [5, 17, 123, 42, 7, 250, 3, 99]
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def converted(folder, target, **options):
    convert.write(convert.plan(folder, **options), target, progress=lambda done, total: None)
    return target


def paired(values: np.ndarray) -> np.ndarray:
    """Row 2i of a head is row i of its first half, row 2i+1 row i of its second."""
    out = np.empty_like(values)
    for head in range(len(values) // HEAD):
        first = head * HEAD
        out[first : first + HEAD : 2] = values[first : first + HEAD // 2]
        out[first + 1 : first + HEAD : 2] = values[first + HEAD // 2 : first + HEAD]
    return out


def gguf_names(arch) -> dict[str, str]:
    """GGUF's names by transformers', as the `gguf` package has them."""
    kind = {"llama": gguf_package.MODEL_ARCH.LLAMA, "qwen2": gguf_package.MODEL_ARCH.QWEN2}[arch]
    names = gguf_package.get_tensor_name_map(kind, SIZES["layers"])
    return {name: names.get_name(name, (".weight", ".bias")) for name in weights(biases=QKV)}


@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_every_weight_arrives_bit_for_bit_under_its_name(tmp_path, arch, fmt):
    given = weights(biases=QKV)
    name = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[arch]
    path = converted(write_hf(tmp_path / "hf", arch=name, fmt=fmt, tensors=given), tmp_path / "m.gguf")
    names = gguf_names(arch)
    with open_gguf(path) as g:
        assert set(g.tensors) == set(names.values())
        for name, values in given.items():
            swap = arch == "llama" and ("q_proj" in name or "k_proj" in name)
            values = paired(values) if swap else values
            assert g.tensors[names[name]].shape == values.shape
            assert bytes(g.raw(names[name])) == bits(values, fmt if values.ndim > 1 else "F32"), name


def test_a_converted_llama_computes_what_the_checkpoint_does(tmp_path):
    path = converted(write_hf(tmp_path / "hf", tensors=weights(biases=QKV)), tmp_path / "m.gguf")
    # The same weights with their rows as they were, and rope over halves: Hugging Face's way to the same numbers.
    plain = converted(
        write_hf(tmp_path / "q", arch="Qwen2ForCausalLM", tensors=weights(biases=QKV)), tmp_path / "q.gguf"
    )
    expected = forward(plain, TOKENS, style="neox")
    with load(path) as model:
        got = logits_of(model, step_over(model, TOKENS))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_sharded_checkpoint_gives_the_same_file(tmp_path):
    one = converted(write_hf(tmp_path / "a" / "m"), tmp_path / "one.gguf")
    three = converted(write_hf(tmp_path / "b" / "m", shards=3), tmp_path / "three.gguf")
    assert one.read_bytes() == three.read_bytes()


def test_the_settings_have_the_names_of_the_specification(tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    path = converted(write_hf(tmp_path / "hf", rope_scaling=scaling, sliding_window=64), tmp_path / "m.gguf")
    with open_gguf(path) as g:
        known = {
            value.replace("{arch}", "llama")
            for group in vars(gguf_package.Keys).values()
            if isinstance(group, type)
            for value in vars(group).values()
            if isinstance(value, str)
        }
        assert set(g.metadata.keys()) <= known
        read = g.metadata
        assert read.integer("llama.embedding_length") == SIZES["d"]
        assert read.integer("llama.block_count") == SIZES["layers"]
        assert read.integer("llama.attention.head_count_kv") == SIZES["kv_heads"]
        assert read.integer("llama.feed_forward_length") == SIZES["d_ff"]
        assert read.integer("llama.context_length") == 512
        assert read.integer("llama.rope.dimension_count") == HEAD
        assert read.number("llama.rope.freq_base") == 20000.0
        assert read.number("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
        assert read.text("llama.rope.scaling.type") == "yarn"
        assert read.number("llama.rope.scaling.factor") == 4.0
        assert read.integer("llama.rope.scaling.original_context_length") == 128
        assert read.integer("llama.attention.sliding_window") == 64
        assert read.integer("general.file_type") == gguf_package.LlamaFileType.ALL_F32


def test_llama3_scaling_stretches_slow_waves_and_keeps_fast_ones(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    path = converted(write_hf(tmp_path / "hf", rope_parameters=scaling), tmp_path / "m.gguf")
    with open_gguf(path) as g:
        factors = g.raw("rope_freqs.weight").view(np.float32)
    waves = 2 * np.pi * 20000.0 ** (np.arange(0, HEAD, 2) / HEAD)  # tokens a turn
    assert len(factors) == HEAD // 2
    assert (factors[waves < 64 / 4] == 1).all()
    assert (factors[waves > 64] == 8).all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_left_out(tmp_path, tied):
    given = weights()
    if not tied:
        given["lm_head.weight"] = given["model.embed_tokens.weight"].copy()  # tied in all but name
    folder = write_hf(tmp_path / "hf", tensors=given, tie_word_embeddings=tied)
    with open_gguf(converted(folder, tmp_path / "m.gguf")) as g:
        assert "output.weight" not in g.tensors


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_outtype_is_the_type_of_the_matrices(tmp_path, outtype):
    given = {name: (v * 1.2345).astype(np.float32) for name, v in weights().items()}
    folder = write_hf(tmp_path / "hf", tensors=given)
    with open_gguf(converted(folder, tmp_path / "m.gguf", outtype=outtype)) as g:
        # rows of 48 are no whole blocks of 32
        wanted = outtype.upper() if outtype != "q8_0" else "F16"
        assert {t.fmt for t in g.tensors.values() if len(t.shape) == 2} == {wanted}
        assert {t.fmt for t in g.tensors.values() if len(t.shape) == 1} == {"F32"}
        raw = g.raw("blk.0.ffn_up.weight")
        values = given["model.layers.0.mlp.up_proj.weight"]
        kind = gguf_package.GGMLQuantizationType[wanted]
        assert bytes(raw) == gguf_package.quants.quantize(values, kind).tobytes()


def test_q8_0_is_what_the_gguf_package_makes_of_it(tmp_path):
    from layerlift.runtime.convert.outtype import chunks
    from layerlift.runtime.convert.tensors import Stored

    values = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    values.tofile(tmp_path / "raw")
    stored = Stored("x", tmp_path / "raw", 0, "F32", (7, 96))
    got = b"".join(bytes(chunk) for chunk in chunks("x", stored, "Q8_0"))
    assert got == gguf_package.quants.quantize(values, gguf_package.GGMLQuantizationType.Q8_0).tobytes()


def test_a_number_beyond_f16_is_refused_with_its_place(tmp_path):
    given = weights()
    given["model.layers.1.mlp.up_proj.weight"][3, 5] = 70000.0
    folder = write_hf(tmp_path / "hf", tensors=given)
    with pytest.raises(ConvertError, match=r"blk.1.ffn_up.weight holds 70000, more than F16's 65504"):
        converted(folder, tmp_path / "m.gguf", outtype="f16")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]  # no half of a file is left


def test_a_dry_run_writes_nothing_and_says_what_it_would(tmp_path, capsys):
    folder, target = write_hf(tmp_path / "hf"), tmp_path / "m.gguf"
    assert main(["convert", str(folder), "-o", str(target), "--dry-run"]) == 0
    assert not target.exists()
    said = capsys.readouterr().err
    assert main(["convert", str(folder), "-o", str(target)]) == 0
    assert f"{target.stat().st_size / 1e6:.1f} MB" in said


def test_vocab_only_writes_the_tokenizer_and_no_tensors(tmp_path):
    path = converted(write_hf(tmp_path / "hf"), tmp_path / "m.gguf", vocab_only=True)
    with open_gguf(path) as g:
        assert not g.tensors
        assert len(g.metadata.array("tokenizer.ggml.tokens")) == SIZES["vocab"]


def test_a_checkpoint_folder_given_as_a_model_leads_to_convert(tmp_path, capsys):
    folder = write_hf(tmp_path / "hf")
    assert main(["--cli", "-m", str(folder), "-p", "x"]) == 2
    assert f"layerlift convert {folder}" in capsys.readouterr().err


# -- what is wrong --


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported"),
        ({"architectures": []}, "architecture none is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised already \(gptq\)"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "48"}, "'hidden_size' is 48; a whole number"),
        ({"hidden_size": 96}, r"token_embd.weight is \[300, 48\], the model's settings ask for \[300, 96\]"),
        ({"num_hidden_layers": 3}, r"'blk.2.attn_norm.weight'.* and 6 more missing"),
        ({"num_hidden_layers": 1}, "have no place in architecture 'llama'"),
        ({"vocab_size": 200}, "267 tokens, the model has embeddings for 200"),
        ({"rope_scaling": {"type": "longrope"}}, "'rope_type' is 'longrope'; known: default"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_scaling: 'low_freq_factor' is missing"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 64}}, "'beta_fast' is 64"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_converted_are_named(tmp_path, config, message):
    with pytest.raises(ConvertError, match=message):
        convert.plan(write_hf(tmp_path / "hf", **config))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data_offsets": [0, 4]}, "of 9600 bytes lies at 0 to 4"),
        ({"data_offsets": [0, 1 << 60]}, "lies at 0 to"),
        ({"data_offsets": [-8, 9592]}, "whole numbers from 0 on"),
        ({"data_offsets": [0, 9600]}, "overlap"),
        ({"shape": [50, -48]}, "whole numbers from 0 on"),
        ({"shape": [1 << 40, 1 << 40]}, "lies at"),
        ({"dtype": "F8_E4M3", "shape": [200, 48]}, "is F8_E4M3; F32, F16 and BF16"),
        ({"dtype": "Q4"}, "has the unknown type 'Q4'"),
        ({"shape": None}, "dtype, shape and data_offsets expected"),
    ],
    ids=str,
)
def test_a_lying_safetensors_header_is_refused(tmp_path, entry, message):
    folder = write_hf(tmp_path / "hf")
    given = {name: v for name, v in weights().items() if "rotary" not in name}
    given = {"model.embed_tokens.weight": given.pop("model.embed_tokens.weight"), **given}
    name = "model.layers.0.self_attn.q_proj.weight"
    given[name] = np.zeros((50, 48), np.float32)
    write_safetensors(folder / "model.safetensors", given, **{name: entry})
    with pytest.raises(ConvertError, match=message):
        convert.plan(folder)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, 3000, -1])
def test_a_cut_safetensors_file_is_refused(tmp_path, cut):
    file = write_hf(tmp_path / "hf") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ConvertError, match=r"model\.safetensors"):
        convert.plan(tmp_path / "hf")


def test_an_index_cannot_lead_out_of_the_folder(tmp_path):
    folder = write_hf(tmp_path / "hf", shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(ConvertError, match="is not beside it"):
        convert.plan(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_hf(tmp_path / "hf", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConvertError, match=r"model-00002-of-00002\.safetensors is missing"):
        convert.plan(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\xff"])
def test_a_damaged_config_is_named(tmp_path, text):
    folder = write_hf(tmp_path / "hf")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConvertError, match=r"config\.json"):
        convert.plan(folder)


def test_a_folder_without_a_checkpoint_and_a_path_without_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        convert.plan(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        convert.plan(tmp_path / "nowhere")


# -- Meta's folders --


@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize("fmt", ["F32", "BF16"])
def test_metas_shares_make_the_file_that_hugging_faces_folder_makes(tmp_path, shares, fmt):
    given = weights()
    as_meta = {n: paired(v) if "q_proj" in n or "k_proj" in n else v for n, v in given.items()}
    vocab = {"model.embed_tokens.weight", "lm_head.weight"}
    as_meta = {n: np.concatenate([v, v, v])[:512] if n in vocab else v for n, v in as_meta.items()}
    as_meta["lm_head.weight"][0] += 1  # not tied
    meta = converted(
        write_meta(tmp_path / "meta", as_meta, shares=shares, fmt=fmt, vocab_size=512), tmp_path / "m.gguf"
    )
    hf = converted(write_hf(tmp_path / "hf", fmt=fmt, tensors=given), tmp_path / "h.gguf")
    with open_gguf(meta) as a, open_gguf(hf) as b:
        assert set(a.tensors) == set(b.tensors)
        for name in set(a.tensors) - {"token_embd.weight", "output.weight"}:
            assert bytes(a.raw(name)) == bytes(b.raw(name)), name
        assert bytes(a.raw("token_embd.weight"))[: b.tensors["token_embd.weight"].nbytes] == bytes(
            b.raw("token_embd.weight")
        )


def test_metas_tied_head_is_found_by_its_content_and_scaled_rope_has_factors(tmp_path):
    given = weights(tied=True)
    given["model.embed_tokens.weight"] = np.concatenate([given["model.embed_tokens.weight"]] * 2)[:512]
    given["lm_head.weight"] = given["model.embed_tokens.weight"].copy()
    folder = write_meta(tmp_path / "meta", given, use_scaled_rope=True)
    with open_gguf(converted(folder, tmp_path / "m.gguf")) as g:
        assert "output.weight" not in g.tensors
        factors = g.raw("rope_freqs.weight").view(np.float32)
        assert factors[0] == 1
        assert factors[-1] == 32  # as in Llama 3.2, whose text models are the narrow ones
        assert g.metadata.integer("llama.context_length") == 131072


def test_a_missing_share_is_named(tmp_path):
    given = {n: np.concatenate([v, v])[:512] if v.shape[0] == SIZES["vocab"] else v for n, v in weights().items()}
    folder = write_meta(tmp_path / "meta", given, shares=2)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.02.pth")
    with pytest.raises(ConvertError, match=r"consolidated\.00\.pth is missing"):
        convert.plan(folder)
