"""Facts about shell completions and the man page: every flag and command is in them, and the shells read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from layerlift.runtime.cli import main
from layerlift.runtime.completions import PLACES, SHELLS, completion, man_page
from layerlift.runtime.flags import COMMANDS, FLAGS
from layerlift.runtime.usage import usage
from layerlift.runtime.weight_types import MIXES


@pytest.mark.parametrize("shell", SHELLS)
def test_every_flag_and_command_is_completed(shell):
    text = completion(shell)
    for name in (name for flag in FLAGS for name in flag.names):
        assert (name.lstrip("-") if shell == "fish" else name) in text, name
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_reads_its_script(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    script = tmp_path / "script"
    script.write_text(completion(shell))
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (("layerlift", "ben"), ["bench"]),
        (("layerlift", "--outt"), []),
        (("layerlift", "convert", "--outt"), ["--outtype"]),
        (("layerlift", "convert", "--outtype", "q"), ["q8_0"]),
        (("layerlift", "--cli", "--top-"), ["--top-k", "--top-p"]),
    ],
    ids=" ".join,
)
def test_bash_completes(typed, expected, tmp_path):
    if not shutil.which("bash"):
        pytest.skip("bash is not here")
    script = tmp_path / "script"
    words = " ".join(f"'{word}'" for word in typed)
    run = f'\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _layerlift; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    script.write_text(completion("bash") + run)
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_the_man_page_has_every_flag_and_command():
    text = man_page().replace("\\-", "-")
    assert all(name in text for flag in FLAGS for name in flag.names)
    assert all(f"layerlift {command}" in text for command in COMMANDS)


def test_the_build_writes_them_with_nothing_installed(tmp_path):
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-S", "-m", "runtime.share", str(tmp_path)], cwd=root, check=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    found = {path.relative_to(tmp_path).as_posix(): path.read_text("utf-8") for path in files}
    assert found == {place: man_page() if name == "man" else completion(name) for name, place in PLACES.items()}


def test_zsh_finds_and_runs_its_script(tmp_path):
    if not shutil.which("zsh"):
        pytest.skip("zsh is not here")
    pexpect = pytest.importorskip("pexpect")
    (tmp_path / "_layerlift").write_text(completion("zsh"))
    child = pexpect.spawn("zsh", ["-f", "-i"], encoding="utf-8", timeout=20, env={"TERM": "dumb", "PS1": "> "})
    try:
        child.sendline(f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -D; echo rea''dy")
        child.expect("ready")
        child.send("layerlift convert --outt\t")
        child.expect("--outtype")
    finally:
        child.close(force=True)


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completions", "csh"]) == 2
    assert "there are some for bash, zsh, fish" in capsys.readouterr().err
    assert main(["man"]) == 0
    assert capsys.readouterr().out == man_page()


def test_the_help_and_the_man_page_name_every_type_of_quantize():
    listed, manual = usage("quantize"), man_page()
    for mix in MIXES:
        assert re.search(rf"^  {mix.name} +{mix.fmt} +{mix.bits:.4g}$", listed, re.MULTILINE), mix.name
        assert f".B {mix.name}\n{mix.fmt}, {mix.bits:.4g} bits a weight\n" in manual
