"""Tokenizer against llama.cpp's cases, against its own inverse, and against vocabularies that lie."""

from __future__ import annotations

import time
from pathlib import Path

import ggufs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layerlift.runtime.errors import TokenizerError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.pretokenizers import PRETOKENIZERS
from layerlift.runtime.tokenizer import Tokenizer
from tokenizers import Regex, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CHARS = [chr(c) for c in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ċ Ġ"]
BPE_TEXTS = [*CHARS, *(m.replace(" ", "") for m in MERGES), "<s>", "<|im_end|>", "<|im_end|>x", "<tool>", "rest"]
BPE_SPECIAL = {"<s>": CONTROL, "<|im_end|>": CONTROL, "<|im_end|>x": CONTROL, "<tool>": USER_DEFINED, "rest": UNUSED}
SPM_TEXTS = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "<|end|>", "▁", *"ehlowrd", "ll", "lo"]
SPM_TEXTS += ["he", "hell", "hello", "▁w", "or", "▁wor", "▁hello", "▁▁", "▁▁▁▁"]
SPM_SPECIAL = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|end|>": CONTROL}


def bpe_keys(**changes):
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": BPE_TEXTS,
        "tokenizer.ggml.token_type": [BPE_SPECIAL.get(t, NORMAL) for t in BPE_TEXTS],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": BPE_TEXTS.index("<s>"),
        "tokenizer.ggml.eos_token_id": BPE_TEXTS.index("<|im_end|>"),
    }
    return with_changes(keys, changes)


def spm_keys(**changes):
    kinds = [SPM_SPECIAL.get(t, BYTE if t.startswith("<0x") else NORMAL) for t in SPM_TEXTS]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM_TEXTS,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0 if k != NORMAL else -float(i) for i, k in enumerate(kinds)],
    }
    return with_changes(keys, changes)


def with_changes(keys, changes):
    """`name=value` sets a key, short for tokenizer.ggml.name; None takes it out."""
    full = {name if "." in name else f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return {name: value for name, value in (keys | full).items() if value is not None}


@pytest.fixture
def made(tmp_path):
    def make(keys):
        with open_gguf(ggufs.write(tmp_path / "vocab.gguf", {}, keys)) as g:
            return Tokenizer.from_gguf(g)

    return make


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


# -- words --


def words(pre, text):
    steps = [pre_tokenizers.Split(Regex(r), "isolated") for r in PRETOKENIZERS[pre].regexes]
    return [word for word, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_no_pre_tokenizer_loses_text(name):
    text = "Hello  World's 12345 naïve été\r\n\t\n  你好，世界！ 한국어 สวัสดี \u200b😀 if(x==1){}  "
    assert "".join(words(name, text)) == text


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("llama-bpe", "a 12345", ["a", " ", "123", "45"]),
        ("qwen2", "a 12", ["a", " ", "1", "2"]),
        ("smollm", "it's 12", ["it", "'s", " ", "1", "2"]),
        ("gpt-2", "it's 12", ["it", "'s", " 12"]),
        ("gpt-2", "a   b", ["a", "  ", " b"]),
        ("llama-bpe", "I'LL go", ["I", "'LL", " go"]),
        ("gpt-2", "I'LL go", ["I", "'", "LL", " go"]),
        ("tekken", "camelCase", ["camel", "Case"]),
        ("gpt-4o", "camelCase's", ["camel", "Case's"]),
        ("falcon", "1234 a", ["123", "4", " a"]),
        ("default", "a$b 1234", ["a", "$", "b", " ", "123", "4"]),
        ("deepseek-v3", "你好ab1234", ["你好", "ab", "123", "4"]),
        ("superbpe", "1234567", ["1", "234", "567"]),
        ("qwen35", "हिन्दी", ["हिन्दी"]),
        ("bloom", "Hi, you", ["Hi", ",", " you"]),
        ("kimi-k2", "你好ab", ["你好", "ab"]),
    ],
)
def test_words(name, text, expected):
    assert words(name, text) == expected


@pytest.mark.parametrize(("pre", "word"), [("wurst", "'wurst' is unknown"), (None, "is missing")])
def test_an_unknown_pre_tokenizer_is_default_with_a_warning(made, pre, word):
    tokenizer = made(bpe_keys(pre=pre))
    assert word in tokenizer.warning
    assert "\n" not in tokenizer.warning
    assert tokenizer.encode("hello wor") == made(bpe_keys(pre="default")).encode("hello wor")


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-v3", "gpt-4o", "superbpe"])
@pytest.mark.parametrize("text", [" " * 100_000 + "1", "1" * 100_000, "a" * 100_000, "\n " * 50_000, "'" * 100_000])
def test_long_runs_take_time_in_proportion(made, name, text):
    tokenizer = made(bpe_keys(pre=name))
    begin = time.process_time()
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
    assert time.process_time() - begin < 5


# -- vocabularies that lie --

N = len(BPE_TEXTS)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model"),
        ({"model": None}, "tokenizer.ggml.model"),
        ({"tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokens": [1, 2, 3]}, "tokenizer.ggml.tokens"),
        ({"tokens": ["a", "b", "a"], "token_type": None}, "tokenizer.ggml.tokens"),
        ({"tokens": ["a" * 100_000], "token_type": None}, "tokenizer.ggml.tokens"),
        ({"token_type": [1] * (N - 1)}, "tokenizer.ggml.token_type"),
        ({"token_type": [1] * (N + 1)}, "tokenizer.ggml.token_type"),
        ({"token_type": ["x"] * N}, "tokenizer.ggml.token_type"),
        ({"scores": [0.0] * 3}, "tokenizer.ggml.scores"),
        ({"bos_token_id": N}, "tokenizer.ggml.bos_token_id"),
        ({"eos_token_id": 1 << 31}, "tokenizer.ggml.eos_token_id"),
        ({"eot_token_id": N + 7}, "tokenizer.ggml.eot_token_id"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"merges": [1, 2]}, "tokenizer.ggml.merges"),
        ({"merges": ["h e", "nospace"]}, "tokenizer.ggml.merges"),
        ({"merges": ["h e", "h "]}, "tokenizer.ggml.merges"),
        ({"merges": ["q z"]}, "tokenizer.ggml.merges"),
        ({"merges": ["never heard"]}, "tokenizer.ggml.merges"),
    ],
)
def test_a_bad_bpe_vocabulary_names_its_key_in_one_line(made, changes, key):
    with pytest.raises(TokenizerError, match=key) as caught:
        made(bpe_keys(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"scores": None}, "tokenizer.ggml.scores"),
        ({"scores": [0.0] * 5}, "tokenizer.ggml.scores"),
        ({"scores": [float("nan")] * len(SPM_TEXTS)}, "tokenizer.ggml.scores"),
        ({"tokens": [*SPM_TEXTS[:-1], "x" * 2000]}, "tokenizer.ggml.tokens"),
        ({"unknown_token_id": 100_000}, "tokenizer.ggml.unknown_token_id"),
    ],
)
def test_a_bad_spm_vocabulary_names_its_key_in_one_line(made, changes, key):
    with pytest.raises(TokenizerError, match=key) as caught:
        made(spm_keys(**changes))
    assert "\n" not in str(caught.value)


def test_an_empty_vocabulary_is_refused(tmp_path):
    keys = [
        ggufs.Key("tokenizer.ggml.model", ggufs.TEXT, "gpt2"),
        ggufs.Key("tokenizer.ggml.tokens", ggufs.ARRAY, [], items=ggufs.TEXT),
    ]
    with (
        open_gguf(ggufs.Raw(keys=keys).write(tmp_path / "v.gguf")) as g,
        pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.tokens"),
    ):
        Tokenizer.from_gguf(g)


def test_no_such_token_is_no_error(made):
    tokenizer = made(bpe_keys(bos_token_id=0xFFFFFFFF, add_bos_token=True))
    assert tokenizer.bos is None
    assert not tokenizer.add_bos
