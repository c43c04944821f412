"""Grammars hold generations to themselves, and end in end tokens."""

from __future__ import annotations

import gc
import json
import threading
import weakref

import numpy as np
import pytest
from byte_tokenizer import EOS, EOT, ByteTokenizer, allowed, takes
from layerlift.runtime.errors import GrammarError
from layerlift.runtime.grammar import compile_gbnf, compile_json_schema
from layerlift.runtime.sampler import Sampler, Sampling


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


def generate(grammar, seed, limit=400):
    """Text of random choices under a grammar."""
    sampler = Sampler(Sampling(temperature=1, seed=seed, grammar=grammar))
    random = np.random.default_rng(seed)
    out = b""
    for _ in range(limit):
        values = random.standard_normal(ByteTokenizer.vocab_size).astype(np.float32)
        values[[EOS, ord("}"), ord('"')]] += 4  # an inclination to come to an end
        token = sampler.sample(values).id
        if token in ByteTokenizer.eog:
            return out.decode()
        assert token < EOS, "a control token under a grammar"
        sampler.accept(token)
        out += ByteTokenizer().piece(token)
    return None


# -- matching --


def test_only_fitting_tokens_are_left(tokenizer):
    matcher = compile_gbnf('root ::= "hello" | "hi" [0-9]?', tokenizer).matcher()
    assert allowed(matcher) == {ord("h"), 256}
    matcher.accept(ord("h"))
    assert allowed(matcher) == {ord("e"), ord("i")}


def test_permits_agrees_with_the_mask_where_there_is_a_choice(tokenizer):
    grammar = compile_gbnf('root ::= [a-m]+ "}" "!"?', tokenizer)
    matcher = grammar.matcher()
    for token in (*b"he", 260):  # 260 is "}"
        mask = allowed(matcher)
        assert {i for i in range(tokenizer.vocab_size) if matcher.permits(i)} == mask
        matcher.accept(token)
    assert allowed(matcher) == {ord("!"), EOS, EOT}


def test_a_finished_grammar_leaves_only_end_tokens(tokenizer):
    matcher = compile_gbnf('root ::= "ab"', tokenizer).matcher()
    matcher.accept(ord("a"))
    assert not matcher.stopped
    matcher.accept(ord("b"))
    assert matcher.stopped
    assert allowed(matcher) == {EOS, EOT}
    for end in (EOT, EOS, EOT):  # also where the end tokens are ignored
        assert matcher.permits(end)
        matcher.accept(end)
        assert allowed(matcher) == {EOS, EOT}
    with pytest.raises(GrammarError, match="does not fit"):
        matcher.accept(ord("a"))


def test_an_end_token_before_the_end_is_refused(tokenizer):
    matcher = compile_gbnf('root ::= "ab"', tokenizer).matcher()
    assert not matcher.permits(EOS)
    with pytest.raises(GrammarError):
        matcher.accept(EOS)


def test_mask_keeps_the_logits_of_what_it_leaves(tokenizer):
    matcher = compile_gbnf("root ::= [a-c]", tokenizer).matcher()
    values = np.random.default_rng(0).standard_normal(tokenizer.vocab_size).astype(np.float32)
    before = values.copy()
    out = matcher.allow(values)
    assert out[97:100].tolist() == values[97:100].tolist()
    assert np.array_equal(values, before)


def test_matchers_of_one_grammar_do_not_disturb_each_other(tokenizer):
    grammar = compile_gbnf('root ::= "ab" | "cd"', tokenizer)
    one, two = grammar.matcher(), grammar.matcher()
    one.accept(ord("a"))
    assert allowed(two) == {ord("a"), ord("c")}
    two.accept(ord("c"))
    assert (allowed(one), allowed(two)) == ({ord("b")}, {ord("d")})
    assert allowed(grammar.matcher()) == {ord("a"), ord("c")}


def test_half_of_a_character_is_followed_by_its_other_half(tokenizer):
    matcher = compile_gbnf("root ::= [é]+", tokenizer).matcher()
    assert allowed(matcher) == {261}  # the character as it is usually written
    assert matcher.permits(0xC3)
    matcher.accept(0xC3)
    assert allowed(matcher) == {0xA9}


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        ('root ::= ([a-z]+ ", ")* [a-z]+', "ab, c", "ab,c"),
        ('root ::= (("a"*)+)?', "aaa", "b"),
        ('root ::= "\\u00e9" [\\u4e00-\\u9fff]', "é中", "ea"),
        ('root ::= "\\xe9" "\\U0001F600" "\\x41"', "é😀A", "e😀A"),
        ('root ::= "\\\\u00e9"', "\\u00e9", "\\é"),
        ('root ::= "hi"{2} ("yes" "no"?)+ | "\\n\\x41\\""', "hihiyesnoyes", "hiiyes"),
        ('root ::= "\\n\\x41\\"\\\\"', '\nA"\\', "nA"),
        ('root ::= "a" {2,3} # comment ( [ "\n', "aaa", "a"),
        ('root ::= item+\nitem ::= "- " [^\\r\\n]+ "\\n"', "- x\n- y\n", "- x"),
        ('root ::= my-Rule "/" .\nmy-Rule ::= [/\\]] ', "]/x", "a/x"),
        ('root ::= num "\\n"\nnum ::= [0-9]+ ws\nws ::= [ \\n]*', "1 \n", "1 "),
        ('root ::= start my-rule\nstart ::= "a" | "ab"\nmy-rule ::= "b"', "ab", "a"),
        ('start: NUMBER\nNUMBER: /[0-9]+/', "42", "x"),
    ],
)  # fmt: skip
def test_gbnf_means_what_it_says(tokenizer, source, good, bad):
    grammar = compile_gbnf(source, tokenizer)
    assert takes(grammar, good)
    assert not takes(grammar, bad)


def test_an_arithmetic_grammar_takes_arithmetic(tokenizer):
    grammar = compile_gbnf(
        """
        root  ::= (expr "=" ws term "\\n")+
        expr  ::= term ([-+*/] term)*   # left to right
        term  ::= ident | num | "(" ws expr ")" ws
        ident ::= [a-z] [a-z0-9_]* ws
        num   ::= [0-9]+ ws
        ws    ::= [ \\t\\n]*
        """.replace("\n        ", "\n"),
        tokenizer,
    )
    assert takes(grammar, "(a+1)*2 = b\n")
    assert not takes(grammar, "(a+1*2 = b\n")


# -- JSON schema --


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_generations_fit_their_schema(tokenizer):
    grammar = compile_json_schema(PERSON, tokenizer)
    whole = 0
    for seed in range(20):
        text = generate(grammar, seed)
        if text is not None:
            whole += 1
            found = json.loads(text)
            assert set(found) == {"name", "age"}
            assert len(found["name"]) <= 5
            assert isinstance(found["age"], int)
            assert found["age"] <= 150
    assert whole >= 10


def test_a_schema_may_be_text_or_parsed(tokenizer):
    for schema in (PERSON, json.dumps(PERSON)):
        grammar = compile_json_schema(schema, tokenizer)
        assert takes(grammar, '{"name": "Ann", "age": 7}')
        assert not takes(grammar, '{"name": "Ann"}')


def test_local_references_work(tokenizer):
    schema = {"$defs": {"n": {"enum": [1, 2]}}, "type": "array", "items": {"$ref": "#/$defs/n"}}
    grammar = compile_json_schema(schema, tokenizer)
    assert takes(grammar, "[1, 2]")
    assert not takes(grammar, "[3]")


def test_any_json_and_pretty_json_are_taken_but_not_endless_space(tokenizer):
    for schema in ({}, True, "true", '{"type": "object"}'):
        grammar = compile_json_schema(schema, tokenizer)
        assert takes(grammar, json.dumps({"a": [1, {"b": None}]}, indent=2))
        assert not takes(grammar, '{"a":' + " " * 50 + "1}")


# -- life --


def test_the_vocabulary_is_read_once_and_freed_with_its_tokenizer():
    tokenizer = ByteTokenizer()
    for _ in range(3):
        compile_gbnf('root ::= "a"', tokenizer)  # type: ignore[arg-type]
    assert tokenizer.pieces == tokenizer.vocab_size
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_grammars_compile_in_many_threads_and_leave_the_stack_size_alone(tokenizer):
    usual = threading.stack_size()
    results = []

    def work(i):
        results.append(takes(compile_gbnf(f'root ::= "{i}"', tokenizer), str(i)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 16
    assert threading.stack_size() == usual


def test_a_real_vocabulary_fits_a_schema():
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "ggml-vocab-llama-bpe.gguf"
    if not path.exists():
        pytest.skip("no vocabulary file in ../shared/data")
    from layerlift.runtime.gguf import open_gguf
    from layerlift.runtime.tokenizer import Tokenizer

    with open_gguf(path) as g:
        tokenizer = Tokenizer.from_gguf(g)
    matcher = compile_json_schema(PERSON, tokenizer).matcher()
    for token in tokenizer.encode('{"name": "Ann", "age": 7}', add_special=False):
        assert matcher.permits(token)
        matcher.accept(token)
    assert np.flatnonzero(matcher.allow(np.zeros(tokenizer.vocab_size, np.float32)) == 0).tolist() == sorted(
        tokenizer.eog
    )
