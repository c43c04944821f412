"""layerlift from Python: one class over a model, its tokenizer, its chat template and an engine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from ..backends.base import KVDtype
from ..backends.kernel_settings import KernelSettings
from .engine import Engine
from .errors import LayerliftError, UserError
from .model import Model
from .request import Done, Request, Stream, Token
from .sampler import Sampling
from .sources import resolve

KV_DTYPES = get_args(KVDtype)
SAMPLING = frozenset(f.name for f in fields(Sampling))


class LLM:
    """A model ready to answer.

        with layerlift.LLM("model.gguf", ngl="auto") as llm:
            print(llm.generate("four score and seven", max_tokens=16))
            for piece in llm.chat([{"role": "user", "content": "Hello"}], stream=True):
                print(piece, end="", flush=True)

    `path` is a GGUF file or any name that `layerlift list` shows; None is the default model, fetched at first use.
    `context` 0 is what the model was trained for. All methods may be called from several threads at once.
    Raises GGUFError, ModelError, BackendUnavailable, DownloadError.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        ngl: int | Literal["auto", "all"] = "auto",
        gpu: str = "auto",
        context: int = 8192,
        threads: int | None = None,
        slots: int = 4,
        kv_dtype: KVDtype = "f16",
        kernels: KernelSettings = KernelSettings(),  # noqa: B008  (frozen)
        notify: Callable[[str], None] | None = None,
    ):
        if not (ngl in ("auto", "all") or (isinstance(ngl, int) and ngl >= 0)):
            raise UserError(f"ngl is {ngl!r}", hint="a number of layers, 'auto' or 'all'")
        if kv_dtype not in KV_DTYPES:
            raise UserError(f"kv_dtype is {kv_dtype!r}", hint=f"one of {', '.join(KV_DTYPES)}")
        self.model = Model.load(
            resolve(path),
            ngl=ngl,
            gpu=gpu,
            context=context,
            kv_dtype=kv_dtype,
            threads=threads,
            kernels=kernels,
            notify=notify,
        )
        try:
            self.engine = Engine(self.model, context=context, slots=slots, kv_dtype=kv_dtype)
        except BaseException:
            self.model.close()
            raise
        self._release = weakref.finalize(self, _close, self.engine, self.model)  # also when nobody refers to it

    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        stop: Sequence[str] = (),
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> str: ...
    @overload
    def generate(
        self, prompt: str, *, max_tokens: int = 128, stop: Sequence[str] = (), stream: Literal[True], **sampling: Any
    ) -> Iterator[str]: ...
    def generate(
        self, prompt: str, *, max_tokens: int = 128, stop: Sequence[str] = (), stream: bool = False, **sampling: Any
    ) -> str | Iterator[str]:
        """Continues a text. `sampling` are fields of Sampling: temperature, top_k, seed, …

        Returns the continuation, or an iterator over its pieces with `stream=True`. `max_tokens` -1 runs until the
        model ends. Raises UserError for an impossible setting, ContextFull for a prompt longer than the context.
        """
        return self._answer(self.tokenize(prompt), max_tokens, stop, stream, sampling)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = -1,
        stop: Sequence[str] = (),
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> str: ...
    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = -1,
        stop: Sequence[str] = (),
        stream: Literal[True],
        **sampling: Any,
    ) -> Iterator[str]: ...
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = -1,
        stop: Sequence[str] = (),
        stream: bool = False,
        **sampling: Any,
    ) -> str | Iterator[str]:
        """Answers a conversation of {"role": …, "content": …} messages through the model's own chat template.

        Arguments and errors as for `generate`, and TemplateError.
        """
        self._check_open()
        if not messages:
            raise UserError("there are no messages", hint='[{"role": "user", "content": "Hello"}]')
        # The tokenizer adds a start token only where the template did not write one.
        tokens = self.tokenize(self.model.template.render(messages, add_generation_prompt=True))
        return self._answer(tokens, max_tokens, stop, stream, sampling)

    def embed(self, texts: Sequence[str], *, pooling: Literal["mean", "last"] = "mean") -> NDArray[np.float32]:
        """One vector of length 1 per text, [len(texts), d_model] float32: the last layer's normed states, pooled.

        A single str counts as one text.
        """
        texts = [texts] if isinstance(texts, str) else texts
        streams = [self.engine.submit(Request(self.tokenize(text), pooling=pooling)) for text in texts]
        vectors = [stream.result().embedding for stream in streams]
        return np.array(vectors, np.float32).reshape(len(texts), self.model.config.d_model)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; with `special`, the model's start token in front and control tokens recognised."""
        self._check_open()
        return self.model.tokenizer.encode(text, add_special=special, parse_special=special)

    def close(self) -> None:
        """Gives back threads, devices and the file."""
        self._release()

    def _check_open(self) -> None:
        if not self._release.alive:
            raise LayerliftError("the model is closed")

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _answer(
        self, tokens: list[int], max_tokens: int, stop: Sequence[str], stream: bool, sampling: Mapping[str, Any]
    ) -> str | Iterator[str]:
        unknown = sorted(set(sampling) - SAMPLING)
        if unknown:
            raise UserError(f"unknown setting {unknown[0]!r}", hint=f"known: {', '.join(sorted(SAMPLING))}")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        request = Request(tokens, Sampling(**sampling), max_tokens, stops)
        events = self.engine.submit(request)
        if not stream:
            return events.result().text
        pieces = self._pieces(events)
        weakref.finalize(pieces, events.cancel).atexit = False  # also for a stream that nobody ever read
        return pieces

    def _pieces(self, events: Stream) -> Iterator[str]:
        """The text of a stream; leaving the loop early cancels the request."""
        try:
            for event in events:
                if isinstance(event, (Token, Done)) and event.text:
                    yield event.text
        finally:
            events.cancel()


def _close(engine: Engine, model: Model) -> None:
    engine.close()
    model.close()
