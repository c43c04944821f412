"""Facts about the streaming Markdown highlighter."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layerlift.runtime.highlight import COMMENT, KEYWORD, LANGUAGES, RESET, STRING, Lexer
from layerlift.runtime.markdown import BOLD, BULLET, CODE, FAINT, HEADING, ITALIC, Markdown

ANSI = re.compile(r"\033\[[0-9;]*m")
PIECES = st.sampled_from(
    [
        *("*", "**", "`", "```", "````", "~~~", "#", "# ", "> ", "- ", "+", " ", "  ", "\t", "\n", "\n\n"),
        *("```python\n", "```sql\n", "\n```\n", "def f():", '"', "'", '"""', "\\", "//", "/*", "*/", "--"),
        *("<!--", "a", "word", "2", "é", "日本"),
    ]
)
TEXTS = st.lists(PIECES, max_size=40).map("".join)


def colour(text: str) -> str:
    markdown = Markdown()
    return markdown.feed(text) + markdown.flush()


def strip(text: str) -> str:
    return ANSI.sub("", text)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_without_its_escapes_the_output_is_the_input(text):
    assert strip(colour(text)) == text


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.data())
def test_the_output_does_not_depend_on_how_the_input_is_cut(text, data):
    cut = data.draw(st.integers(0, len(text)))
    markdown = Markdown()
    assert markdown.feed(text[:cut]) + markdown.feed(text[cut:]) + markdown.flush() == colour(text)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_every_colour_ends(text):
    escapes = ANSI.findall(colour(text))
    assert not escapes or escapes[-1] == RESET


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(LANGUAGES)), TEXTS)
def test_a_lexer_of_any_language_keeps_the_text(language, text):
    lexer = Lexer(language)
    assert strip(lexer.feed(text) + lexer.flush()) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **b** c", f"a {BOLD}**b**{RESET} c"),
        ("a *b* c", f"a {ITALIC}*b*{RESET} c"),
        ("use `x*y*z`", f"use {CODE}`x*y*z`{RESET}"),
        ("``a`b``", f"{CODE}``a`b``{RESET}"),
        ("## Title\ntext", f"{HEADING}## Title{RESET}\ntext"),
        ("- one\n  * two", f"{BULLET}-{RESET} one\n  {BULLET}*{RESET} two"),
        ("> said", f"{FAINT}> said{RESET}"),
        ("***", "***"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("2*3*4", "2*3*4"),
        ("a star (*) and *, *.c", "a star (*) and *, *.c"),
        ("snake_case_name", "snake_case_name"),
        ("#hashtag", "#hashtag"),
        ("a **b\nc", f"a {BOLD}**b{RESET}\nc"),
    ],
)
def test_marks_colour_what_they_enclose(text, expected):
    assert colour(text) == expected


def test_code_in_a_fence_is_coloured_by_its_language():
    out = colour("```python\ndef f(): # no\n    return '*a*'\n```\n*b*\n")
    assert f"{KEYWORD}def{RESET} f(): {COMMENT}# no{RESET}\n" in out
    assert f"{STRING}'*a*'{RESET}" in out
    assert f"{ITALIC}*b*{RESET}" in out


def test_a_fence_is_closed_by_one_of_its_own_length_and_kind():
    out = colour("````\n```\n~~~\n**a**\n````\n**b**")
    assert "**a**\n" in out
    assert f"{BOLD}**b**{RESET}" in out


def test_a_fence_that_never_closes_keeps_its_lines_plain_and_whole():
    assert strip(colour("```js\nlet a = `x\n``")) == "```js\nlet a = `x\n``"


def test_a_fence_at_the_end_of_the_text_closes_the_block():
    assert colour("```\na\n```") == f"{FAINT}```{RESET}\na\n{FAINT}```{RESET}"


def test_at_most_the_start_of_a_line_is_held_back():
    markdown = Markdown()
    assert markdown.feed("Hello") == "Hello"
    assert markdown.feed(" *") == " "
    assert strip(markdown.feed("w")) == "*w"
