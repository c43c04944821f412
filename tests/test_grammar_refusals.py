"""Hostile grammars end in one line, and heavy ones in time."""

from __future__ import annotations

import time

import pytest
from byte_tokenizer import ByteTokenizer, allowed, takes
from layerlift.runtime.errors import GrammarError
from layerlift.runtime.grammar import MAX_SOURCE, compile_gbnf, compile_json_schema


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


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
