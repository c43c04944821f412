"""An answer as a response of the Responses API: its items as they grow, and the events that tell of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import openai
from .generation import Answer, End, Piece, ToolPiece

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

Event = dict[str, Any]


class Writer:
    """`response` is what is there so far. Each event must be encoded before the next one is asked for."""

    def __init__(self, response: dict[str, Any], tokenizer: Tokenizer, *, logprobs: bool):
        self.response = response
        self._tokenizer, self._wants_logprobs = tokenizer, logprobs
        self._item: dict[str, Any] | None = None  # the one that is being written
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._unsent = 0  # of the logprobs, those that no event has had yet
        self._events = 0

    def begin(self) -> Iterator[Event]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def take(self, event: Answer) -> Iterator[Event]:
        """Writes what an event of the answer brings."""
        if isinstance(event, Piece):
            yield from self._text(event)
        elif isinstance(event, ToolPiece):
            yield from self._call(event)
        elif isinstance(event, End):
            yield from self._end(event)

    def fail(self, message: str) -> Event:
        """The last event of an answer that ended in an error."""
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        return self._event("response.failed", response=self.response)

    def _event(self, kind: str, **values: Any) -> Event:
        self._events += 1
        return {"type": kind, "sequence_number": self._events - 1, **values}

    # -- texts --

    def _text(self, piece: Piece) -> Iterator[Event]:
        if self._wants_logprobs and piece.token is not None:
            self._logprobs.append(openai.logprob(self._tokenizer, piece.token))
        if not piece.text:
            return
        if self._item is None or self._item["type"] != "message":
            yield from self._close("completed")
            yield from self._open(_message())
        self._pieces.append(piece.text)
        new, self._unsent = self._logprobs[self._unsent :], len(self._logprobs)
        yield self._event("response.output_text.delta", **self._place(), delta=piece.text, logprobs=new)

    def _place(self) -> dict[str, Any]:
        """Where a part of the open item lies; a message has one part."""
        assert self._item is not None
        where = {"item_id": self._item["id"], "output_index": len(self.response["output"])}
        return {**where, "content_index": 0} if self._item["type"] == "message" else where

    # -- calls --

    def _call(self, piece: ToolPiece) -> Iterator[Event]:
        if piece.id:
            yield from self._close("completed")
            yield from self._open(_function_call(piece))
        if piece.arguments:
            self._pieces.append(piece.arguments)
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=piece.arguments)

    # -- items --

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        self._item = item
        yield self._event("response.output_item.added", output_index=len(self.response["output"]), item=item)
        if item["type"] == "message":
            yield self._event("response.content_part.added", **self._place(), part=_part("", []))

    def _close(self, status: str) -> Iterator[Event]:
        """Ends the open item, if there is one."""
        item, text = self._item, "".join(self._pieces)
        if item is None:
            return
        if item["type"] == "message":
            part = _part(text, self._logprobs)
            yield self._event("response.output_text.done", **self._place(), text=text, logprobs=self._logprobs)
            yield self._event("response.content_part.done", **self._place(), part=part)
            item["content"] = [part]
            self._logprobs, self._unsent = [], 0
        else:
            values = {"name": item["name"], "arguments": text}
            yield self._event("response.function_call_arguments.done", **self._place(), **values)
            item["arguments"] = text
        item["status"] = status
        yield self._event("response.output_item.done", output_index=len(self.response["output"]), item=item)
        self.response["output"].append(item)
        self._item, self._pieces = None, []

    def _end(self, end: End) -> Iterator[Event]:
        cut = end.reason in ("length", "context")
        status = "incomplete" if cut else "completed"
        if self._item is None and not self.response["output"]:  # an answer without a word is a message too
            yield from self._open(_message())
        yield from self._close(status)
        reason = {"reason": "max_output_tokens"} if cut else None
        self.response |= {"status": status, "incomplete_details": reason, "usage": _usage(end)}
        self.response["completed_at"] = None if cut else int(time.time())
        yield self._event(f"response.{status}", response=self.response)


def _message() -> dict[str, Any]:
    id = "msg_" + secrets.token_hex(12)
    return {"id": id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _function_call(piece: ToolPiece) -> dict[str, Any]:
    heading = {"id": "fc_" + secrets.token_hex(12), "type": "function_call", "status": "in_progress"}
    return {**heading, "call_id": piece.id, "name": piece.name, "arguments": ""}


def _usage(end: End) -> dict[str, Any]:
    prompt, generated = end.prompt_tokens, end.timings.generated_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": end.timings.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + generated,
    }
