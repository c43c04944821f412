"""Holds a generation to a grammar: GBNF, Lark or JSON schema, through llguidance. Knows nothing of sampling.

Sources come from users and from the network. They are capped before anything parses them, and compiled in a thread
with a stack of its own, because the compiler recurses. Nothing is fetched: a `$ref` to another document is an error.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from .tokenizer import Tokenizer

MAX_SOURCE = 64 << 10  # bytes
MAX_RULES = 1000
MAX_DEPTH = 100  # brackets within brackets
STACK = 256 << 20  # bytes; 1000 rules that name each other in a row overflow a stack of 1 MiB
FUEL = 300_000  # regex nodes; nested repetitions are refused in a second or two, 64 KiB of names or values fit
PATIENCE = 10.0  # seconds; the compiler's fuel ends it long before

# As much space between JSON's words as pretty printing needs; without a bound, small models write spaces for ever.
JSON_SPACE = r"[ ]?|\n[ \t]{0,20}"

T = TypeVar("T")


class Matcher:
    """Where one generation stands in a grammar."""

    def __init__(self, matcher: LLMatcher, eog: NDArray[np.int32], vocab_size: int):
        self._matcher = matcher
        self._eog = eog
        self._ends = frozenset(eog.tolist())
        self._vocab_size = vocab_size
        self._ended = False  # an end token was accepted

    @property
    def stopped(self) -> bool:
        """Whether nothing but an end token may come."""
        return self._ended or self._matcher.is_stopped()

    def permits(self, token: int) -> bool:
        """Whether `token` may come next. Where only one text can, the mask is narrower: its usual tokens."""
        if token in self._ends:
            return self.stopped or self._matcher.is_accepting()
        return not self.stopped and token < self._vocab_size and self._matcher.validate_tokens([token]) == 1

    def allow(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of logits [vocab] with -inf for every token that may not come next. Raises GrammarError."""
        if not self.stopped:
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check()
            out = np.take(_SUMMANDS, mask, axis=0, mode="clip").reshape(-1)  # [at least the tokenizer's vocabulary]
            if out.size < logits.size:  # a model may have more rows than the tokenizer has tokens
                out = np.concatenate([out, np.full(logits.size - out.size, -np.inf, np.float32)])
            out = out[: logits.size]
            out += logits
            return out
        self._check()
        out = np.full(logits.size, -np.inf, np.float32)
        out[self._eog] = logits[self._eog]
        return out

    def accept(self, token: int) -> None:
        """Moves on by one token. Raises GrammarError if it may not come here."""
        if token in self._ends and self.permits(token):
            self._ended = True
        elif not self.permits(token):
            raise GrammarError(f"token {token} does not fit the grammar here")
        else:
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"grammar: {_line(self._matcher.get_error())}")


def _summands() -> NDArray[np.float32]:
    """[256, 8]: for each byte of a bitmask, 0 for the tokens whose bit is set and -inf for the others."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits > 0, np.float32(0), np.float32(-np.inf))


_SUMMANDS = _summands()


class Grammar:
    """A compiled grammar, good for any number of generations."""

    def __init__(self, source: str, prototype: LLMatcher, tokenizer: Tokenizer):
        self.source = source
        self.tokenizer = tokenizer  # has to live on: the matcher asks it how a text that must come is written
        self._prototype = prototype
        self._eog = np.array(_end_tokens(tokenizer), np.int32)
        self._lock = threading.Lock()

    def matcher(self) -> Matcher:
        """A new generation, at the grammar's start."""
        with self._lock:
            return Matcher(self._prototype.deep_copy(), self._eog, self.tokenizer.vocab_size)


# ---------------------------------------------------------------------------------------------------------------
# Compiling


def compile_gbnf(source: str, tokenizer: Tokenizer) -> Grammar:
    """A grammar from GBNF (with a rule `root`) or from llguidance's Lark (with a rule `start`). Raises GrammarError."""
    return _compile("grammar", source, _from_gbnf(source), tokenizer)


def compile_json_schema(schema: Mapping[str, Any] | bool | str, tokenizer: Tokenizer) -> Grammar:
    """A grammar of the JSON texts that fit a schema, given as JSON text or as parsed. Raises GrammarError."""
    source, convert = _from_json_schema(schema)
    return _compile("JSON schema", source, convert, tokenizer)


def check_gbnf(source: str) -> None:
    """Raises the GrammarError that compiling would, as far as it can be told without a tokenizer."""
    _validate("grammar", _from_gbnf(source))


def check_json_schema(schema: str) -> None:
    """Raises the GrammarError that compiling would, as far as it can be told without a tokenizer."""
    _validate("JSON schema", _from_json_schema(schema)[1])


def _validate(noun: str, convert: Callable[[], str]) -> None:
    def validate() -> str:
        from llguidance import LLMatcher

        return LLMatcher.validate_grammar(convert())

    if said := _on_big_stack(validate, noun):
        raise GrammarError(f"{noun}: {_line(said)}")


def _from_gbnf(source: str) -> Callable[[], str]:
    """What turns the source into llguidance's language. Raises GrammarError for what is too large."""
    _check_size(source, "grammar")
    depth = _gbnf_depth(source)
    rules = len(re.findall(r"::=|^[ \t]*[!?]?\w[\w.-]*[ \t]*:(?!:)", source, re.MULTILINE))
    if depth > MAX_DEPTH:
        raise GrammarError(f"grammar: brackets are {depth} deep; at most {MAX_DEPTH} are taken")
    if rules > MAX_RULES:
        raise GrammarError(f"grammar: {rules} rules; at most {MAX_RULES} are taken")
    return lambda: _lark(source)


def _from_json_schema(schema: Mapping[str, Any] | bool | str) -> tuple[str, Callable[[], str]]:
    """The schema's text, and what turns it into llguidance's language. Raises GrammarError."""
    try:
        source = schema if isinstance(schema, str) else json.dumps(schema)
        _check_size(source, "JSON schema")
        depth = _json_depth(source)
        if depth > MAX_DEPTH:
            raise GrammarError(f"JSON schema: brackets are {depth} deep; at most {MAX_DEPTH} are taken")
        parsed = json.loads(source)
    except (ValueError, TypeError) as error:
        raise GrammarError(f"JSON schema: not JSON: {_line(str(error))}") from None
    except RecursionError:
        raise GrammarError(f"JSON schema: nested too deeply; at most {MAX_DEPTH} levels are taken") from None
    if not isinstance(parsed, dict | bool):
        raise GrammarError("JSON schema: must be an object or a boolean")
    _refuse_remote(parsed)

    def convert() -> str:
        from llguidance import LLMatcher

        # A boolean schema has an object that means the same: {} is anything, {"not": {}} is nothing.
        if parsed is False:
            raise GrammarError("JSON schema: false admits nothing")
        schema = {} if parsed is True else parsed
        return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": JSON_SPACE})

    return source, convert


def _compile(noun: str, source: str, convert: Callable[[], str], tokenizer: Tokenizer) -> Grammar:
    def build() -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False, initial_lexer_fuel=FUEL, max_items_in_row=10_000)
        matcher = LLMatcher(_ll_tokenizer(tokenizer), convert(), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # a rule that only names itself shows here
        if matcher.is_error():
            raise GrammarError(f"{noun}: {_line(matcher.get_error())}")
        return matcher

    return Grammar(source, _on_big_stack(build, noun), tokenizer)


_stack_lock = threading.Lock()


def _on_big_stack(work: Callable[[], T], noun: str) -> T:
    """Runs `work` in a thread with room for deep recursion; whatever goes wrong there is a GrammarError."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # a panic of the compiler is not an Exception
            failed.append(error)

    with _stack_lock:
        usual = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=run, name="grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join(PATIENCE)
    if done:
        return done[0]
    if not failed:
        raise GrammarError(f"{noun}: still not compiled after {PATIENCE:.0f} s; it is too complex")
    error = failed[0]
    if isinstance(error, GrammarError | ImportError | MemoryError):
        raise error
    if isinstance(error, RecursionError):
        raise GrammarError(f"{noun}: nested too deeply") from None
    raise GrammarError(f"{noun}: {_line(str(error))}") from None


def _lark(source: str) -> str:
    """GBNF in the Lark dialect of llguidance; Lark as it is."""
    from llguidance.gbnf_to_lark import GrammarParser, LiteralNode, RuleRefNode

    if re.search(r"^\s*(%llguidance\b|start\s*:(?!:))", source, re.MULTILINE):
        return source
    rules = GrammarParser().parse(_plain_escapes(source))
    if "root" not in rules:
        raise GrammarError("grammar: there is no rule 'root'")
    # llguidance has a lexer that takes the longest match; GBNF has none. Rules in lower case are the parser's, and
    # literals are cut into characters, so that no lexeme is longer than one: else `num ::= [0-9]+ ws` would swallow
    # the newline that has to follow it, and `("a" | "ab") "b"` would not take "ab".
    names = {name: "start" if name == "root" else f"r{i}" for i, name in enumerate(rules)}
    lines = ["%llguidance {}"]
    for name, rule in rules.items():
        nodes = [rule.alternatives]
        while nodes:
            node = nodes.pop()
            nodes += node.children()
            if isinstance(node, RuleRefNode):
                if node.name not in names:
                    raise GrammarError(f"grammar: rule {node.name[:80]!r} does not exist")
                node.name = names[node.name]
            elif isinstance(node, LiteralNode):
                characters = re.findall(r"\\x..|\\.|.", node.value, re.DOTALL)
                node.value = '" "'.join(characters)
                if len(characters) > 1:  # a repetition of it needs parentheses
                    node.is_atomic = lambda: False  # pyright: ignore[reportAttributeAccessIssue]
        lines.append(f"{names[name]}: {rule.alternatives.top_str()}")
    return "\n".join(lines) + "\n"


def _plain_escapes(source: str) -> str:
    r"""GBNF with its \x, \u and \U escapes of other than ASCII replaced by the characters themselves."""

    def character(match: re.Match[str]) -> str:
        digits = match[1] or match[2] or match[3]
        if digits is None:  # another escape: as it is
            return match[0]
        code = int(digits, 16)
        if code < 0x80:
            return f"\\x{code:02x}"
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise GrammarError(f"grammar: {match[0]} is not a character")
        return chr(code)

    return re.sub(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", character, source)


# ---------------------------------------------------------------------------------------------------------------
# Limits


def _check_size(source: str, noun: str) -> None:
    if not isinstance(source, str):
        raise GrammarError(f"{noun}: must be text, not {type(source).__name__}")
    nbytes = len(source.encode("utf-8", "surrogatepass"))
    if nbytes > MAX_SOURCE:
        raise GrammarError(f"{noun}: {nbytes} bytes; at most {MAX_SOURCE} are taken")


def _gbnf_depth(source: str) -> int:
    """The deepest parentheses outside of literals, classes and comments; one pass, whatever the text."""
    depth = deepest = 0
    closing, escaped = "", False
    for c in source:
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = True
        elif closing:
            closing = "" if c == closing else closing
        elif c in '"[#':
            closing = {'"': '"', "[": "]", "#": "\n"}[c]
        elif c == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif c == ")":
            depth = max(0, depth - 1)
    return deepest


def _json_depth(source: str) -> int:
    """The deepest brackets outside of strings."""
    depth = deepest = 0
    inside, escaped = False, False
    for c in source:
        if escaped:
            escaped = False
        elif inside:
            inside, escaped = c != '"', c == "\\"
        elif c == '"':
            inside = True
        elif c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def _refuse_remote(schema: Any) -> None:
    """Raises for a `$ref` outside of the schema itself. MAX_DEPTH bounds the recursion."""
    if isinstance(schema, list):
        for item in schema:
            _refuse_remote(item)
    elif isinstance(schema, dict):
        target = schema.get("$ref")
        if isinstance(target, str) and not target.startswith("#"):
            raise GrammarError(f"JSON schema: $ref {_line(target)!r} is outside of the schema; nothing is fetched")
        for item in schema.values():
            _refuse_remote(item)


def _line(text: str) -> str:
    """The first line of a message, not too long of it."""
    lines = text.strip().splitlines() or ["unknown reason"]
    return lines[0][:200]


# ---------------------------------------------------------------------------------------------------------------
# The vocabulary


_tokenizers: weakref.WeakKeyDictionary[Tokenizer, LLTokenizer] = weakref.WeakKeyDictionary()
_tokenizers_lock = threading.Lock()


def _end_tokens(tokenizer: Tokenizer) -> list[int]:
    ends = set(tokenizer.eog) | ({tokenizer.eos} if tokenizer.eos is not None else set())
    if not ends:
        raise GrammarError("grammar: the model's vocabulary has no end token, so no grammar could end")
    return sorted(ends)


def _ll_tokenizer(tokenizer: Tokenizer) -> LLTokenizer:
    """llguidance's view of a vocabulary; half a second for 128k tokens, so made once for each tokenizer."""
    with _tokenizers_lock:
        found = _tokenizers.get(tokenizer)
        if found is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            ends = _end_tokens(tokenizer)
            wrapper = TokenizerWrapper(_Vocabulary(tokenizer, ends))
            found = LLTokenizer(wrapper, n_vocab=tokenizer.vocab_size, eos_token=ends)
            _tokenizers[tokenizer] = found
        return found


class _Vocabulary:
    """What TokenizerWrapper asks for. Holds its tokenizer weakly, or neither would ever be freed."""

    def __init__(self, tokenizer: Tokenizer, ends: list[int]):
        ids = range(tokenizer.vocab_size)
        self.eos_token_id = tokenizer.eos if tokenizer.eos is not None else ends[0]
        self.bos_token_id = tokenizer.bos
        self.tokens = [tokenizer.piece(i) for i in ids]
        self.special_token_ids = sorted({i for i in ids if tokenizer.is_control(i)} | set(ends))
        self._tokenizer = weakref.ref(tokenizer)

    def __call__(self, text: str | bytes) -> list[int]:
        tokenizer = self._tokenizer()
        if tokenizer is None:
            return []
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return tokenizer.encode(text, add_special=False, parse_special=False)
