"""Facts about the flags that a packed file brings along."""

from __future__ import annotations

import pytest
from layerlift.runtime.arguments import parse
from layerlift.runtime.errors import LayerliftError, UserError
from layerlift.runtime.pack import check_args
from layerlift.runtime.pack_args import PackedArgs, compose, parse_args, quote


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("", [], []),
        ("--temp 0 -c 4k", ["--temp", "0", "-c", "4k"], []),
        ("--temp 0\n\n-c\t4k\r\n--color", ["--temp", "0", "-c", "4k", "--color"], []),
        ("-p 'a b' # no more\n-n 5", ["-p", "a b", "-n", "5"], []),
        ("# all of it\n#and this", [], []),
        ("-p C#  '#x' a\\ #b", ["-p", "C#", "#x", "a #b"], []),
        (r"""-p "say \"hi\" \n \\ $HOME 'x'" """, ["-p", "say \"hi\" \\n \\ $HOME 'x'"], []),
        (r"-p 'a\nb'", ["-p", r"a\nb"], []),
        ("-p 'two\nlines'", ["-p", "two\nlines"], []),
        ("-p ''", ["-p", ""], []),
        ("--temp \\\n 0", ["--temp", "0"], []),
        ("--te\\\nmp 0", ["--temp", "0"], []),
        ("-p a'b'\"c\"d", ["-p", "abcd"], []),
        ("-p grüß dich", ["-p", "grüß", "dich"], []),
        ("--temp 0 ... -n 5", ["--temp", "0"], ["-n", "5"]),
        ("...", [], []),
        ("-p '...' ... -n 5", ["-p", "..."], ["-n", "5"]),
    ],
)
def test_args_are_words_as_a_shell_reads_them(text, before, after):
    assert parse_args(text) == PackedArgs(tuple(before), tuple(after))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-p 'a", "line 1: a quote without"),
        ('\n\n-p "a\\"', "line 3: a quote without"),
        ("-p \\", "line 1: a backslash without"),
        ("...\n...", r"line 2: '\.\.\.' is there twice"),
    ],
)
def test_a_mistake_in_args_is_named_with_its_line(text, message):
    with pytest.raises(UserError, match=message):
        parse_args(text)


@pytest.mark.parametrize("word", ["a", "", "a b", "'", '"', "\\", "#", "a\nb", "$X", "...x", "ü", "`"])
def test_quoted_words_come_back(word):
    assert parse_args(quote(["-p", word])).before == ("-p", word)


M = ["-m", "M"]


@pytest.mark.parametrize(
    ("packed", "typed", "line"),
    [
        ("", [], M),
        ("--temp 0", ["--temp", "1"], [*M, "--temp", "0", "--temp", "1"]),
        ("--temp 0 ... -n 5", ["-n", "9"], [*M, "--temp", "0", "-n", "9", "-n", "5"]),
        ("--temp 0", ["-m", "other"], [*M, "--temp", "0", "-m", "other"]),
        ("--cli -p hi", [], [*M, "--cli", "-p", "hi"]),
        ("--cli -p hi --keep 3", ["--chat"], [*M, "--cli", "-p", "hi", "--chat"]),
        ("--nologo --temp 0", ["--cli", "-p", "x"], [*M, "--temp", "0", "--cli", "-p", "x"]),
        ("--nologo", ["-p", "--cli"], [*M, "--nologo", "-p", "--cli"]),
        ("-p SYSTEM -ngl 4 --temp 0", ["bench", "-p", "64"], ["bench", *M, "-ngl", "4", "-p", "64"]),
        ("-p SYSTEM --gpu=amd", ["tokenize", "-p", "x"], ["tokenize", *M, "-p", "x"]),
        ("-c 4k --n_gpu_layers 3", ["perplexity"], ["perplexity", *M, "--n_gpu_layers", "3"]),
        ("bench -p 64", ["-n", "8"], ["bench", *M, "-p", "64", "-n", "8"]),
        ("bench -p 64", ["bench", "-n", "8"], ["bench", *M, "-p", "64", "-n", "8"]),
        ("bench -p 64 -t 3", ["--cli", "-p", "x"], [*M, "-t", "3", "--cli", "-p", "x"]),
        ("--temp 0", ["devices"], ["devices"]),
        ("--temp 0", ["verify"], ["verify", "M"]),
        ("", ["verify", "other", "--json"], ["verify", "other", "--json"]),
        ("", ["unpack", "-o", "x"], ["unpack", "M", "-o", "x"]),
    ],
)
def test_the_line_is_packed_flags_and_typed_ones_by_the_mode_of_both(packed, typed, line):
    assert compose(parse_args(packed), typed, "M") == line
    parse(line)


def test_a_flag_that_no_mode_knows_is_not_hidden():
    line = compose(parse_args("--from-the-future 3"), ["--cli", "-p", "x"], "M")
    with pytest.raises(UserError, match="unknown flag --from-the-future"):
        parse(line)


@pytest.mark.parametrize("text", ["--tmp 0", "-n many", "-m other.gguf", "bench -m x", "--model=x", "stray", "'"])
def test_what_is_no_command_line_is_not_packed(text):
    with pytest.raises(LayerliftError):
        check_args(text)
