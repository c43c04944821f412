"""Facts about the chat's turns, with a scripted engine."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from fake_engine import FakeEngine, chatml_with_default
from layerlift.runtime.cli import main
from scripted_chat import Script, make, text_of


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
