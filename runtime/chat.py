"""The chat: reads a message, streams the answer, keeps the conversation well formed. Commands are elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import chat_commands
from .conversation import Conversation
from .errors import ContextFull, LayerliftError
from .interrupt import INTERRUPTED, interruptible
from .line_editor import Reader, open_reader
from .markdown import Markdown
from .startup import open_engine, read_text, sampling_of, settle_grammar, template_of, typed_text, with_grammar
from .terminal import BOLD, FAINT, MAGENTA, YELLOW, Terminal, share
from .timings import add

if TYPE_CHECKING:
    from .arguments import Options
    from .engine import Engine
    from .request import Event, Request, Stream
    from .sampler import Sampling
    from .template import ChatTemplate

LOGO = """\
   ▰▰▰▰▰▰▰
 ▱▱▱▱▱▱▱     layerlift
▱▱▱▱▱▱▱
"""
LOGO_ASCII = LOGO.replace("▰", "=").replace("▱", "-")
NEXT_ROLE = {"user": "assistant", "assistant": "system", "system": "user"}  # an empty line in manual mode
REPLY_ROLE = {"user": "assistant", "assistant": "user", "system": "user"}  # after a message in manual mode


def chat(options: Options, terminal: Terminal) -> int:
    """Runs the mode; the exit code."""
    sampling = sampling_of(options)
    settle_grammar(options)
    book = None if options.file is None else chat_commands.plain_text(Path(options.file), read_text(options.file))
    started = time.perf_counter()
    with open_engine(options, terminal) as engine:
        sampling = with_grammar(sampling, options, engine.model.tokenizer)
        talk = Chat(engine, options, terminal, sampling, load_seconds=time.perf_counter() - started)
        talk.introduce()
        if not talk.start(book):
            return 1
        reader = open_reader(chat_commands.NAMES, keep_history=not options.log_disable)
        return talk.run(reader)


class Chat:
    """One conversation with one engine. What commands change is public."""

    def __init__(
        self,
        engine: Engine,
        options: Options,
        terminal: Terminal,
        sampling: Sampling,
        *,
        load_seconds: float = 0.0,
    ):
        from .request import Timings

        self.engine, self.options, self.terminal, self.sampling = engine, options, terminal, sampling
        self.session = engine.session()
        system = typed_text(options.prompt, options) if options.prompt is not None else ""
        tokenizer = engine.model.tokenizer
        self.conversation = Conversation(tokenizer, _template(options, engine), system=system)
        self.undo_marks: list[int] = []  # numbers of messages before each prompt
        self.stack: list[int] = []  # numbers of messages that /push noted
        self.manual = False
        self.role = "user"
        self.timings = Timings()
        self.load_seconds = load_seconds
        self._turn = 0

    # -- the start --

    def introduce(self) -> None:
        """What runs where, for the user to see."""
        from . import __version__

        model, say = self.engine.model, self.terminal.say
        if self.options.logo:
            say(LOGO_ASCII if self.options.ascii else LOGO, BOLD)
        say(f"{self._bold('software')}: layerlift {__version__}")
        say(f"{self._bold('model')}:    {Path(str(model.gguf.path)).name}")
        if self.conversation.is_base:
            say(f"{self._bold('mode')}:     raw text completion (base model)")
        say(f"{self._bold('compute')}:  {_compute(model)}\n")

    def _bold(self, text: str) -> str:
        return self.terminal.styled(text, BOLD)

    def start(self, book: str | None) -> bool:
        """Takes in the system prompt and the book before the first question; False if they do not fit."""
        conversation = self.conversation
        if conversation.system and self.options.display_prompt:
            self.terminal.say(conversation.system + "\n", YELLOW)
        if book is not None:
            text = book if conversation.is_base else chat_commands.document(Path(self.options.file), book)
            conversation.add("system", text)
            conversation.n_opening = len(conversation.messages)
        return not (conversation.system or book) or self.take_in("loading system prompt")

    # -- the loop --

    def run(self, reader: Reader) -> int:
        """Reads and answers until the input ends (0) or Ctrl-C comes at the prompt (130)."""
        while True:
            try:
                line = reader.read(self.role, self._placeholder())
            except EOFError:
                return 0
            except KeyboardInterrupt:
                return INTERRUPTED
            try:
                if chat_commands.is_command(line):
                    if chat_commands.run(self, line):
                        return 0
                else:
                    self.message(line)
            except LayerliftError as error:
                self.terminal.failure(error)
            except KeyboardInterrupt:  # it came a moment too late to stop an answer
                pass

    def _placeholder(self) -> str:
        if self.manual:
            return self.role
        if len(self.conversation.messages) > self.conversation.n_opening:
            return ""
        base = self.conversation.is_base
        return f"{'type text to be completed' if base else 'say something'} (or /help for help)"

    # -- one turn --

    def message(self, line: str) -> None:
        """A line that is no command: a question to answer, or in manual mode a message of the current role."""
        if not line.strip() and not (self.conversation.is_base and self.conversation.messages):
            self.role = NEXT_ROLE[self.role] if self.manual else "user"
            return
        mark = len(self.conversation.messages)
        if line:
            self.conversation.add(self.role, line)
        if self.manual:
            if self.take_in("loading message", rewind_to=mark):
                self.undo_marks.append(mark)
                self.role = REPLY_ROLE[self.role]
        elif self.answer(mark):
            self.undo_marks.append(mark)

    def answer(self, mark: int) -> bool:
        """Generates and shows the answer; False if there was none and the messages from `mark` on went back."""
        self._turn += 1
        tokens: list[int] = []
        text: list[str] = []
        paint = Markdown() if self.terminal.color and not self.conversation.is_base else None
        asked = self.conversation.asked()
        request = self._request(asked, self.options.max_tokens)
        if len(asked) >= self.engine.context:
            self._out_of_context(len(asked))
            self.conversation.rewind(mark)
            return False

        def show(piece: str) -> None:
            text.append(piece)
            piece = self.terminal.shown(piece)
            self.terminal.write(paint.feed(piece) if paint else piece)

        try:
            reason = self._follow(request, "loading prompt", show, tokens)
        except LayerliftError:
            if not tokens:
                self.conversation.rewind(mark)
            raise
        finally:
            if paint:
                self.terminal.write(paint.flush())
            if tokens:  # even after a failure, the words shown are part of the conversation
                self.conversation.answered("".join(text), tokens)
                self.terminal.write("\n")
        if not tokens and reason == "cancelled":
            self.conversation.rewind(mark)
            return False
        if not tokens:
            self.conversation.answered("", [])
        if reason == "context":
            self._out_of_context(len(asked) + len(tokens))
        return True

    def take_in(self, notice: str, *, rewind_to: int | None = None) -> bool:
        """Evaluates the conversation without an answer; False if it does not fit or Ctrl-C came."""
        tokens = self.conversation.tokens
        try:
            if len(tokens) >= self.engine.context:
                self._out_of_context(len(tokens))
            elif not tokens or self._follow(self._request(tokens, 0), notice, lambda _: None, []) != "cancelled":
                return True
        except ContextFull:
            self._out_of_context(len(tokens))
        if rewind_to is not None:
            self.conversation.rewind(rewind_to)
        return False

    def _request(self, tokens: list[int], max_tokens: int) -> Request:
        from .request import Request

        # Another seed for each turn, or an answer asked for again would come out the same.
        seed = None if self.sampling.seed is None else (self.sampling.seed + self._turn - 1) & 0x7FFFFFFF
        return Request(
            tokens,
            replace(self.sampling, seed=seed),
            max_tokens=max_tokens,
            stop=tuple(typed_text(each, self.options) for each in self.options.stop if each),
            ignore_eos=self.options.ignore_eos,
            session=self.session,
            special=self.options.special,
        )

    def _follow(self, request: Request, notice: str, show: Callable[[str], None], tokens: list[int]) -> str:
        """Runs a request to its end, Ctrl-C included; its reason to end. Generated tokens go to `tokens`."""
        with interruptible() as interrupt:
            stream = self.engine.submit(request)
            interrupt.watch(stream)
            try:
                return self._events(stream, notice, show, tokens)
            finally:
                stream.cancel()
                self.terminal.clear_status()

    def _events(self, stream: Stream, notice: str, show: Callable[[str], None], tokens: list[int]) -> str:
        from .request import Done, Prefill, Token

        event: Event
        for event in stream:
            if isinstance(event, Prefill):
                if event.done < event.total:
                    self.terminal.status(f"{notice} {share(event.done, event.total)}...")
            elif isinstance(event, Token):
                tokens.append(event.id)
                show(event.text)
            elif isinstance(event, Done):
                show(event.text)
                self.timings = add(self.timings, event.timings)
                return event.reason
        raise AssertionError("a stream ends with Done or an error")

    def _out_of_context(self, used: int) -> None:
        # The last message is the one that does not fit, and the opening is never forgotten.
        can_forget = len(self.conversation.messages) > self.conversation.n_opening + 1
        less = "/forget and /clear free some of it" if can_forget else "or say it in fewer words"
        self.terminal.error(
            f"ran out of context window at {used} tokens", hint=f"-c MAX at startup makes it larger; {less}"
        )

    # -- for commands --

    def rewind(self, n_messages: int) -> None:
        """Goes back to the first `n_messages`; marks behind them are void."""
        self.conversation.rewind(n_messages)
        self.undo_marks = [mark for mark in self.undo_marks if mark < n_messages]
        self.stack = [mark for mark in self.stack if mark <= n_messages]

    def notice(self, text: str) -> None:
        self.terminal.say(text, FAINT)

    def title(self, text: str) -> None:
        self.terminal.say(text, MAGENTA)


def _template(options: Options, engine: Engine) -> ChatTemplate | None:
    """The template to talk with; None for a base model: no --chat-template and none in the file."""
    wanted = options.chat_template
    if wanted is None:
        template = engine.model.template
        return None if template.is_fallback else template
    return template_of(wanted, engine.model)


def _compute(model) -> str:
    """The devices that hold layers, in order."""
    devices = [stage.device for stage in model.plan.stages]
    return ", ".join(dict.fromkeys(f"{d.name}{f' ({d.detail})' if d.detail else ''}" for d in devices))
