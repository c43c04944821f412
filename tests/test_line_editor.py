"""Facts about reading what the user types: plain lines, fences, and a chat on a pseudo-terminal."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from pathlib import Path

import pytest
from layerlift.runtime.line_editor import PlainReader, _completer, is_open, without_fences

HERE = Path(__file__).resolve().parent


def test_fences_hold_several_lines():
    assert is_open('"""a\nb')
    assert not is_open('"""a\nb"""')
    assert without_fences('"""\na\nb\n"""') == "a\nb"
    assert without_fences('say """this"""') == 'say """this"""'


def test_plain_lines_come_one_by_one_with_fences_joined(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO('one\r\n"""two\n  three"""\n"""four\n'))
    reader = PlainReader()
    assert [reader.read("user", "") for _ in range(3)] == ["one", "two\n  three", "four"]
    with pytest.raises(EOFError):
        reader.read("user", "")


def test_tab_completes_commands_and_paths(tmp_path):
    from prompt_toolkit.document import Document

    (tmp_path / "notes.txt").touch()
    completer = _completer(("/dump", "/upload", "/undo"))

    def completions(text: str) -> list[str]:
        return [text[: len(text) + c.start_position] + c.text for c in completer.get_completions(Document(text), None)]

    assert completions("/u") == ["/upload", "/undo"]
    assert completions(f"/upload {tmp_path}/no") == [f"/upload {tmp_path}/notes.txt"]
    assert completions("plain words") == []


@pytest.fixture
def spawn(tmp_path):
    pexpect = pytest.importorskip("pexpect")
    children = []

    def start(*flags: str, **env: str):
        child = pexpect.spawn(
            sys.executable,
            [str(HERE / "fake_engine.py"), *flags],
            env={
                **os.environ,
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "HOME": str(tmp_path),
                "XDG_STATE_HOME": str(tmp_path / "state"),
                **env,
            },
            encoding="utf-8",
            timeout=20,
            dimensions=(24, 100),
        )
        children.append(child)
        child.expect(">>> ")
        return child

    yield start
    for child in children:
        child.close(force=True)


def test_on_a_terminal_lines_fences_interrupts_and_leaving_work(spawn, tmp_path):
    child = spawn()
    child.send("hello\r")
    child.expect("<'hello'>")
    child.expect(">>> ")
    child.send('"""one\rtwo"""\r')  # Enter inside fences makes a line
    child.expect(r"<'one\\ntwo'>")
    child.expect(">>> ")
    child.send("three\nfour\r")  # Ctrl-J too
    child.expect(r"<'three\\nfour'>")
    child.expect(">>> ")
    child.send("\033[200~pasted\nlines\033[201~\r")  # and a bracketed paste
    child.expect(r"<'pasted\\nlines'>")
    child.expect(">>> ")
    child.send("/unheard\r")
    child.expect("unrecognized command")
    child.expect(">>> ")
    child.send("forever\r")
    child.expect("again again")
    child.sendintr()  # stops the answer, not the chat
    child.expect(">>> ")
    child.send("/dump\r")
    child.expect("<.im_end.>")
    child.expect(">>> ")
    child.sendeof()
    child.expect_exact([__import__("pexpect").EOF])
    child.wait()
    assert child.exitstatus == 0
    history = tmp_path / "state" / "layerlift" / "history"
    assert "hello" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_ctrl_c_at_the_terminals_prompt_exits_130(spawn, tmp_path):
    child = spawn("--log-disable")
    child.sendintr()
    child.expect_exact([__import__("pexpect").EOF])
    child.wait()
    assert child.exitstatus == 130
    assert not (tmp_path / "state" / "layerlift" / "history").exists()


def test_no_color_is_respected(spawn):
    child = spawn(NO_COLOR="1")
    child.send("**bold**\r")
    child.expect(r"<'\*\*bold\*\*'>")
    assert "\033[1m" not in child.before
    assert not re.search(r"\033\[[0-9;]*3[0-7]m", child.before)
