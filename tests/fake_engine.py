"""An engine that answers by a script, for the shell's tests; run as a program, it chats on the terminal.

Its tokenizer has one token per character and a few marks, so that tests can read tokens as text.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from layerlift.runtime.errors import ContextFull, TemplateError
from layerlift.runtime.request import Done, Prefill, Request, Sink, Stream, Timings, Token

MARKS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
BASE = 16


class FakeTokenizer:
    """Token `BASE + n` is the character n."""

    bos, eos, eot = 1, 2, 4
    eog = frozenset({2, 4})
    add_eos = False

    def __init__(self, *, add_bos: bool = False):
        self.add_bos = add_bos

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        ids = [self.bos] if add_special and self.add_bos and not text.startswith("<s>") else []
        while text:
            mark = next((m for m in MARKS if parse_special and text.startswith(m)), None)
            ids.append(MARKS.index(mark) if mark else BASE + ord(text[0]))
            text = text[len(mark or " ") :]
        return ids

    def piece(self, id: int, *, special: bool = True) -> bytes:
        if id < BASE:
            return MARKS[id].encode() if special else b""
        return chr(id - BASE).encode()

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return b"".join(self.piece(id, special=special) for id in ids).decode()

    def is_control(self, id: int) -> bool:
        return id < BASE


class FakeTemplate:
    """A chat template as a function of messages; raises TemplateError where `render` raises ValueError."""

    is_fallback = False
    source = ""

    def __init__(self, render: Callable[..., str]):
        self._render = render

    def render(self, messages, *, add_generation_prompt: bool = True, **_) -> str:
        try:
            return self._render(messages, add_generation_prompt)
        except ValueError as error:
            raise TemplateError(str(error)) from None


def chatml(messages, cue: bool) -> str:
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if cue else "")


def chatml_with_default(messages, cue: bool) -> str:
    """With a system prompt of its own, as SmolLM2 has."""
    first = [] if messages and messages[0]["role"] == "system" else [{"role": "system", "content": "Be nice"}]
    return chatml([*first, *messages], cue)


def system_inside(messages, cue: bool) -> str:
    """The system prompt inside the first question, and nothing but turns in order, as Llama 2 has it."""
    system = ""
    if messages and messages[0]["role"] == "system":
        system, messages = f"<<{messages[0]['content']}>> ", messages[1:]
    text = ""
    for i, m in enumerate(messages):
        if m["role"] != ("user", "assistant")[i % 2]:
            raise ValueError("roles must alternate")
        text += f"<s>[{system if not i else ''}{m['content']}]" if i % 2 == 0 else f" {m['content'].strip()} </s>"
    return text


def thoughts_dropped(messages, cue: bool) -> str:
    """What stands before </think> is left out of all answers but the last message."""
    kept = [
        {**m, "content": m["content"].rpartition("</think>")[2]}
        if m["role"] == "assistant" and m is not messages[-1]
        else m
        for m in messages
    ]
    return chatml(kept, cue)


TEMPLATES = {f.__name__: f for f in (chatml, chatml_with_default, system_inside, thoughts_dropped)}


class FakeSession:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.forgotten: list[tuple[int, int]] = []

    def forget(self, begin: int, end: int) -> None:
        self.forgotten.append((begin, end))
        del self.tokens[begin:end]

    def save(self, path) -> None:
        with open(path, "w") as file:
            file.write(" ".join(map(str, self.tokens)))

    def load(self, path) -> None:
        with open(path) as file:
            self.tokens = [int(word) for word in file.read().split()]

    def close(self) -> None:
        self.tokens = []


class FakeEngine:
    """Answers with `answers` in turn, then with "ok". `requests` and `cached` record what was asked and reused."""

    def __init__(self, answers: Sequence[str] = (), *, template=chatml, context: int = 1000, pause: float = 0.0):
        self.answers, self.context, self.pause = list(answers), context, pause
        self.requests: list[Request] = []
        self.cached: list[int] = []
        self.on_token: Callable[[int], None] = lambda count: None  # called after each token, on the engine's thread
        self.between_steps: Callable[[], None] = lambda: None
        tokenizer = FakeTokenizer(add_bos=template is None)
        fallback = SimpleNamespace(is_fallback=True)
        self.model = SimpleNamespace(
            tokenizer=tokenizer,
            template=FakeTemplate(template) if template else fallback,
            config=SimpleNamespace(context=2000, vocab_size=0x110000 + BASE),
            gguf=SimpleNamespace(path="fake.gguf"),
            plan=SimpleNamespace(stages=(SimpleNamespace(device=SimpleNamespace(name="Fake", detail="")),)),
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def session(self) -> FakeSession:
        return FakeSession()

    def submit(self, request: Request, sink: Sink | None = None) -> Stream:
        if len(request.tokens) > self.context:
            raise ContextFull(0, len(request.tokens), self.context)
        cancelled = threading.Event()
        stream = Stream(cancelled.set, sink)
        threading.Thread(target=self._answer, args=(request, stream, cancelled), daemon=True).start()
        return stream

    def _answer(self, request: Request, stream: Stream, cancelled: threading.Event) -> None:
        session = request.session or FakeSession()
        prompt = list(request.tokens)
        same = next((i for i, (a, b) in enumerate(zip(session.tokens, prompt, strict=False)) if a != b), None)
        same = min(len(session.tokens), len(prompt)) if same is None else same
        self.requests.append(request)
        self.cached.append(same)
        session.tokens[:] = prompt
        self.on_token(0)
        stream.put(Prefill(len(prompt), len(prompt), same))
        script = "" if request.max_tokens == 0 else self.answers.pop(0) if self.answers else "ok"
        reason, count, text = "eos", 0, ""
        for char in script:
            if cancelled.is_set() or len(session.tokens) >= self.context or count == request.max_tokens:
                break
            session.tokens.append(BASE + ord(char))
            stream.put(Token(BASE + ord(char), char))
            text, count = text + char, count + 1
            self.on_token(count)
            self.between_steps()
            time.sleep(self.pause)
            stop = next((s for s in request.stop if text.endswith(s)), None)
            if stop:
                reason = "stop"
                break
        if cancelled.is_set():
            reason = "cancelled"
        elif len(session.tokens) >= self.context:
            reason = "context"
        elif count == request.max_tokens:
            reason = "length"
        stream.put(Done(reason, "", Timings(len(prompt) - same, same, count, 0.5, 0.25)))
        self.between_steps()


def main() -> int:
    """A chat on this terminal; each question is answered with itself, "forever" without end."""
    from layerlift.runtime.arguments import parse
    from layerlift.runtime.chat import Chat
    from layerlift.runtime.chat_commands import NAMES
    from layerlift.runtime.line_editor import open_reader
    from layerlift.runtime.startup import sampling_of
    from layerlift.runtime.terminal import Terminal

    class Echo(FakeEngine):
        def submit(self, request):
            question = self.model.tokenizer.decode(request.tokens).rpartition("user\n")[2].removesuffix("\nassistant\n")
            self.answers = ["again " * 2000 if question == "forever" else f"<{question!r}>"]
            return super().submit(request)

    options = parse(sys.argv[1:])
    chat = Chat(Echo(pause=0.001, context=100000), options, Terminal(quiet=options.log_disable), sampling_of(options))
    return chat.run(open_reader(NAMES, keep_history=not options.log_disable))


if __name__ == "__main__":
    sys.exit(main())
