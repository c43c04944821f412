"""Pre-tokenizers cut text into words as llama.cpp does, lose nothing, and take time in proportion."""

from __future__ import annotations

import time

import pytest
from layerlift.runtime.pretokenizers import PRETOKENIZERS
from tokenizers import Regex, pre_tokenizers
from vocabularies import bpe_keys


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
@pytest.mark.parametrize("text", [" " * 50_000 + "1", "1" * 50_000, "a" * 50_000, "\n " * 25_000, "'" * 50_000])
def test_long_runs_take_time_in_proportion(made, name, text):
    tokenizer = made(bpe_keys(pre=name))
    begin = time.process_time()
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
    assert time.process_time() - begin < 2.5
