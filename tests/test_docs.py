"""What README and docs/ show is true of the code: commands parse, flags and files exist, tables are the code's own."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest
from layerlift.runtime import foreign_flags
from layerlift.runtime.arguments import parse
from layerlift.runtime.chat_commands import COMMANDS
from layerlift.runtime.flags import FLAGS
from layerlift.runtime.pack_args import PackedArgs, compose

ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in FILES}
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
KNOWN = {name for flag in FLAGS for name in flag.names} | {*foreign_flags.UNNEEDED, *foreign_flags.INSTEAD}
OTHERS = {"-e"}  # of pip


def code(text: str) -> list[str]:
    """Indented lines and those in fences, then what stands in backticks elsewhere."""
    fenced = [line for block in FENCE.findall(text) for line in block.splitlines()]
    text = FENCE.sub("", text)
    return [*fenced, *INDENTED.findall(text), *re.findall(r"`([^`\n]+)`", INDENTED.sub("", text))]


def commands(line: str) -> list[list[str]]:
    """The commands of a shell line, comments left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.commenters = "#" if re.search(r"(^|\s)#", line) else ""
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    try:
        for word in lexer:
            found.append([]) if set(word) <= set("|&;<>") else found[-1].append(word)
    except ValueError:  # an apostrophe in a sentence: no shell line
        return []
    return [words for words in found if words]


def shown(start: str) -> list:
    """Every command on any page whose first word fits `start`."""
    return [
        pytest.param(words, id=f"{page}: {' '.join(words)}")
        for page, text in PAGES.items()
        for line in dict.fromkeys(code(text))
        for words in commands(line)
        if re.fullmatch(start, words[0])
    ]


@pytest.mark.parametrize("words", shown(r"(ExecStart=)?(/\S+/)?layerlift"))
def test_a_command_is_one_that_layerlift_takes(words):
    parse(words[1:])


@pytest.mark.parametrize("words", shown(r"\./\S+\.llm"))
def test_a_packed_file_takes_the_words_shown(words):
    parse(compose(PackedArgs(), words[1:], words[0]))


@pytest.mark.parametrize("page", PAGES)
def test_flags_are_in_the_table(page):
    words = {match[1].partition("=")[0] for text in code(PAGES[page]) if (match := re.match(r"(--?[a-z][\w-]*)", text))}
    assert words <= KNOWN | OTHERS


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_exist(page):
    text = PAGES[page]
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    named = re.findall(r"`((?:docs|bench|tests|runtime|backends|kernels)/[\w/.-]*\w)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = re.findall(r"python -m (layerlift[\w.]*)", text)
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("page", PAGES)
def test_extras_can_be_installed(page):
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    section = project[project.index("[project.optional-dependencies]") : project.index("[project.scripts]")]
    for names in re.findall(r"(?:layerlift|\.)\[([\w,-]+)\]'", PAGES[page]):
        assert set(names.split(",")) <= set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE)), names


def test_every_page_is_reached_from_the_readme():
    assert all(f"]({page})" in PAGES["README.md"] for page in PAGES if page != "README.md")


def test_the_readmes_python_runs(tiny, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", PAGES["README.md"], re.DOTALL)
    os.symlink(tiny(), tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block.replace("stream=True", "stream=True, max_tokens=4"), "README.md", "exec"), names)
    assert len(names["vectors"]) == 2
    assert names["tokens"]


def test_the_chats_commands_are_those_of_its_page():
    rows = re.findall(r"^\| `(/[^`]+)` \|", PAGES["docs/chat.md"], re.MULTILINE)
    own = [f"{command.name} {command.arguments}".strip() for command in dict.fromkeys(COMMANDS.values())]
    assert sorted(row.replace("\\|", "|") for row in rows) == sorted(own)


def test_the_tables_of_formats_are_the_codes_own():
    from format_table import PAGE, page
    from layerlift.kernels.cpu import native

    if native.library() is None:
        pytest.skip(f"no native library to ask: {native.reason()}")
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "python tests/format_table.py writes them anew"
