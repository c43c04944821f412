"""Facts about the command line: one table, one parser."""

from __future__ import annotations

import pytest
from layerlift.runtime.arguments import parse
from layerlift.runtime.errors import UserError
from layerlift.runtime.flags import COMMANDS, FLAGS, MODES, flags_of
from layerlift.runtime.usage import usage


def error(*argv: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse(argv)
    return caught.value


def test_no_flag_at_all_is_a_chat_with_the_default_model():
    options = parse([])
    assert (options.mode, options.model, options.context, options.ngl) == ("chat", None, 8192, "auto")


@pytest.mark.parametrize("mode", MODES)
def test_within_a_mode_every_name_has_one_meaning(mode):
    names = [name for flag in flags_of(mode) for name in flag.names]
    assert len(names) == len(set(names))


def test_chat_and_cli_give_a_name_the_same_meaning():
    chat = {name: flag for flag in flags_of("chat") for name in flag.names}
    cli = {name: flag for flag in flags_of("cli") for name in flag.names}
    assert all(chat[name] is cli[name] for name in chat.keys() & cli.keys())


@pytest.mark.parametrize("mode", MODES)
def test_the_help_names_every_flag_of_its_mode(mode):
    text = usage(mode)
    assert all(name in text for flag in flags_of(mode) for name in flag.names)
    assert all(len(line) <= 110 for line in text.splitlines())


@pytest.mark.parametrize("mode", COMMANDS)
def test_a_commands_help_has_its_own_flags_under_one_heading_and_fits_on_a_screen(mode):
    lines = usage(mode).splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert lines[0] == f"layerlift {mode}: {COMMANDS[mode]}"
    assert len(headings) <= 3
    assert (headings[0], headings[-1]) == ("usage:", "help:")
    assert len(lines) <= 50


def test_the_main_help_names_every_command():
    assert all(f"layerlift {command}" in usage("chat") for command in COMMANDS)


@pytest.mark.parametrize("flag", [f for f in FLAGS if f.kind and f.kind.choices], ids=lambda f: f.names[0])
def test_every_choice_is_accepted_in_any_case(flag):
    command = {"chat": [], "server": ["--server"]}.get(flag.modes[0], [flag.modes[0]])
    for word in flag.kind.choices:
        assert getattr(parse([*command, flag.names[0], word.upper()]), flag.dest) in (word, (word,))


@pytest.mark.parametrize(
    ("argv", "dest", "value"),
    [
        (["-p", "-hello"], "prompt", "-hello"),
        (["-p", "--cli"], "prompt", "--cli"),
        (["--prompt=a=b"], "prompt", "a=b"),
        (["--top_k", "5"], "top_k", 5),
        (["--n_gpu_layers=7"], "ngl", 7),
        (["-ngl", "all"], "ngl", 999),
        (["-ngl", "auto"], "ngl", "auto"),
        (["-ngl=0"], "ngl", 0),
        (["-c", "8k"], "context", 8192),
        (["-c", "0"], "context", 0),
        (["-n", "-2"], "max_tokens", -2),
        (["--gpu", "CUBLAS"], "gpu", "nvidia"),
        (["--temp", "0.5", "--temp", "0.7"], "temperature", 0.7),
        (["--no-escape", "-e"], "escape", True),
        (["-r", "a", "-r", "-b"], "stop", ("a", "-b")),
        (["--logit-bias", "5+1", "--logit-bias", "7-1.5"], "logit_bias", ((5, 1.0), (7, -1.5))),
        (["--logit-bias", "5-inf"], "logit_bias", ((5, float("-inf")),)),
        (["--samplers", "top_k;temperature"], "samplers", ("top_k", "temperature")),
        (["-ts", "3,1"], "tensor_split", (3.0, 1.0)),
        (["--cli", "--keep", "4"], "keep", 4),
        (["bench", "-p", "512,1024"], "n_prompt", (512, 1024)),
        (["bench", "-r", "5"], "repetitions", 5),
        (["pull", "hf:a/b:c.gguf"], "words", ["hf:a/b:c.gguf"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_a_flag_is_read_as_typed(argv, dest, value):
    assert getattr(parse(argv), dest) == value


def test_the_temperature_depends_on_the_mode():
    assert parse([]).temperature == 0.0
    assert parse(["--cli"]).temperature == 0.8
    assert parse(["--cli", "--temp", "0"]).temperature == 0.0


def test_the_last_mode_wins():
    assert parse(["--cli", "--chat"]).mode == "chat"
    assert parse(["--chat", "-p", "x", "--cli"]).mode == "cli"


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["--tmp", "1"], "unknown flag --tmp", "--temp"),
        (["--top"], "unknown flag --top", "--top-k"),
        (["-zzz"], "unknown flag -zzz", "layerlift --help"),
        (["tokenize", "--temp", "1"], "unknown flag --temp for 'tokenize'", "layerlift tokenize --help"),
        (["--port", "70000", "--server"], "--port takes a port from 0 to 65535, not '70000'", ""),
        (["model.gguf"], "unexpected argument 'model.gguf'", "layerlift -m model.gguf"),
        (["benhc"], "unexpected argument 'benhc'", "layerlift bench"),
        (["-n"], "-n needs a value: -n N", "--help"),
        (["-n", "many"], "-n takes a whole number, not 'many'", ""),
        (["-n", "-3"], "-n takes a whole number of at least -2, not '-3'", ""),
        (["-c", "-1"], "-c takes a whole number of at least 0, not '-1'", ""),
        (["-c", "1e3"], "-c takes a whole number such as 4096 or 8k, not '1e3'", ""),
        (["--temp", "nan"], "--temp takes a finite number, not 'nan'", ""),
        (["--gpu", "apple"], "--gpu takes one of auto, nvidia, amd, opencl, disable, not 'apple'", ""),
        (["-ngl", "-7"], "-ngl takes a number of layers, 'auto' or 'all', not '-7'", ""),
        (["--logit-bias", "x"], "--logit-bias takes a token id and a bias, such as 15043+1 or 15043-1.5", ""),
        (["--verbose=1"], "--verbose takes no value, got '1'", ""),
        (["--keep", "1"], "--keep works with --cli only", ""),
        (["--cli", "--nologo"], "--nologo works without --cli only", ""),
        (["-ctk", "f16", "-ctv", "f32"], "-ctk f16 and -ctv f32 differ", ""),
        (["--grammar", "x", "-j", "{}"], "--grammar and --json-schema cannot both decide", ""),
        (["-ts", "0,0"], "-ts takes one share for each device", ""),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_a_mistake_is_named_with_what_would_be_right(argv, message, hint):
    mistake = error(*argv)
    assert message in str(mistake)
    assert hint in mistake.hint
    assert "\n" not in str(mistake)


def test_the_short_help_fits_on_a_screen_and_leads_to_the_whole():
    short, whole = usage("chat", whole=False), usage("chat")
    assert len(short.splitlines()) <= 70 < len(whole.splitlines())
    assert "--help-all" in short
    assert "-m, --model" in short
    assert "--mirostat" not in short
    assert "--mirostat" in whole
