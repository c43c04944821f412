"""Facts about starting packed files: the answer is the bare model's, from wherever, in every mode."""

from __future__ import annotations

import ast
import io
import json
import os
import sys
from pathlib import Path

import pytest
from layerlift.runtime.cli import main
from layerlift.runtime.pack import pack
from layerlift.runtime.pack_start import command_line
from packing import ANSWER, run


@pytest.fixture(scope="module")
def runnable(tiny, tmp_path_factory):
    """A tiny model packed without flags."""
    path = tmp_path_factory.mktemp("paths with blänks ✓") / "tiny mödel.llm"
    pack(tiny(), path)
    return path


def answer(capsys, argv) -> str:
    """What a command line of this process writes."""
    capsys.readouterr()
    assert main(argv) == 0
    return capsys.readouterr().out


def test_it_answers_as_the_bare_model_does(runnable, tiny, capsys):
    bare = answer(capsys, ["-m", str(tiny()), *ANSWER])
    assert len(bare) > len("Hello")
    assert answer(capsys, ["-m", str(runnable), *ANSWER]) == bare
    assert answer(capsys, command_line(str(runnable), ANSWER)) == bare


@pytest.mark.skipif(os.name == "nt", reason="this system starts no files by their first line")
def test_it_starts_by_itself_through_a_link_from_a_read_only_folder(runnable, tiny, tmp_path, capsys):
    link = tmp_path / "link"
    link.symlink_to(runnable)
    folder = runnable.parent
    folder.chmod(0o555)
    try:
        done = run("./link", *ANSWER, cwd=tmp_path)
    finally:
        folder.chmod(0o755)
    assert (done.returncode, done.stdout) == (0, answer(capsys, ["-m", str(tiny()), *ANSWER])), done.stderr


def test_it_talks_and_measures(runnable, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    assert answer(capsys, command_line(str(runnable), ["-n", "4", "--gpu", "disable", "--ignore-eos"])).strip()
    asked = ["bench", "-p", "8", "-n", "2", "-r", "1", "-o", "json", "--gpu", "disable"]
    assert [row["n_prompt"] for row in json.loads(answer(capsys, command_line(str(runnable), asked)))] == [8, 0]


def test_packed_flags_choose_the_mode_and_typed_ones_have_the_last_word(tmp_path, tiny, capsys):
    path = tmp_path / "tiny.llm"
    words = ["--", *ANSWER]
    assert main(["pack", str(tiny()), "-o", str(path), *words]) == 0
    capsys.readouterr()
    assert main(command_line(str(path), [])) == 0
    packed_alone = capsys.readouterr().out
    assert main(["-m", str(tiny()), *ANSWER]) == 0
    assert capsys.readouterr().out == packed_alone
    assert main(command_line(str(path), ["-p", "Other", "-n", "1"])) == 0
    assert capsys.readouterr().out.startswith("Other")


def test_without_layerlift_it_says_how_to_install_it(packed):
    done = run(sys.executable, "-S", "-E", packed, "--cli")
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: layerlift is not installed for {sys.executable}")
    assert "-m pip install" in hint


def test_any_python_3_can_read_the_launcher():
    import layerlift.runtime.packed.main as launcher

    ast.parse(Path(launcher.__file__).read_text("utf-8"), feature_version=(3, 4))


def test_an_old_python_is_told_what_is_needed(packed, monkeypatch, capsys):
    from layerlift.runtime.packed import main as launcher

    monkeypatch.setattr(sys, "version_info", (3, 8, 1))
    assert launcher.start("m.llm") == 1
    assert "m.llm needs Python 3.10 or newer; this is 3.8" in capsys.readouterr().err


def test_a_mistake_in_the_packed_flags_is_one_line(tmp_path, content):
    path = tmp_path / "m.llm"
    pack(content, path, args="--temp 0")
    path.write_bytes(path.read_bytes().replace(b"--temp 0", b"--temp '"))  # the checksum says so
    done = run(sys.executable, path)
    assert done.returncode == 1
    assert "'.args' is damaged" in done.stderr
    assert "Traceback" not in done.stderr
