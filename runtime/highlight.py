"""Colours source code as it streams: words, strings, comments and numbers. Adds only ANSI escapes.

A small table of how some languages write comments, strings and keywords. Knows nothing of Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass

RESET = "\033[0m"
KEYWORD, STRING, COMMENT, NUMBER = "\033[35m", "\033[32m", "\033[2m", "\033[33m"


@dataclass(frozen=True)
class Language:
    keywords: frozenset[str]
    line_comments: tuple[str, ...] = ()
    block_comment: tuple[str, str] | None = None
    quotes: str = "\"'"
    triple: bool = False  # three quotes reach over lines
    multiline_quotes: str = ""  # quotes whose strings reach over lines
    ignore_case: bool = False


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_C_WORDS = (
    "auto bool break case char const continue default do double else enum extern false float for goto if "
    "inline int long nullptr NULL register return short signed sizeof static struct switch true typedef "
    "union unsigned void volatile while"
)
_CPP_WORDS = (
    "catch class concept constexpr consteval co_await co_return co_yield decltype delete explicit export "
    "friend mutable namespace new noexcept operator override private protected public requires template "
    "this throw try typename using virtual"
)
_C = Language(_words(_C_WORDS), ("//",), ("/*", "*/"))
_CPP = Language(_words(f"{_C_WORDS} {_CPP_WORDS}"), ("//",), ("/*", "*/"))
_JAVA = Language(
    _words(
        f"{_CPP_WORDS} {_C_WORDS} abstract assert boolean byte extends final finally implements import instanceof "
        "interface internal null package sealed super synchronized throws transient var val fun when is in "
        "as object record yield string foreach readonly async await"
    ),
    ("//",),
    ("/*", "*/"),
)
_JAVASCRIPT = Language(
    _words(
        "abstract any as async await boolean break case catch class const continue debugger declare "
        "default delete do else enum export extends false finally for from function get if implements "
        "import in instanceof interface keyof let namespace never new null number object of private "
        "protected public readonly return set static string super switch this throw true try type typeof "
        "undefined unknown var void while with yield"
    ),
    ("//",),
    ("/*", "*/"),
    "\"'`",
    multiline_quotes="`",
)
_PYTHON = Language(
    _words(
        "False None True and as assert async await break case class continue def del elif else except "
        "finally for from global if import in is lambda match nonlocal not or pass raise return self try "
        "while with yield"
    ),
    ("#",),
    triple=True,
)
_SHELL = Language(
    _words(
        "break case cd continue do done echo elif else esac eval exec exit export fi for function if in local "
        "read return select set shift source then trap unset until while"
    ),
    ("#",),
    multiline_quotes="\"'",
)
_RUST = Language(
    _words(
        "as async await bool break char const continue crate dyn else enum extern f32 f64 false fn for i16 "
        "i32 i64 i8 if impl in let loop match mod move mut pub ref return self Self static str struct "
        "super trait true type u16 u32 u64 u8 unsafe use usize where while"
    ),
    ("//",),
    ("/*", "*/"),
    '"',  # a single quote also begins a lifetime
    multiline_quotes='"',
)
_GO = Language(
    _words(
        "bool break byte case chan const continue default defer else error fallthrough false float32 "
        "float64 for func go goto if import int int32 int64 interface map nil package range return rune "
        "select string struct switch true type uint var"
    ),
    ("//",),
    ("/*", "*/"),
    "\"'`",
    multiline_quotes="`",
)
_SQL = Language(
    _words(
        "add all alter and as asc between by case create cross default delete desc distinct drop else end "
        "exists from full group having in index inner insert into is join key left like limit not null "
        "offset on or order outer primary references right select set table then union unique update "
        "values view when where with"
    ),
    ("--",),
    ("/*", "*/"),
    ignore_case=True,
)
_RUBY = Language(
    _words(
        "alias and begin break case class def do else elsif end ensure false for if in local module next "
        "nil not or repeat require rescue return self super then true undef unless until when while yield "
        "function"
    ),
    ("#",),
)
_LUA = Language(_RUBY.keywords, ("--",), ("--[[", "]]"))
_DATA = Language(_words("true false null yes no on off"), ("#",))
_JSON = Language(_words("true false null"), quotes='"')
_MARKUP = Language(frozenset(), (), ("<!--", "-->"), '"')
_PLAIN = Language(frozenset(), quotes="")

LANGUAGES: dict[str, Language] = {}
for _names, _language in (
    ("c h opencl", _C),
    ("cpp c++ cc cxx hpp cuda cu arduino", _CPP),
    ("java kotlin kt scala csharp c# cs swift dart groovy d php", _JAVA),
    ("javascript js typescript ts jsx tsx mjs", _JAVASCRIPT),
    ("python py python3 pycon cython mojo", _PYTHON),
    ("bash sh shell zsh console fish dockerfile makefile make", _SHELL),
    ("rust rs zig", _RUST),
    ("go golang", _GO),
    ("sql sqlite mysql postgresql plsql", _SQL),
    ("ruby rb perl pl r julia elixir nim crystal", _RUBY),
    ("lua haskell hs ada", _LUA),
    ("yaml yml toml ini cfg conf properties", _DATA),
    ("json jsonl json5", _JSON),
    ("html xml svg xhtml vue", _MARKUP),
):
    LANGUAGES |= dict.fromkeys(_names.split(), _language)


class Lexer:
    """A streaming lexer of one language; an unknown one is left plain. Holds back a word or some signs."""

    def __init__(self, language: str):
        self._language = LANGUAGES.get(language.lower(), _PLAIN)
        self._out: list[str] = []
        self._word = ""  # letters and digits so far
        self._signs = ""  # other characters that may begin a comment or a string
        self._end = ""  # what ends the string or comment we are in
        self._over_lines = False  # … and whether it reaches over the end of a line
        self._colour = ""
        self._tail = ""  # the last characters of the string or comment, to find its end
        self._escaped = False
        marks = [*self._language.line_comments, *(self._language.block_comment or ())[:1]]
        marks += [quote * 3 for quote in self._language.quotes if self._language.triple]
        self._openers = tuple(sorted([*marks, *self._language.quotes], key=len, reverse=True))

    def feed(self, text: str) -> str:
        for char in text:
            self._inside(char) if self._end else self._outside(char)
        return self._take()

    def flush(self) -> str:
        """The rest, and an end to every colour."""
        self._end_word()
        self._end_signs()
        if self._end:
            self._close()
        return self._take()

    def _outside(self, char: str) -> None:
        if self._signs and not self._grows(self._signs + char):
            self._end_signs()
            if self._end:
                self._inside(char)
                return
        if self._grows(self._signs + char):
            self._end_word()
            self._signs += char
        elif char.isalnum() or char == "_":
            self._word += char
        else:
            self._end_word()
            self._out.append(char)

    def _grows(self, signs: str) -> bool:
        return any(opener.startswith(signs) for opener in self._openers)

    def _end_word(self) -> None:
        word, self._word = self._word, ""
        known = word.lower() if self._language.ignore_case else word
        if known in self._language.keywords:
            self._out.append(f"{KEYWORD}{word}{RESET}")
        elif word[:1].isdigit() and self._language is not _PLAIN:
            self._out.append(f"{NUMBER}{word}{RESET}")
        elif word:
            self._out.append(word)

    def _end_signs(self) -> None:
        """Gives the held signs their meaning: the longest opener they begin with, or nothing special."""
        signs, self._signs = self._signs, ""
        opener = next((each for each in self._openers if each and signs.startswith(each)), "")
        if not opener:
            self._out.append(signs)
            return
        self._open(opener)
        for char in signs[len(opener) :]:
            self._inside(char) if self._end else self._outside(char)

    def _open(self, opener: str) -> None:
        language = self._language
        self._tail, self._escaped = "", False
        if opener in language.line_comments:
            self._colour, self._end, self._over_lines = COMMENT, "\n", True
        elif language.block_comment and opener == language.block_comment[0]:
            self._colour, self._end, self._over_lines = COMMENT, language.block_comment[1], True
        else:
            self._colour, self._end = STRING, opener
            self._over_lines = len(opener) == 3 or opener in language.multiline_quotes
        self._out.append(self._colour + opener)

    def _inside(self, char: str) -> None:
        """A line of its own colour for each line, so that a pager or a scrolling terminal keeps it."""
        if char == "\n":
            self._out.append(f"{RESET}\n")
            if self._end == "\n" or not self._over_lines:
                self._end = ""
            else:
                self._out.append(self._colour)
            self._tail, self._escaped = "", False
            return
        self._out.append(char)
        if self._escaped:
            self._escaped, self._tail = False, ""
            return
        if char == "\\" and self._colour == STRING:
            self._escaped = True
            return
        self._tail = (self._tail + char)[-len(self._end) :]
        if self._tail == self._end:
            self._close()

    def _close(self) -> None:
        self._out.append(RESET)
        self._end = ""

    def _take(self) -> str:
        out = "".join(self._out)
        self._out.clear()
        return out
