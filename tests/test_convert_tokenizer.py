"""Facts about tokenizers on their way into a GGUF: what is recognised, and that texts are cut as they were."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
from checkpoints import SIZES, write_hf, write_tokenizer
from layerlift.runtime import convert
from layerlift.runtime.convert import sentencepiece, tiktoken, tokenizer_json
from layerlift.runtime.convert.tokenizer import read
from layerlift.runtime.errors import ConvertError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.pretokenizers import PRETOKENIZERS
from layerlift.runtime.tokenizer import BYTE_OF_CHAR, Tokenizer
from layerlift.runtime.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

TEXTS = (
    "Hello, world! I'm 1234567 years old.",
    "  the then   thin\n\n\tann inner 12 123 é ü 漢字 🚀",
    "<|begin|>the<|end|>x <tool> y",
    "",
)


def converted(folder, target):
    convert.write(convert.plan(folder, vocab_only=True), target, progress=lambda done, total: None)
    file = open_gguf(target)
    return Tokenizer.from_gguf(file), file.metadata


def test_texts_are_cut_as_tokenizers_cuts_them(tmp_path):
    import tokenizers

    folder = write_hf(tmp_path / "hf")
    got, _ = converted(folder, tmp_path / "m.gguf")
    truth = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert got.encode(text, add_special=False) == truth.encode(text, add_special_tokens=False).ids, text
    assert (got.bos, got.eos, got.add_bos) == (264, 265, True)


@pytest.mark.parametrize("name", [name for name, pre in PRETOKENIZERS.items() if pre.byte_level])
def test_every_way_to_cut_words_is_recognised_by_what_it_does(tmp_path, name):
    write_tokenizer(tmp_path, pre=name)
    found = PRETOKENIZERS[tokenizer_json.read(tmp_path / "tokenizer.json").pre]
    # bailingmoe's regex is qwen2's in other words
    same = {PRETOKENIZERS["bailingmoe"].regexes: PRETOKENIZERS["qwen2"].regexes}
    assert found.regexes == same.get(PRETOKENIZERS[name].regexes, PRETOKENIZERS[name].regexes)
    assert found.ignore_merges == PRETOKENIZERS[name].ignore_merges


def test_the_names_that_files_of_known_models_carry_come_first(tmp_path):
    for name in ("llama-bpe", "qwen2", "gpt-2", "smollm"):
        write_tokenizer(tmp_path, pre=name)
        assert tokenizer_json.read(tmp_path / "tokenizer.json").pre == name


def test_an_unknown_way_to_cut_words_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    found = json.loads(file.read_text())
    found["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[aeiou]+"
    file.write_text(json.dumps(found))
    with pytest.raises(ConvertError, match=r"none of the \d+ ways that are known"):
        tokenizer_json.read(file)


def test_a_normalizer_that_gguf_has_no_key_for_is_refused_and_nfc_noted(tmp_path):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"normalizer": {"type": "NFC"}}))
    assert "NFC" in tokenizer_json.read(file).notes[0]
    file.write_text(json.dumps(found | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(ConvertError, match="normalizer"):
        tokenizer_json.read(file)


def test_kinds_tell_control_tokens_from_those_that_users_may_type(tmp_path):
    vocab = read(write_hf(tmp_path / "hf"), {}, SIZES["vocab"])
    by_text = dict(zip(vocab.texts, vocab.kinds, strict=True))
    assert by_text["<|begin|>"] == by_text["<|end|>"] == CONTROL
    assert by_text["<tool>"] == USER_DEFINED
    assert by_text["the"] == NORMAL
    assert by_text["[PAD299]"] == UNUSED
    assert len(vocab.texts) == SIZES["vocab"]


@pytest.mark.parametrize("form", ["text", "pair"])
def test_merges_are_read_in_both_forms(tmp_path, form):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    found = json.loads(file.read_text())
    pairs = [m.split(" ") if isinstance(m, str) else m for m in found["model"]["merges"]]
    found["model"]["merges"] = [" ".join(p) for p in pairs] if form == "text" else pairs
    file.write_text(json.dumps(found))
    assert tokenizer_json.read(file).merges[:2] == ["t h", "th e"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "byte pairs .BPE. expected, found Unigram"),
        ({"model": None}, "byte pairs"),
        ({"added_tokens": [{"id": 1}]}, "'added_tokens' is damaged"),
        ({"added_tokens": [{"id": 5, "content": "<x>"}]}, "both have the id 5"),
        ({"added_tokens": [{"id": 1 << 40, "content": "<x>"}]}, "impossible id"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}, "merge 0 is not two tokens"),
    ],
    ids=str,
)
def test_a_damaged_tokenizer_json_is_named(tmp_path, change, message):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConvertError, match=message):
        tokenizer_json.read(file)


# -- settings and templates --


def test_a_template_file_counts_more_than_the_settings(tmp_path):
    folder = write_hf(tmp_path / "hf")
    write_tokenizer(folder, chat_template="from the settings")
    _, metadata = converted(folder, tmp_path / "a.gguf")
    assert metadata.text("tokenizer.chat_template") == "from the settings"
    (folder / "chat_template.jinja").write_text("from the file {{ 'é' }}")
    _, metadata = converted(folder, tmp_path / "b.gguf")
    assert metadata.text("tokenizer.chat_template") == "from the file {{ 'é' }}"


def test_named_templates_keep_their_names(tmp_path):
    folder = write_hf(tmp_path / "hf")
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    write_tokenizer(folder, chat_template=named)
    _, metadata = converted(folder, tmp_path / "m.gguf")
    assert metadata.text("tokenizer.chat_template") == "one"
    assert metadata.text("tokenizer.chat_template.tool_use") == "two"
    assert list(metadata.array("tokenizer.chat_templates")) == ["tool_use"]


def test_special_tokens_come_by_text_and_else_by_number(tmp_path):
    folder = write_hf(tmp_path / "hf", eos_token_id=[7, 8], pad_token_id=9)
    write_tokenizer(folder, eos_token=None)
    vocab = read(folder, json.loads((folder / "config.json").read_text()), SIZES["vocab"])
    assert vocab.special == {"bos": 264, "eos": 7, "pad": 9}


# -- tiktoken --


def tiktoken_file(path, texts):
    lines = [base64.b64encode(bytes(BYTE_OF_CHAR[c] for c in text)) + b" %d" % i for i, text in enumerate(texts)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_llama3s_ranks_give_the_merges_of_its_tokenizer_json(tmp_path, llama_vocab):
    with open_gguf(llama_vocab) as g:
        texts, merges = list(g.metadata.array("tokenizer.ggml.tokens")), list(g.metadata.array("tokenizer.ggml.merges"))
    vocab = tiktoken.read(tiktoken_file(tmp_path / "tokenizer.model", texts[:128000]), has_tools=False)
    assert vocab.texts == texts
    assert vocab.merges == merges


def test_special_tokens_are_numbered_as_meta_does():
    old, new = tiktoken.special_tokens(has_tools=False), tiktoken.special_tokens(has_tools=True)
    assert (old[8], old[9], old[10], old[255]) == (
        "<|reserved_special_token_4|>", "<|eot_id|>", "<|reserved_special_token_5|>", "<|reserved_special_token_250|>"
    )  # fmt: skip
    assert (new[4], new[5], new[8], new[9], new[10]) == (
        "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"
    )  # fmt: skip
    assert new[255] == "<|reserved_special_token_247|>"


@pytest.mark.parametrize("line", [b"!!!! 3", b"YQ== 4", b"YQ==", b"YQ== x", b"IA== 3", b" 3"])
def test_a_damaged_line_of_ranks_is_named(tmp_path, line):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"IA== 0\nIQ== 1\nIg== 2\n" + line + b"\n")
    with pytest.raises(ConvertError, match="line 4 is not the token of rank 3"):
        tiktoken.read(path, has_tools=False)


# -- SentencePiece --

PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
PIECES += [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]
WORDS = ["th", "▁th", "the", "▁the", "in", "an"]
PIECES += [(word, -float(i), NORMAL) for i, word in enumerate(WORDS)]
PIECES += [(c, -100.0 - i, NORMAL) for i, c in enumerate("▁thein axyz")]


def field(number: int, value) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    length = bytes([len(value) & 127 | 128, len(value) >> 7]) if len(value) > 127 else bytes([len(value)])
    return bytes([number << 3 | 2]) + length + value


def sentencepiece_file(path, *, prefix: int = 1, kind: int = 2):
    pieces = [field(1, field(1, text.encode()) + field(2, score) + field(3, type)) for text, score, type in PIECES]
    path.write_bytes(b"".join(pieces) + field(2, field(3, kind)) + field(3, field(3, prefix)))
    return path


@pytest.mark.parametrize("prefix", [0, 1])
def test_a_sentencepiece_model_keeps_its_pieces_scores_and_prefix(tmp_path, prefix):
    folder = write_hf(tmp_path / "hf")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    sentencepiece_file(folder / "tokenizer.model", prefix=prefix)
    tokenizer, metadata = converted(folder, tmp_path / "m.gguf")
    assert metadata.text("tokenizer.ggml.model") == "llama"
    assert list(metadata.array("tokenizer.ggml.tokens"))[: len(PIECES)] == [text for text, _, _ in PIECES]
    scores = np.asarray(metadata.array("tokenizer.ggml.scores"))[: len(PIECES)]
    assert scores.tolist() == [score for _, score, _ in PIECES]
    first = "▁the" if prefix else "the"
    assert [PIECES[i][0] for i in tokenizer.encode("the thé")] == ["<s>", first, "▁th", "<0xC3>", "<0xA9>"]


def test_scores_from_merges_cut_as_the_sentencepiece_model_does(tmp_path):
    """The same vocabulary as tokenizer.json has it: merges in the order of the scores."""
    from tokenizers import Tokenizer as HF
    from tokenizers import decoders, models, normalizers

    texts = [text for text, _, _ in PIECES]
    known = set(texts)
    merges = [(w[:i], w[i:]) for w in WORDS for i in range(1, len(w)) if w[:i] in known and w[i:] in known]
    truth = HF(models.BPE({t: i for i, t in enumerate(texts)}, merges, unk_token="<unk>", byte_fallback=True))
    truth.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    truth.decoder = decoders.ByteFallback()
    truth.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder = write_hf(tmp_path / "hf")
    truth.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    tokenizer, metadata = converted(folder, tmp_path / "m.gguf")
    assert metadata.boolean("tokenizer.ggml.add_space_prefix")
    for text in ("the thin", "anthe  in x", "thé\n漢"):
        assert tokenizer.encode(text, add_special=False) == truth.encode(text, add_special_tokens=False).ids, text


def test_other_sentencepiece_models_and_damaged_ones_are_refused(tmp_path):
    path = sentencepiece_file(tmp_path / "tokenizer.model", kind=1)
    with pytest.raises(ConvertError, match="only byte pairs"):
        sentencepiece.read(path)
    whole = sentencepiece_file(path).read_bytes()
    refused = 0
    for cut in range(1, len(whole), 97):
        path.write_bytes(whole[:cut])
        try:
            sentencepiece.read(path)
        except ConvertError:
            refused += 1
    assert refused > 30
