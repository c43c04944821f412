"""Facts about what goes to the terminal, and about Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import threading

import pytest
from layerlift.runtime.errors import ContextFull
from layerlift.runtime.interrupt import interruptible
from layerlift.runtime.terminal import RED, Terminal, wants_color


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def tty(monkeypatch):
    """A terminal on both streams."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", Tty())
    monkeypatch.setattr("sys.stderr", Tty())
    return Terminal()


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_color(Tty())
    assert not wants_color(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_color(Tty())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_color(Tty())
    assert Terminal(color=True).color


def test_a_models_control_characters_are_shown_and_not_obeyed(tty):
    assert tty.shown("a\033[2Jb\rc\x9b") == "a␛[2Jb␍c\ufffd"
    assert tty.shown("tab\tand\nline é") == "tab\tand\nline é"


def test_into_a_pipe_text_goes_as_it_is(capsys):
    assert Terminal().shown("a\033b") == "a\033b"


def test_a_passing_notice_is_gone_before_the_next_words(tty):
    tty.status("loading 10%...")
    tty.status("loading 20%...")
    tty.write("data")
    assert tty.stderr.getvalue().endswith("loading 20%...\033[0m\033[K\r\033[K")
    assert tty.stdout.getvalue() == "data"


def test_an_error_is_a_line_and_its_hint_another(tty):
    tty.failure(ContextFull(3, 4, 5))
    assert tty.stderr.getvalue() == (
        f"\033[{RED}merror: context full: 3 used + 4 asked > 5\033[0m\nhint: raise -c or shorten the prompt\n"
    )


def test_quiet_leaves_errors(capsys):
    terminal = Terminal(quiet=True)
    terminal.say("talk")
    terminal.step("progress")
    terminal.error("wrong")
    assert capsys.readouterr().err == "error: wrong\n"


# -- Ctrl-C --


class Stream:
    cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def test_ctrl_c_cancels_the_watched_stream_and_a_second_one_ends_the_program():
    stream = Stream()
    before = signal.getsignal(signal.SIGINT)

    def press_twice() -> None:
        with interruptible() as interrupt:
            interrupt.watch(stream)
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.seen
            assert stream.cancelled == 1
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit, match="130"):
        press_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_there_is_a_stream_cancels_it_as_it_comes():
    stream = Stream()
    with interruptible() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        interrupt.watch(stream)
    assert stream.cancelled == 1


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def work() -> None:
        with interruptible() as interrupt:
            found.append(interrupt.seen)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
