"""Facts about the chat: with a scripted engine, and on a pseudo-terminal."""

from __future__ import annotations

import io
import os
import re
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
from fake_engine import FakeEngine, chatml_with_default, system_inside
from layerlift.runtime.arguments import parse
from layerlift.runtime.chat import Chat
from layerlift.runtime.chat_commands import COMMANDS, document
from layerlift.runtime.cli import main
from layerlift.runtime.line_editor import PlainReader, _completer, is_open, without_fences
from layerlift.runtime.startup import sampling_of
from layerlift.runtime.terminal import Terminal

HERE = Path(__file__).resolve().parent


class Script:
    """A reader of prepared lines; KeyboardInterrupt in the list is raised."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def read(self, role, placeholder):
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line


def make(engine: FakeEngine, *flags: str) -> Chat:
    options = parse(flags)
    return Chat(engine, options, Terminal(), sampling_of(options))


def text_of(chat: Chat) -> str:
    return chat.conversation.tokenizer.decode(chat.conversation.tokens, special=True)


def test_a_turn_goes_through_the_template_and_the_answer_to_stdout(capsys):
    chat = make(FakeEngine(["Four."]))
    assert chat.run(Script("2+2?")) == 0
    assert capsys.readouterr().out == "Four.\n"
    assert text_of(chat) == ("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n")


def test_each_turn_reuses_all_that_was_evaluated():
    engine = FakeEngine(["one", "two", "three"])
    make(engine).run(Script("a", "b", "c"))
    before = [0, *(len(r.tokens) + 3 for r in engine.requests[:1])]
    assert engine.cached[:2] == before
    assert engine.cached[2] == len(engine.requests[1].tokens) + 3


def test_the_prompt_flag_is_the_system_prompt_and_is_taken_in_first(capsys):
    engine = FakeEngine(template=chatml_with_default)
    chat = make(engine, "-p", "Talk\\nlike a pirate")
    assert chat.start(None)
    assert engine.requests[0].max_tokens == 0
    chat.run(Script("hi"))
    assert text_of(chat).startswith("<|im_start|>system\nTalk\nlike a pirate<|im_end|>\n<|im_start|>user\nhi")
    assert "Talk\nlike a pirate" in capsys.readouterr().err


def test_a_book_is_added_to_the_talk_and_stays_after_clear(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("Call me Ishmael.\n")
    chat = make(FakeEngine(), "-f", str(book))
    assert chat.start(book.read_text())
    chat.run(Script("Who?", "/clear"))
    assert "Call me Ishmael." in text_of(chat)
    assert "Who?" not in text_of(chat)


def test_a_book_that_does_not_fit_ends_the_start(capsys):
    chat = make(FakeEngine(context=50), "-f", "book.txt")
    assert not chat.start("x" * 100)
    assert "ran out of context window" in capsys.readouterr().err


def interrupt_after(engine: FakeEngine, count: int) -> None:
    def press(n: int) -> None:
        if n == count and len(engine.requests) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # until the main thread has taken it

    engine.pause, engine.on_token = 0.001, press


def test_ctrl_c_stops_the_answer_and_closes_its_turn():
    engine = FakeEngine(["x" * 5000, "fine"], context=9000)
    interrupt_after(engine, 3)
    chat = make(engine)
    assert chat.run(Script("go on", "and now?")) == 0
    assert re.search(r"assistant\nxxx<\|im_end\|>\n<\|im_start\|>user\nand now\?<\|im_end\|>\n", text_of(chat))
    assert text_of(chat).endswith("fine<|im_end|>\n")


def test_ctrl_c_before_the_first_token_takes_the_question_back():
    engine = FakeEngine(["x" * 5000])
    interrupt_after(engine, 0)
    chat = make(engine)
    chat.run(Script("question"))
    assert text_of(chat) == ""


def test_ctrl_c_at_the_prompt_leaves():
    assert make(FakeEngine()).run(Script("a", KeyboardInterrupt, "b")) == 130


def test_a_failing_turn_leaves_the_chat_as_it_was(capsys):
    chat = make(FakeEngine(context=60))
    chat.run(Script("x" * 100, "hi"))
    assert "ran out of context window at 1" in capsys.readouterr().err
    assert "xxx" not in text_of(chat)
    assert "hi" in text_of(chat)


def test_forget_is_no_way_out_where_only_the_opening_or_the_question_is_too_long(capsys):
    chat = make(FakeEngine(context=60))
    chat.run(Script("x" * 100))
    err = capsys.readouterr().err
    assert "-c MAX" in err
    assert "/forget" not in err
    chat.run(Script("hi", "x" * 100))
    assert "/forget" in capsys.readouterr().err


def test_a_full_context_is_said_with_a_way_out_and_nothing_is_shifted(capsys):
    engine = FakeEngine(["y" * 500], context=100)
    make(engine).run(Script("hi"))
    err = capsys.readouterr().err
    assert "ran out of context window at 100 tokens" in err
    assert "-c MAX" in err
    assert "/forget" in err
    assert not engine.requests[0].context_shift


def test_the_seed_changes_with_the_turn_and_starts_with_the_one_asked_for():
    engine = FakeEngine()
    make(engine, "-s", "7").run(Script("a", "b"))
    assert [r.sampling.seed for r in engine.requests] == [7, 8]


def test_without_a_template_text_is_completed_raw(capsys):
    engine = FakeEngine([" upon", " a time"], template=None)
    chat = make(engine)
    chat.introduce()
    chat.run(Script("Once", ""))
    assert text_of(chat) == "<s>Once upon a time"
    assert "raw text completion" in capsys.readouterr().err


# -- commands --


def run(capsys, *lines: str, engine: FakeEngine | None = None, flags=()) -> tuple[Chat, str, str]:
    chat = make(engine or FakeEngine(["A1", "A2", "A3"]), *flags)
    chat.run(Script(*lines))
    out, err = capsys.readouterr()
    return chat, out, err


def test_undo_takes_back_question_and_answer_until_nothing_is_left(capsys):
    chat, _, err = run(capsys, "one", "two", "/undo")
    assert "two" not in text_of(chat)
    assert text_of(chat).endswith("A1<|im_end|>\n")
    assert "restoring conversation to:" in err
    chat.run(Script("/undo", "/undo"))
    assert text_of(chat) == ""
    assert "no further undo actions possible" in capsys.readouterr().err


def test_push_and_pop_come_back_to_a_point(capsys):
    chat, _, err = run(capsys, "one", "/push", "two", "/pop", "/pop")
    assert text_of(chat).endswith("A1<|im_end|>\n")
    assert re.search(r"^ +\d+ restored \(.*A1", err, re.MULTILINE)
    assert "context length stack is empty" in err


def test_stack_lists_the_newest_point_first(capsys):
    _, _, err = run(capsys, "/stack", "one", "/push", "two", "/push")
    assert "stack is currently empty (try using /push)" in err
    last = err.splitlines()[-2:]
    assert "A2" in last[0]
    assert "A1" in last[1]


def test_forget_drops_the_oldest_message_and_moves_the_cache_up(capsys):
    chat, _, err = run(capsys, "one", "two", "/forget")
    assert "one" not in text_of(chat)
    assert chat.session.forgotten == [(0, len("user\none\n") + 2)]
    assert chat.session.tokens == chat.conversation.tokens[: len(chat.session.tokens)]
    assert "forgetting: one" in err
    chat.run(Script("/forget", "/forget", "/forget", "/forget"))
    assert "nothing left to forget" in capsys.readouterr().err


def test_undo_after_forget_goes_back_to_the_same_place(capsys):
    chat, _, _ = run(capsys, "one", "two", "three", "/forget", "/undo")
    assert text_of(chat).endswith("A2<|im_end|>\n")


def test_forget_with_a_system_prompt_inside_the_question_writes_it_anew(capsys):
    engine = FakeEngine(["A1", "A2"], template=system_inside)
    chat, _, _ = run(capsys, "one", "two", "/forget", engine=engine, flags=("-p", "Brief"))
    assert text_of(chat).startswith("<s>[<<Brief>> two]")
    assert chat.session.forgotten == []


def test_clear_empties_conversation_stack_and_undo(capsys):
    chat, _, err = run(capsys, "one", "/push", "/clear", "/undo", "/stack")
    assert text_of(chat) == ""
    assert "no further undo" in err
    assert "stack is currently empty" in err


def test_context_counts_tokens(capsys):
    chat, _, err = run(capsys, "one", "/context")
    used = len(chat.conversation.tokens)
    assert f"{used} out of 1000 context tokens used ({1000 - used} tokens remaining)" in err
    assert "-c MAX" in err


def test_stats_sum_up_the_session_and_name_the_seed(capsys):
    _, _, err = run(capsys, "one", "two", "/stats", flags=("--seed", "42"))
    assert re.search(r"llama_print_timings: prompt eval time = +1000\.00 ms / +\d+ tokens \(", err)
    assert re.search(r"llama_print_timings: +eval time = +500\.00 ms / +4 runs +\( *125\.00 ms per token, +8\.00 ", err)
    assert "llama_print_timings:        load time =" in err
    assert "seed = 42" in err


def test_dump_writes_the_conversation_with_its_marks(capsys, tmp_path):
    file = tmp_path / "talk.txt"
    chat, out, _ = run(capsys, "one", "/dump", f"/dump {file}")
    assert text_of(chat) + "\n" in out
    assert file.read_text() == text_of(chat) + "\n"


def test_manual_mode_adds_messages_without_answers(capsys):
    engine = FakeEngine(["never"])
    chat, out, err = run(capsys, "/manual", "", "I am a bot", "hi", "/manual off", engine=engine)
    assert "manual mode enabled" in err
    assert "manual mode disabled" in err
    assert out == ""
    assert text_of(chat) == "<|im_start|>assistant\nI am a bot<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert chat.role == "user"


def test_upload_adds_a_text_file_as_a_system_message(capsys, tmp_path):
    file = tmp_path / "my notes.md"
    file.write_text("Use ``` here\n")
    chat, _, err = run(capsys, f"/upload {file}", "/undo", f"/upload {file}")
    text = text_of(chat)
    assert text.startswith("<|im_start|>system\n- **Filename**: `my notes.md`\n- **Last modified**: 20")
    assert "````md\nUse ``` here\n````" in text
    assert "my notes.md:" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "/nothing: unrecognized command"),
        ("/help nothing", "nothing: unknown command"),
        ("/undo 3", "/undo: too many arguments"),
        ("/upload", "/upload needs a file"),
        ("/upload /no/such/file", "no file '/no/such/file'"),
        ("/upload /", "'/' is not a file"),
        (f"/upload {sys.executable}", "is not a text file"),
        ("/manual perhaps", "/manual takes on or off"),
        ("/dump /no/such/folder/x", "cannot write '/no/such/folder/x'"),
    ],
)
def test_a_mistaken_command_is_one_line_and_changes_nothing(capsys, line, message):
    chat, out, err = run(capsys, line)
    assert message in err.splitlines()[0]
    assert out == ""
    assert text_of(chat) == ""


def test_help_names_every_command_and_explains_each(capsys):
    _, _, err = run(capsys, "/help", *(f"/help {name[1:]}" for name in COMMANDS if name != "/?"))
    assert all(name in err for name in COMMANDS if name != "/?")
    assert "usage: /manual [on|off]" in err


@pytest.mark.parametrize("line", ["/exit", "/bye"])
def test_leaving_by_command(capsys, line):
    engine = FakeEngine()
    run(capsys, line, "never asked", engine=engine)
    assert engine.requests == []


def test_help_lists_a_command_once(capsys):
    make(FakeEngine()).run(Script("/help"))
    names = [line.split()[0] for line in capsys.readouterr().err.splitlines() if line.startswith("  /")]
    assert names == [name for name in COMMANDS if name != "/?"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-f", ""), "cannot read ''"),
        (("-f", "BINARY"), "binary is not a text file"),
        (("--chat-template", "zephyr"), "'zephyr' is neither a built-in template nor a file"),
    ],
)
def test_a_flag_that_cannot_be_followed_ends_the_start(capsys, tiny, tmp_path, flags, message):
    (tmp_path / "binary").write_bytes(b"\x7fELF\0")
    words = [str(tmp_path / "binary") if word == "BINARY" else word for word in flags]
    assert main(["-m", str(tiny()), "--log-disable", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_documents_fence_is_longer_than_any_inside():
    assert "\n`````txt\n" in document(Path("a.txt"), "x ```` y")


# -- reading lines --


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


# -- on a terminal --


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
