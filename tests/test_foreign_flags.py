"""Facts about flags that users of llama.cpp, llamafile and Ollama bring along: each works, is noted, or is refused."""

from __future__ import annotations

import pytest
from layerlift.runtime.arguments import parse
from layerlift.runtime.cli import main
from layerlift.runtime.errors import UserError
from layerlift.runtime.flags import MODES, flags_of
from layerlift.runtime.foreign_flags import COMMANDS, INSTEAD, UNNEEDED


@pytest.mark.parametrize(
    ("typed", "dest", "value"),
    [
        ("-cnv", "mode", "chat"),
        ("-no-cnv", "mode", "cli"),
        ("--cli --conversation", "mode", "chat"),
        ("-sys Hello", "prompt", "Hello"),
        ("-hf org/repo", "model", "hf:org/repo"),
        ("-hf org/repo:Q8_0", "model", "hf:org/repo:Q8_0"),
        ("-hfr org/repo -hff a.gguf", "model", "hf:org/repo:a.gguf"),
        ("--hf-file a.gguf --hf-repo hf:org/repo", "model", "hf:org/repo:a.gguf"),
        ("-mu https://host/m.gguf", "model", "https://host/m.gguf"),
        ("--gpu-layers 99", "ngl", 99),
        ("-l 5+1", "logit_bias", ((5, 1.0),)),
        ("-ub 64", "batch", 64),
    ],
)
def test_these_work(typed, dest, value):
    assert getattr(parse(typed.split()), dest) == value


@pytest.mark.parametrize("name", UNNEEDED)
@pytest.mark.parametrize("mode", [(), ("--cli",), ("bench",), ("perplexity",)])
def test_these_are_taken_with_a_note_and_change_nothing(name, mode):
    if name == "--no-warmup" and mode == ("bench",):
        return  # bench has a warm-up to leave out
    value = {"none": [], "one": ["7"], "maybe": ["on"]}[UNNEEDED[name].value]
    options = parse([*mode, name, *value, "--verbose"])
    assert options.notes == [f"{name} changes nothing here: {UNNEEDED[name].reason}"]
    assert (options.verbose, options.words) == (True, [])


def test_a_value_that_may_be_left_out_is_told_from_the_next_flag():
    for typed in ("-fa -c 64", "-fa on -c 64", "-fa=on -c 64", "--flash_attn auto -c 64"):
        options = parse(typed.split())
        assert (options.context, len(options.notes)) == (64, 1), typed


@pytest.mark.parametrize("name", INSTEAD)
def test_these_are_refused_in_one_line_with_what_to_type_instead(name, capsys):
    assert main([name, "1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"error: unknown flag {name}", f"hint: {INSTEAD[name]}"]


def test_no_flag_is_both_known_and_foreign():
    known = {name for mode in MODES for flag in flags_of(mode) for name in flag.names}
    loading = {name for mode in ("chat", "cli", "server") for flag in flags_of(mode) for name in flag.names}
    assert not loading & UNNEEDED.keys()
    assert not known & INSTEAD.keys()
    assert not UNNEEDED.keys() & INSTEAD.keys()


@pytest.mark.parametrize("word", COMMANDS)
def test_other_programs_commands_lead_to_ours(word):
    with pytest.raises(UserError) as caught:
        parse([word, "llama3.2"])
    assert caught.value.hint == COMMANDS[word]


def test_commands_that_read_files_refuse_flags_of_models():
    with pytest.raises(UserError, match="unknown flag --mlock for 'list'"):
        parse(["list", "--mlock"])


def test_a_note_is_one_line_on_stderr(tmp_path, capsys):
    assert main(["--cli", "-m", str(tmp_path / "none.gguf"), "-p", "x", "--mlock"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "note: --mlock changes nothing here: the system decides which pages stay"
    main(["--cli", "-m", str(tmp_path / "none.gguf"), "-p", "x", "--mlock", "--log-disable"])
    assert "note: " not in capsys.readouterr().err


def test_hff_alone_names_no_file():
    with pytest.raises(UserError, match="-hff names a file in the repository of -hf"):
        parse(["-m", "x.gguf", "-hff", "a.gguf"])


# -- mistakes that show before a model is loaded --

MISTAKES = [
    (["-m", ""], "the name of the model is empty"),
    (["--grammar", "root ::= ("], "grammar: "),
    (["--grammar", "x ::= 'a'"], "grammar: "),
    (["--grammar-file", "nowhere"], "cannot read 'nowhere'"),
    (["-j", "{"], "JSON schema: not JSON"),
    (["-j", '{"type": "nonsense"}'], "JSON schema: "),
    (["--prompt-cache", "nowhere/x"], "--prompt-cache 'nowhere/x': the folder"),
    (["--prompt-cache", "."], "is a folder"),
    (["--prompt-cache-all"], "need --prompt-cache FILE"),
]


@pytest.mark.parametrize(("typed", "message"), MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_a_mistake_shows_before_the_model_is_loaded(typed, message, capsys, tmp_path, monkeypatch, tiny):
    from layerlift.runtime.model import Model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Model, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    model = [] if "-m" in typed else ["-m", str(tiny("F32"))]
    assert main(["--cli", *model, "-p", "x", *typed]) in (1, 2)
    assert message in capsys.readouterr().err
    if typed[0] in ("--grammar", "--grammar-file", "-j"):
        assert main([*model, *typed]) in (1, 2)
        assert message in capsys.readouterr().err
