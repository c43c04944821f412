"""Shell completions and the man page, made from the table of flags. Knows nothing of what a flag brings about.

The build writes them where shells and man look (share.py).
"""

from __future__ import annotations

from pathlib import Path

from . import usage
from .flags import COMMANDS, MODES, Flag, flags_of
from .weight_types import MIXES

TALKING = tuple(mode for mode in MODES if mode not in COMMANDS)  # chosen by a flag, not by a word
SHELLS = ("bash", "zsh", "fish")
PLACES = {  # below `share`
    "bash": "bash-completion/completions/layerlift",
    "zsh": "zsh/site-functions/_layerlift",
    "fish": "fish/vendor_completions.d/layerlift.fish",
    "man": "man/man1/layerlift.1",
}


def write(share: Path) -> None:
    """Writes the man page and every shell's script to their places below the folder `share`."""
    for name, place in PLACES.items():
        file = share / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(man_page() if name == "man" else completion(name), "utf-8")


def _flags(mode: str) -> list[Flag]:
    """The flags of a command, or of all modes that a flag chooses where `mode` is ""."""
    modes = (mode,) if mode else TALKING
    return list(dict.fromkeys(flag for each in modes for flag in flags_of(each)))


def completion(shell: str) -> str:
    """The script that completes layerlift's command line in a shell of SHELLS."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _bash() -> str:
    def names(mode: str) -> str:
        return " ".join(name for flag in _flags(mode) for name in flag.names)

    choices = {
        name: " ".join(flag.kind.choices)
        for mode in ("", *COMMANDS)
        for flag in _flags(mode)
        if flag.kind and flag.kind.choices
        for name in flag.names
    }
    values = "\n".join(
        f'    {name}) COMPREPLY=($(compgen -W "{words}" -- "$cur")); return ;;' for name, words in choices.items()
    )
    commands = "\n".join(f'    {mode}) words="{names(mode)}" ;;' for mode in COMMANDS)
    return f"""\
# layerlift completions bash > ~/.local/share/bash-completion/completions/layerlift
_layerlift() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" words
  COMPREPLY=()
  case "$prev" in
{values}
  esac
  case "${{COMP_WORDS[1]}}" in
{commands}
    *) words="{names("")}"; [ "$COMP_CWORD" = 1 ] && words="$words {" ".join(COMMANDS)}" ;;
  esac
  if [[ "$cur" == -* || "$COMP_CWORD" = 1 ]]; then COMPREPLY=($(compgen -W "$words" -- "$cur")); fi
}}
complete -o default -F _layerlift layerlift
"""


def _zsh() -> str:
    def quoted(text: str) -> str:
        return (
            text.replace("\\", "\\\\").replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
        )

    def specs(mode: str) -> str:
        lines = []
        for flag in _flags(mode):
            value = ""
            if flag.kind:
                value = f":{quoted(flag.kind.metavar)}:" + (
                    f"({' '.join(flag.kind.choices)})" if flag.kind.choices else "_files"
                )
            lines += [f"'*{name}[{quoted(flag.help)}]{value}'" for name in flag.names]
        return " \\\n        ".join([*lines, "'*:file:_files'"])

    commands = "\n".join(f"      {mode}) _arguments \\\n        {specs(mode)} ;;" for mode in COMMANDS)
    listed = " ".join(f"'{name}:{quoted(text)}'" for name, text in COMMANDS.items())
    return f"""\
#compdef layerlift
# layerlift completions zsh > a folder of $fpath, as _layerlift
_layerlift() {{
  local -a commands=({listed})
  if (( CURRENT == 2 )) && [[ "$words[2]" != -* ]]; then
    _describe command commands
    return
  fi
  case "$words[2]" in
{commands}
      *) _arguments \\
        {specs("")} ;;
  esac
}}
if [ "$funcstack[1]" = _layerlift ]; then _layerlift "$@"; else compdef _layerlift layerlift; fi
"""


def _fish() -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ["# layerlift completions fish > ~/.config/fish/completions/layerlift.fish"]
    none = "not __fish_seen_subcommand_from " + " ".join(COMMANDS)
    for name, text in COMMANDS.items():
        lines.append(f"complete -c layerlift -f -n __fish_use_subcommand -a {name} -d {quoted(text)}")
    for mode in ("", *COMMANDS):
        condition = f"__fish_seen_subcommand_from {mode}" if mode else none
        for flag in _flags(mode):
            words = " ".join(_fish_name(name) for name in flag.names)
            value = ""
            if flag.kind:
                value = f" -x -a {quoted(' '.join(flag.kind.choices))}" if flag.kind.choices else " -r"
            lines.append(f"complete -c layerlift -n {quoted(condition)} {words}{value} -d {quoted(flag.help)}")
    return "\n".join(lines) + "\n"


def _fish_name(name: str) -> str:
    """-l for --long, -s for -s, -o for -old."""
    return f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" if len(name) == 2 else f"-o {name[1:]}"


def man_page() -> str:
    """layerlift(1) in the man macros."""

    def plain(text: str) -> str:
        text = text.replace("\\", "\\e").replace("-", "\\-")
        return "\\&" + text if text[:1] in ".'" else text

    lines = ['.TH LAYERLIFT 1 "" layerlift', ".SH NAME", "layerlift \\- run GGUF language models", ".SH SYNOPSIS"]
    for example in usage.EXAMPLES["chat"]:
        lines += [".nf", plain(example), ".fi"]
    lines += [".SH COMMANDS"]
    for name, text in COMMANDS.items():
        lines += [".TP", f".B layerlift {name}", plain(text)]
    for mode in ("", *COMMANDS):
        lines += [f".SH {'OPTIONS' if not mode else 'LAYERLIFT ' + mode.upper()}"]
        for flag in _flags(mode):
            value = f" {flag.kind.metavar}" if flag.kind else ""
            lines += [".TP", f".B {plain(', '.join(flag.names) + value)}", plain(flag.help)]
    lines += [".SH TYPES OF QUANTIZE", "with the format that most weights get"]
    for mix in MIXES:
        lines += [".TP", f".B {mix.name}", f"{mix.fmt}, {mix.bits:.4g} bits a weight"]
    lines += [".SH EXIT STATUS", "0 done, 1 failed, 2 wrong usage, 130 interrupted"]
    return "\n".join(lines) + "\n"
