"""Grammars hold generations to themselves, end in end tokens, and hostile ones end in one line."""

from __future__ import annotations

import gc
import json
import math
import threading
import time
import weakref

import numpy as np
import pytest
from layerlift.runtime.errors import GrammarError
from layerlift.runtime.grammar import MAX_SOURCE, compile_gbnf, compile_json_schema
from layerlift.runtime.sampler import Sampler, Sampling

WORDS = (b"hello", b"true", b'{"', b'":', b"}", b"\xc3\xa9", b"  ", b"\n", b"12", b"")
EOS, BOS, EOT = 256 + len(WORDS), 257 + len(WORDS), 258 + len(WORDS)


class ByteTokenizer:
    """256 bytes, a few words, an empty token and three control tokens."""

    vocab_size = EOT + 1
    bos, eos, eot = BOS, EOS, EOT
    eog = frozenset({EOS, EOT})

    def __init__(self):
        self.pieces = 0

    def piece(self, id, *, special=True):
        self.pieces += 1
        if id < 256:
            return bytes([id])
        return WORDS[id - 256] if id < EOS else {EOS: b"</s>", BOS: b"<s>", EOT: b"<|eot|>"}[id]

    def is_control(self, id):
        return id >= EOS

    def encode(self, text, *, add_special=True, parse_special=True):
        rest, ids = text.encode(), []
        while rest:
            best = max((w for w in WORDS if w and rest.startswith(w)), key=len, default=None)
            ids.append(256 + WORDS.index(best) if best else rest[0])
            rest = rest[len(best) if best else 1 :]
        return ids


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


def allowed(matcher):
    """The ids a matcher leaves, of a vocabulary padded by five rows."""
    values = np.zeros(ByteTokenizer.vocab_size + 5, np.float32)
    return set(np.flatnonzero(matcher.allow(values) > -math.inf).tolist())


def takes(grammar, text):
    """Whether a grammar takes `text` whole, byte by byte, and may end there."""
    matcher = grammar.matcher()
    for byte in text.encode():
        if not matcher.permits(byte):
            return False
        matcher.accept(byte)
    return matcher.permits(EOS)


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


# -- refusals --


def chain(n):
    return "\n".join(f"r{i} ::= r{i + 1}" for i in range(n)).replace("r0", "root", 1) + f'\nr{n} ::= "x"'


def nested(n):
    schema: dict = {}
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE = {
    "empty": ("gbnf", ""),
    "no root": ("gbnf", 'foo ::= "a"'),
    "unknown rule": ("gbnf", "root ::= nothing"),
    "only itself": ("gbnf", "root ::= root"),
    "left recursion without end": ("gbnf", 'root ::= root "a"'),
    "open literal": ("gbnf", 'root ::= "abc'),
    "open class": ("gbnf", "root ::= [abc"),
    "open group": ("gbnf", 'root ::= ("a"'),
    "prose": ("gbnf", "please write JSON"),
    "surrogate": ("gbnf", 'root ::= "\\ud800"'),
    "beyond unicode": ("gbnf", 'root ::= "\\U00110000"'),
    "half an escape": ("gbnf", 'root ::= "\\'),
    "lone surrogate": ("gbnf", 'root ::= "\ud800"'),
    "60,000 nested groups": ("gbnf", "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000),
    "101 nested groups": ("gbnf", "root ::= " + "(" * 101 + '"a"' + ")" * 101),
    "50,000 rules in a row": ("gbnf", chain(50_000)),
    "1001 rules": ("gbnf", chain(1001)),
    "3000 rules in Lark": ("gbnf", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(3000)) + 'r3000: "x"'),
    "65,000 open brackets": ("gbnf", "root ::= " + "[" * 65_000),
    "65,000 open quotes": ("gbnf", "root ::= " + '"' * 64_999),
    "not text": ("gbnf", 5),
    "not JSON": ("json", "nope"),
    "closing brackets": ("json", '{}}, {"lark_grammar": "start: /x/"}'),
    "text": ("json", '"hiccup"'),
    "number": ("json", "123"),
    "false": ("json", False),
    "bad type": ("json", {"type": 123}),
    "bad pattern": ("json", {"type": "string", "pattern": "["}),
    "remote reference": ("json", {"$ref": "http://example.com/schema.json"}),
    "file reference": ("json", {"properties": {"a": [{"$ref": "file:///etc/passwd"}]}}),
    "missing reference": ("json", {"$ref": "#/definitions/nothing"}),
    "only itself, as a schema": ("json", {"$ref": "#"}),
    "unknown keyword": ("json", {"not": {"type": "string"}}),
    "20,000 nested arrays": ("json", '{"items":' * 20_000 + "{}" + "}" * 20_000),
    "101 nested arrays": ("json", nested(101)),
    "2000 nested arrays, parsed": ("json", nested(2000)),
    "200,000 enum values": ("json", {"enum": [f"value {i}" for i in range(200_000)]}),
    "huge integer": ("json", '{"maximum": ' + "9" * 10_000 + "}"),
    "set": ("json", {"enum": {1, 2}}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_unusable_grammar_is_one_line_and_quick(tokenizer, case):
    kind, source = HOSTILE[case]
    compile_gbnf('root ::= "a"', tokenizer)  # the vocabulary is not part of the time
    start = time.process_time()
    with pytest.raises(GrammarError) as caught:
        (compile_gbnf if kind == "gbnf" else compile_json_schema)(source, tokenizer)
    assert time.process_time() - start < 4
    message = str(caught.value)
    assert message.startswith(("grammar: ", "JSON schema: "))
    assert "\n" not in message
    assert len(message) < 300


BOUNDED = {
    "longest chain": lambda t: compile_gbnf(chain(998), t),
    "deepest groups": lambda t: compile_gbnf("root ::= " + "(" * 25 + '"a"' + ")" * 25, t),
    "repetition of repetitions": lambda t: compile_gbnf('root ::= (("a"{1,1000}){1,1000}){1,1000}', t),
    "a hundred thousand": lambda t: compile_gbnf('root ::= "a"{1,100000}', t),
    "nested pattern": lambda t: compile_json_schema({"type": "string", "pattern": "^((a{100}){100}){100}$"}, t),
    "long array": lambda t: compile_json_schema({"type": "array", "minItems": 10**6}, t),
    "chain of references": lambda t: compile_json_schema(
        {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)} | {"d1500": {}}, "$ref": "#/$defs/d0"},
        t,
    ),
    "many values": lambda t: compile_json_schema({"enum": [f"value number {i} of all" for i in range(2000)]}, t),
    "many names": lambda t: compile_json_schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}}, t
    ),
}


@pytest.mark.parametrize("case", BOUNDED)
def test_a_heavy_grammar_works_or_is_refused_in_time(tokenizer, case):
    start = time.process_time()
    try:
        matcher = BOUNDED[case](tokenizer).matcher()
        for _ in range(5):
            matcher.accept(min(allowed(matcher)))
    except GrammarError:
        assert case == "nested pattern"
    assert time.process_time() - start < 8


def test_a_source_of_the_longest_length_is_read(tokenizer):
    comment = "\n#" + "x" * (MAX_SOURCE - 16)
    assert takes(compile_gbnf('root ::= "a"' + comment, tokenizer), "a")
    with pytest.raises(GrammarError, match="at most 65536"):
        compile_gbnf('root ::= "a"' + comment + "xxxx", tokenizer)


def test_a_vocabulary_without_end_has_no_grammar():
    tokenizer = ByteTokenizer()
    tokenizer.eos, tokenizer.eog = None, frozenset()  # type: ignore[assignment]
    with pytest.raises(GrammarError, match="no end token"):
        compile_gbnf('root ::= "a"', tokenizer)  # type: ignore[arg-type]


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
