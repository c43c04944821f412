"""Tokenizer against llama.cpp's cases and against its own inverse."""

from __future__ import annotations

import time
from pathlib import Path

import ggufs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layerlift.runtime.errors import TokenizerError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.tokenizer import Tokenizer
from vocabularies import BPE_SPECIAL, BPE_TEXTS, NORMAL, bpe_keys, spm_keys


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    with open_gguf(ggufs.write(tmp_path_factory.mktemp("bpe") / "v.gguf", {}, bpe_keys())) as g:
        return Tokenizer.from_gguf(g)


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    with open_gguf(ggufs.write(tmp_path_factory.mktemp("spm") / "v.gguf", {}, spm_keys())) as g:
        return Tokenizer.from_gguf(g)


@pytest.fixture(scope="module")
def llama3(llama_vocab: Path):
    with open_gguf(llama_vocab) as g:
        return Tokenizer.from_gguf(g)


def texts(tokenizer, ids):
    return [tokenizer.piece(id).decode("utf-8", "replace") for id in ids]


# -- what llama.cpp says --


def test_all_cases_of_the_llama3_vocabulary(llama_vocab, llama3):
    with open(f"{llama_vocab}.inp", encoding="utf-8", newline="") as file:
        inputs = file.read().split("\n__ggml_vocab_test__\n")
    with open(f"{llama_vocab}.out", encoding="utf-8") as file:
        outputs = [[int(id) for id in line.split()] for line in file.read().splitlines()]
    cases = list(zip(inputs, outputs, strict=False))
    assert len(cases) >= 46
    assert [t for t, ids in cases if llama3.encode(t, add_special=False) != ids] == []
    assert [t for t, ids in cases if llama3.decode(ids) != t] == []


def test_llama3_roles_and_ends(llama3):
    assert (llama3.vocab_size, llama3.bos, llama3.eos, llama3.eot) == (128256, 128000, 128001, 128009)
    assert llama3.eog == {128001, 128009}
    assert (llama3.add_bos, llama3.add_eos, llama3.warning) == (True, False, "")
    assert llama3.find("<|eot_id|>") == 128009
    assert llama3.find("<|nobody|>") is None
    assert llama3.is_control(128009)
    assert not llama3.is_control(0)


def test_a_128k_vocabulary_builds_in_two_seconds_of_a_busy_machine(llama_vocab):
    begin = time.process_time()
    with open_gguf(llama_vocab) as g:
        Tokenizer.from_gguf(g)
    assert time.process_time() - begin < 2


# -- special tokens --


def test_control_tokens_are_parsed_on_request_only(bpe):
    assert bpe.encode("<s>hello", add_special=False) == [bpe.find("<s>"), bpe.find("hello")]
    plain = bpe.encode("<s>hello", add_special=False, parse_special=False)
    assert bpe.find("<s>") not in plain
    assert bpe.decode(plain) == "<s>hello"


def test_user_defined_tokens_are_always_parsed(bpe):
    for parse in (False, True):
        assert texts(bpe, bpe.encode("a<tool>b", parse_special=parse)) == ["a", "<tool>", "b"]


def test_the_longest_special_token_wins(bpe):
    assert texts(bpe, bpe.encode("<|im_end|>x<|im_end|>", add_special=False)) == ["<|im_end|>x", "<|im_end|>"]


def test_bos_and_eos_are_added_where_the_file_says_so_and_never_twice(made):
    tokenizer = made(bpe_keys(add_bos_token=True, add_eos_token=True))
    bos, eos, hello = tokenizer.bos, tokenizer.eos, tokenizer.find("hello")
    assert tokenizer.encode("hello") == [bos, hello, eos]
    assert tokenizer.encode("<s>hello<|im_end|>") == [bos, hello, eos]
    assert tokenizer.encode("hello", add_special=False) == [hello]
    assert tokenizer.encode("") == [bos, eos]


@pytest.mark.parametrize(
    ("pre", "add_bos"), [("gpt-2", False), ("llama-bpe", True), ("qwen2", False), ("tekken", True)]
)
def test_add_bos_default_follows_the_pre_tokenizer(made, pre, add_bos):
    assert made(bpe_keys(pre=pre)).add_bos is add_bos


def test_spm_adds_bos_by_default(spm):
    assert spm.encode("hello")[0] == spm.bos == 1
    assert spm.encode("") == [1]


def test_ends_are_found_by_text_and_become_control_tokens(made):
    kinds = [NORMAL if t == "<|im_end|>" else BPE_SPECIAL.get(t, NORMAL) for t in BPE_TEXTS]
    tokenizer = made(bpe_keys(token_type=kinds, eos_token_id=None))
    end = tokenizer.find("<|im_end|>")
    assert tokenizer.eot == end
    assert tokenizer.eog == {end}
    assert tokenizer.is_control(end)


def test_end_is_no_end_where_messages_end_with_return(made):
    tokens = [*BPE_TEXTS, "<|end|>", "<|return|>", "<|call|>"]
    tokenizer = made(bpe_keys(tokens=tokens, token_type=[BPE_SPECIAL.get(t, NORMAL) for t in tokens]))
    assert tokenizer.find("<|end|>") not in tokenizer.eog
    assert {tokenizer.find("<|return|>"), tokenizer.find("<|call|>")} < tokenizer.eog


def test_phi3_special_tokens_swallow_the_space_after_them(made):
    plain, phi3 = made(spm_keys()), made(spm_keys(**{"general.name": "Phi-3 mini"}))
    text = "<|end|> \n hello"
    assert plain.decode(plain.encode(text, add_special=False), special=True) == "<|end|>  \n hello"
    assert texts(phi3, phi3.encode(text, add_special=False)) == ["<|end|>", " hello"]


# -- SentencePiece --


def test_spm_joins_by_score_and_prefixes_a_space(spm):
    assert texts(spm, spm.encode("hello wor", add_special=False)) == [" hello", " wor"]
    assert texts(spm, spm.encode("<s>hello", add_special=False)) == ["<s>", " hello"]


def test_spm_unknown_characters_become_bytes(spm):
    ids = spm.encode("é", add_special=False)
    assert [spm.piece(id) for id in ids] == [b" ", b"\xc3", b"\xa9"]
    assert spm.decode(ids) == "é"


def test_spm_space_prefix_is_taken_off_at_the_beginning_only(spm):
    ids = spm.encode("hello wor")
    assert spm.decode(ids) == "hello wor"
    assert spm.decode(spm.encode(" hello")) == " hello"
    begin, goes_on = spm.stream(), spm.stream(after=ids[1])
    assert begin.feed(spm.find("▁hello")) == "hello"
    assert begin.feed(spm.find("▁hello")) == " hello"
    assert goes_on.feed(spm.find("▁hello")) == " hello"
    assert spm.stream(after=spm.bos).feed(spm.find("▁hello")) == "hello"


def test_spm_without_space_prefix(made):
    tokenizer = made(spm_keys(add_space_prefix=False))
    assert texts(tokenizer, tokenizer.encode("hello", add_special=False)) == ["hello"]
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


# -- text and bytes --


ANY_TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\thelowr<|>im_ends")), max_size=60)


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
def test_bpe_round_trip_and_stream_equal_the_text(bpe, text):
    ids = bpe.encode(text, parse_special=False)
    assert bpe.decode(ids) == text
    stream = bpe.stream()
    assert "".join([*map(stream.feed, ids), stream.flush()]) == text


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT.filter(lambda t: "▁" not in t))
def test_spm_round_trip_and_stream_equal_the_text(spm, text):
    ids = spm.encode(text, parse_special=False)
    assert spm.decode(ids) == text
    stream = spm.stream()
    assert "".join([*map(stream.feed, ids), stream.flush()]) == text


@settings(max_examples=60, deadline=None)
@given(ANY_TEXT)
def test_llama3_round_trip(llama3, text):
    assert llama3.decode(llama3.encode(text, parse_special=False)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(BPE_TEXTS) - 1), max_size=40))
def test_any_tokens_stream_to_what_they_decode_to(bpe, ids):
    stream = bpe.stream()
    assert "".join([*map(stream.feed, ids), stream.flush()]) == bpe.decode(ids)


def test_a_stream_holds_back_half_a_character(bpe):
    ids = bpe.encode("€", add_special=False)
    stream = bpe.stream()
    assert [stream.feed(id) for id in ids] == ["", "", "€"]
    assert (stream.feed(ids[0]), stream.flush()) == ("", "\ufffd")
    assert bpe.decode(ids[:2]) == "\ufffd"


def test_control_tokens_are_shown_on_request(bpe):
    ids = [bpe.bos, bpe.find("hello"), bpe.find("<tool>"), bpe.find("rest")]
    assert bpe.decode(ids) == "hello<tool>"
    assert bpe.decode(ids, special=True) == "<s>hello<tool>"
    assert bpe.piece(bpe.bos) == b"<s>"
    assert bpe.piece(bpe.bos, special=False) == b""


def test_lone_surrogates_and_nul_bytes(bpe):
    assert bpe.decode(bpe.encode("a\ud800b\udcff")) == "a\ufffdb\ufffd"
    assert bpe.decode(bpe.encode("\ud83d\ude00")) == "😀"
    assert bpe.decode(bpe.encode("a\0b")) == "a\0b"


def test_bytes_without_a_token_are_dropped_and_separate(made):
    tokens = [t for t in BPE_TEXTS if t != "é"]  # stands for byte 0xE9
    kinds = [BPE_SPECIAL.get(t, NORMAL) for t in tokens]
    tokenizer = made(
        bpe_keys(tokens=tokens, token_type=kinds, bos_token_id=tokens.index("<s>"), eos_token_id=None, pre="olmo")
    )
    assert texts(tokenizer, tokenizer.encode("h\u9955e", add_special=False))[0] == "h"
    assert "he" not in texts(tokenizer, tokenizer.encode("h\U00040000e", add_special=False))


@pytest.mark.parametrize("id", [-1, len(BPE_TEXTS), 1 << 40])
def test_tokens_outside_the_vocabulary_are_named(bpe, id):
    with pytest.raises(TokenizerError, match=f"token {id} is not in the vocabulary"):
        bpe.decode([id])
    assert not bpe.is_control(id)
