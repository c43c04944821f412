"""Facts about the command: modes, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from layerlift.runtime.arguments import parse
from layerlift.runtime.cli import main
from layerlift.runtime.complete import prompt_of
from layerlift.runtime.startup import read_text, unescape


@pytest.fixture
def piped(monkeypatch):
    """piped(text): what stdin holds; nothing by default."""

    def pipe(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    pipe("")
    return pipe


def test_version_is_one_line_on_stdout(capsys):
    from layerlift import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"layerlift {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "first"),
    [
        (["--help"], "usage:"),
        (["--cli", "-h"], "usage:"),
        (["bench", "--help"], "layerlift bench: measure tokens per second"),
        (["pull", "-h"], "layerlift pull: fetch a model"),
    ],
)
def test_help_goes_to_stdout(capsys, argv, first):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith(first + "\n")
    assert err == ""


def test_the_start_imports_nothing_heavy():
    code = "import sys; from layerlift.runtime.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert not [name for name in ("numpy", "prompt_toolkit", "argparse", "gguf", "json") if f"'{name}'" in loaded]


@pytest.mark.parametrize(
    ("argv", "code", "message", "hint"),
    [
        (["--no-such-flag"], 2, "unknown flag --no-such-flag", "--help"),
        (["-m", "missing.gguf"], 2, "missing.gguf", "hint: "),
        (["--cli", "-p", "x", "-m", "missing.gguf"], 2, "missing.gguf", "hint: "),
        (["--cli", "-p", "x", "-m", __file__], 1, "test_cli.py", ""),
        (["--cli", "-f", "missing.txt"], 2, "cannot read 'missing.txt': No such file", ""),
        (["--cli", "-p", "x", "--top-p", "3"], 2, "top_p", ""),
        (["tokenize", "-p", "x", "-m", "missing.gguf"], 2, "missing.gguf", "hint: "),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_a_mistake_is_one_line_with_a_hint_and_no_traceback(capsys, piped, argv, code, message, hint):
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("error: ")
    assert message in err.splitlines()[0]
    assert hint in err
    assert len(err.splitlines()) <= 2


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("layerlift.runtime.usage.usage", lambda mode, **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--help"])


# -- prompts --


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"a\nb\tc", "a\nb\tc"),
        (r"a\\nb", r"a\nb"),
        (r"\x41\xc3\xa9", "Aé"),
        (r"C:\dir\q", r"C:\dir\q"),
        ("\\", "\\"),
        (r"\"\'", "\"'"),
    ],
)
def test_escapes(typed, meant):
    assert unescape(typed) == meant


def test_the_prompt_is_what_was_given_last(tmp_path, piped):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbffrom \\n file\r\n\n")
    piped("from stdin\n")
    assert prompt_of(parse(["--cli", "-p", r"typed\n"])) == "typed\n"
    assert prompt_of(parse(["--cli", "-p", r"typed\n", "--no-escape"])) == r"typed\n"
    assert prompt_of(parse(["--cli", "-p", "typed", "-f", str(file)])) == "from \\n file\n"
    assert prompt_of(parse(["--cli", "-f", str(file), "-p", "typed"])) == "typed"
    assert prompt_of(parse(["--cli"])) == "from stdin"


def test_bytes_that_are_no_text_are_replaced(tmp_path):
    file = tmp_path / "bytes"
    file.write_bytes(b"a\xffb")
    assert read_text(str(file)) == "a\ufffdb"


# -- with a tiny model --


def cli(capsys, model, *flags: str) -> str:
    assert main(["--cli", "-m", str(model), "--temp", "0", "--gpu", "disable", *flags]) == 0
    return capsys.readouterr().out


def test_stdout_is_prompt_and_completion_and_nothing_else(capsys, tiny, piped):
    both = cli(capsys, tiny(), "-p", "Hello", "-n", "8", "--ignore-eos")
    alone = cli(capsys, tiny(), "-p", "Hello", "-n", "8", "--ignore-eos", "--no-display-prompt")
    assert both == "Hello" + alone
    assert alone


def test_a_piped_prompt_gives_what_a_typed_one_gives(capsys, tiny, piped):
    typed = cli(capsys, tiny(), "-p", "Hello", "-n", "4", "--ignore-eos")
    piped("Hello\n")
    assert cli(capsys, tiny(), "-n", "4", "--ignore-eos") == typed


def test_a_prompt_cache_changes_nothing_but_time(capsys, tiny, piped, tmp_path):
    cache = tmp_path / "prompt.cache"
    flags = ("-p", "Hello there", "-n", "6", "--ignore-eos")
    plain = cli(capsys, tiny(), *flags)
    assert cli(capsys, tiny(), *flags, "--prompt-cache", str(cache), "--prompt-cache-ro") == plain
    assert not cache.exists()
    assert cli(capsys, tiny(), *flags, "--prompt-cache", str(cache)) == plain
    before = cache.read_bytes()
    assert cli(capsys, tiny(), *flags, "--prompt-cache", str(cache), "--prompt-cache-ro") == plain
    assert cache.read_bytes() == before
    assert cli(capsys, tiny(), *flags, "--prompt-cache", str(cache), "--prompt-cache-all") == plain
    assert len(cache.read_bytes()) > len(before)


def test_a_damaged_prompt_cache_is_refused(capsys, tiny, piped, tmp_path):
    cache = tmp_path / "prompt.cache"
    cache.write_bytes(b"nonsense")
    assert main(["--cli", "-m", str(tiny()), "-p", "x", "--prompt-cache", str(cache)]) == 1
    assert "error: " in capsys.readouterr().err
    assert cache.read_bytes() == b"nonsense"


def test_a_full_context_shifts_unless_told_not_to(capsys, tiny, piped):
    flags = ("-p", "Hello", "-c", "24", "-n", "60", "--ignore-eos", "--no-display-prompt", "--special")
    shifted = cli(capsys, tiny(), *flags)
    stopped = cli(capsys, tiny(), *flags, "--no-context-shift")
    assert len(shifted) > len(stopped) > 0
    assert shifted.startswith(stopped)


def test_a_prompt_longer_than_the_context_says_so(capsys, tiny, piped):
    assert main(["--cli", "-m", str(tiny()), "-p", "Hello " * 100, "-c", "16"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "context full" in err


def test_a_request_that_cannot_run_shows_no_prompt(capsys, tiny, piped):
    assert main(["--cli", "-m", str(tiny()), "-p", "Hello", "--logit-bias", "999999+1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "outside the vocabulary" in err


def test_a_context_beyond_the_trained_one_is_cut_and_says_so(capsys, tiny, piped):
    assert main(["--cli", "-m", str(tiny()), "-p", "Hello", "-n", "1", "-c", "1m"]) == 0
    assert "as many as the model was trained for" in capsys.readouterr().err


def test_a_piped_chat_answers_line_by_line(capsys, tiny, piped):
    piped("Hello\n/context\n/nothing\nthere\n")
    assert main(["-m", str(tiny()), "-n", "4", "--gpu", "disable", "--nologo"]) == 0
    out, err = capsys.readouterr()
    assert len(out) > 0
    assert "context tokens used" in err
    assert "/nothing: unrecognized command" in err


def test_tokenize_prints_ids_and_text(capsys, tiny, piped):
    assert main(["tokenize", "-m", str(tiny()), "-p", "Hi", "--json"]) == 0
    ids = json.loads(capsys.readouterr().out)
    assert main(["tokenize", "-m", str(tiny()), "-p", "Hi"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split(" -> ")[0]) for line in lines] == ids
    assert main(["tokenize", "-m", str(tiny()), "-p", "Hi", "--json", "--no-bos"]) == 0
    assert len(json.loads(capsys.readouterr().out)) <= len(ids)


def test_devices_names_the_host(capsys):
    assert main(["devices", "--json"]) == 0
    assert "numpy" in {d["backend"] for d in json.loads(capsys.readouterr().out)["devices"]}
    assert main(["devices"]) == 0
    assert "numpy:0" in capsys.readouterr().out


def test_list_shows_the_models_of_the_cache(capsys, tiny, tmp_path, monkeypatch):
    for name in ("LAYERLIFT_CACHE", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["list"]) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "models").mkdir()
    os.link(tiny(), tmp_path / "models" / "small.gguf")
    assert main(["list"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("small ")
    assert line.endswith(f"{tmp_path / 'models' / 'small.gguf'}\n")
    assert main(["list", "--json"]) == 0
    assert [m["name"] for m in json.loads(capsys.readouterr().out)] == ["small"]
    assert main(["pull", "small"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'models' / 'small.gguf'}\n"


# -- processes --


def start(*flags: str, **pipes) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "layerlift.runtime.cli", *flags], text=True, **pipes)


def test_ctrl_c_stops_a_completion_with_130(tiny):
    flags = ("--cli", "-m", str(tiny()), "-p", "Hello", "--ignore-eos", "--gpu", "disable", "--special")
    child = start(*flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.read(12).startswith("Hello")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in err


def test_a_reader_that_has_enough_ends_the_run_quietly(tiny):
    flags = ("--cli", "-m", str(tiny()), "-p", "Hello", "--ignore-eos", "--gpu", "disable", "--special")
    child = start(*flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.read(12)
    child.stdout.close()
    assert "Traceback" not in child.stderr.read()
    assert child.wait(timeout=60) == 0
    child.stderr.close()


@pytest.mark.slow
def test_the_version_comes_within_150_ms():
    def seconds() -> float:
        begin = time.perf_counter()
        assert start("--version", stdout=subprocess.DEVNULL).wait() == 0
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(10)) <= 0.15


def shell(line: str, model) -> subprocess.CompletedProcess:
    """Runs `layerlift` with the flags and redirections of a shell line; "Hello" comes in on stdin."""
    words = f"exec {sys.executable} -m layerlift.runtime.cli {line.replace('MODEL', f'{model} --gpu disable')}"
    return subprocess.run(["sh", "-c", words], input="Hello\n", capture_output=True, text=True, timeout=60)


needs_full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


@needs_full_disk
@pytest.mark.parametrize("flags", ["--cli -m MODEL -n 4", "--help", "-m MODEL -n 4 --ignore-eos --special --nologo"])
def test_a_full_disk_behind_stdout_is_one_line(tiny, flags):
    done = shell(f"{flags} >/dev/full", tiny())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: cannot write to stdout: No space left on device"
    assert "Traceback" not in done.stderr


@needs_full_disk
def test_talk_that_cannot_be_written_does_not_stop_the_data(tiny):
    flags = "--cli -m MODEL -n 4 --temp 0 --ignore-eos --special"
    heard, unheard = shell(flags, tiny()), shell(f"{flags} 2>/dev/full", tiny())
    assert unheard.returncode == 0
    assert unheard.stdout == heard.stdout != ""


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ("--cli -m MODEL -p Hello -n 2 <&-", 0),
        ("--cli -m MODEL -n 2 <&-", 0),
        ("-m MODEL -n 2 <&-", 0),
        ("--cli -m MODEL -n 2 >&-", 0),
        ("--cli -m MODEL -n 2 2>&-", 0),
        ("--cli -m MODEL -n 2 <&- >&- 2>&-", 0),
        ("--no-such-flag 2>&-", 2),
    ],
)
def test_a_closed_stream_is_an_empty_one(tiny, flags, code):
    done = shell(flags, tiny())
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
