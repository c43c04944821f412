"""Facts about the chat's commands, with a scripted engine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine, system_inside
from layerlift.runtime.chat import Chat
from layerlift.runtime.chat_commands import COMMANDS, document
from scripted_chat import Script, make, text_of


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


def test_a_documents_fence_is_longer_than_any_inside():
    assert "\n`````txt\n" in document(Path("a.txt"), "x ```` y")
