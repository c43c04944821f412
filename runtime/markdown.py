"""Colours Markdown as it streams, with ANSI escapes. Adds only escapes: without them the text is the input.

The output does not depend on how the input was cut into pieces. Knows nothing of terminals.
"""

from __future__ import annotations

from .highlight import RESET, Lexer

BOLD, FAINT = "\033[1m", "\033[2m"
ITALIC, CODE, HEADING, BULLET = "\033[3m", "\033[36m", "\033[1;36m", "\033[33m"
FENCE_MARKS = "`~"


class Markdown:
    """A streaming highlighter: `feed` pieces, then `flush`. Holds back no more than the start of a line."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._run = ""  # marks whose meaning the next character decides
        self._indent = ""  # white space at the start of a line, not written yet
        self._line_start = True
        self._before = "\n"  # the character before the run
        self._bold = self._italic = False
        self._code = 0  # length of the run that opened inline code; 0: none
        self._heading = self._quote = False
        self._style = ""  # the escape in force
        self._fence = ""  # the marks that opened the code block
        self._info: str | None = None  # the words after an opening fence, while they come
        self._lexer: Lexer | None = None
        self._held = ""  # the start of a line in a code block, while it may be the closing fence
        self._certain = False  # this line of the block is code

    def feed(self, text: str) -> str:
        """The coloured form of what can be decided so far."""
        for char in text:
            self._character(char)
        return self._take()

    def flush(self) -> str:
        """The rest, and an end to every colour. A new text takes a new highlighter."""
        if self._lexer and self._closes():
            self._close_block()
        elif self._lexer:
            self._write(self._lexer.feed(self._held) + self._lexer.flush())
        else:
            self._decide("\n")
            self._write(self._indent)
        self._set("")
        return self._take()

    # -- one character --

    def _character(self, char: str) -> None:
        if self._lexer:
            self._block_character(char)
        elif self._info is not None:
            self._info_character(char)
        elif self._run and char == self._run[0]:
            self._run += char
        else:
            self._decide(char)
            if self._info is not None:
                self._info_character(char)
            else:
                self._plain_character(char)

    def _plain_character(self, char: str) -> None:
        if char == "\n":
            self._end_line()
        elif self._line_start and char in " \t":
            self._indent += char
        elif self._is_mark(char):
            self._run = char
        else:
            self._open_text()
            self._write(char)
            self._before = char

    def _is_mark(self, char: str) -> bool:
        if self._code:
            return char == "`"
        return char in "*`" or (self._line_start and char in "#>~-+")

    def _end_line(self) -> None:
        self._write(self._indent)
        self._indent = ""
        self._bold = self._italic = self._heading = self._quote = False
        self._code = 0  # nothing reaches over the end of a line, so a stray mark colours one line at most
        self._set("")
        self._write("\n")
        self._line_start, self._before = True, "\n"

    def _open_text(self) -> None:
        self._write(self._indent)
        self._indent, self._line_start = "", False
        self._restyle()

    # -- runs of marks --

    def _decide(self, after: str) -> None:
        """Gives the held run its meaning, now that the character after it is known."""
        run, self._run = self._run, ""
        if not run:
            return
        if self._line_start and self._decide_at_line_start(run, after):
            return
        self._open_text()
        if run[0] == "`":
            self._decide_code(run)
        elif run[0] == "*" and not self._code and len(run) <= 3:
            self._decide_emphasis(run, after)
        else:
            self._write(run)
        self._before = run[0]

    def _decide_at_line_start(self, run: str, after: str) -> bool:
        mark, size = run[0], len(run)
        if mark in FENCE_MARKS and size >= 3 and not self._quote:
            self._write(self._indent)
            self._indent, self._fence, self._info = "", run, ""
            self._set(FAINT)
            self._write(run)
        elif mark == "#" and size <= 6 and after in " \t":
            self._heading = True
            self._open_text()
            self._write(run)
        elif mark == ">":
            self._quote = True
            self._open_text()
            self._write(run)
            self._line_start = True  # a quote may hold a list or a heading
        elif mark in "*-+" and size == 1 and after in " \t":
            self._write(self._indent)
            self._indent, self._line_start = "", False
            self._set(BULLET)
            self._write(run)
            self._restyle()
        else:
            return False
        self._before = mark
        return True

    def _decide_code(self, run: str) -> None:
        if self._code and len(run) == self._code:
            self._write(run)
            self._code = 0
            self._restyle()
        elif not self._code:
            self._code = len(run)
            self._restyle()
            self._write(run)
        else:
            self._write(run)

    def _decide_emphasis(self, run: str, after: str) -> None:
        """CommonMark's flanking rule, simplified: a mark opens before a word and closes behind one."""
        inside_word = self._before.isalnum() and after.isalnum()
        opens = not after.isspace() and after not in ")]},.;:!?" and not inside_word
        closes = not self._before.isspace()
        bold, italic = len(run) >= 2, len(run) != 2
        if closes and (not bold or self._bold) and (not italic or self._italic):
            self._write(run)
            self._bold, self._italic = self._bold and not bold, self._italic and not italic
            self._restyle()
        elif opens:
            self._bold, self._italic = self._bold or bold, self._italic or italic
            self._restyle()
            self._write(run)
        else:
            self._write(run)

    # -- code blocks --

    def _info_character(self, char: str) -> None:
        assert self._info is not None
        if char == "`" and self._fence[0] == "`":  # no fence after all: inline code in long marks
            self._info, self._line_start, self._code = None, False, len(self._fence)
            self._restyle()
            self._character(char)
            return
        if char != "\n":
            self._info += char
            self._write(char)
            return
        words = self._info.split()
        self._info, self._held, self._certain = None, "", False
        self._set("")
        self._write(char)
        self._lexer = Lexer(words[0].strip("{}.") if words else "")

    def _block_character(self, char: str) -> None:
        """The start of a line is held back while the line may still be the closing fence."""
        assert self._lexer
        if self._certain:
            self._write(self._lexer.feed(char))
            self._certain = char != "\n"
            return
        self._held += char
        if char == "\n" and self._closes():
            self._close_block()
            self._end_line()
        elif char == "\n" or set(self._held.strip(" \t")) - {self._fence[0]}:
            self._write(self._lexer.feed(self._held))
            self._held, self._certain = "", char != "\n"

    def _closes(self) -> bool:
        line = self._held.strip()
        return len(line) >= len(self._fence) and set(line) == {self._fence[0]}

    def _close_block(self) -> None:
        assert self._lexer
        self._write(self._lexer.flush())
        self._set(FAINT)
        self._write(self._held.rstrip("\n"))
        self._held, self._lexer, self._line_start = "", None, True

    # -- writing --

    def _restyle(self) -> None:
        style = HEADING if self._heading else FAINT if self._quote else ""
        style += (BOLD if self._bold else "") + (ITALIC if self._italic else "")
        self._set(style + (CODE if self._code else ""))

    def _set(self, style: str) -> None:
        if style == self._style:
            return
        if self._style:
            self._out.append(RESET)
        self._out.append(style)
        self._style = style

    def _write(self, text: str) -> None:
        if text:
            self._out.append(text)

    def _take(self) -> str:
        out = "".join(self._out)
        self._out.clear()
        return out
