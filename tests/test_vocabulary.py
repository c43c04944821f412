"""Vocabularies that lie are refused with the key in one line."""

from __future__ import annotations

import ggufs
import pytest
from layerlift.runtime.errors import TokenizerError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.tokenizer import Tokenizer
from vocabularies import BPE_TEXTS, SPM_TEXTS, bpe_keys, spm_keys

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
