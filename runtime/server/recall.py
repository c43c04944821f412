"""What the server remembers of finished responses, so that a client may go on from one by its id. Bounded."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import msgspec

MAX_RESPONSES = 1024
MAX_BYTES = 32 << 20


class Kept(NamedTuple):
    """JSON of a response as it was answered, and of the conversation that it ends: messages without instructions."""

    response: bytes
    conversation: bytes

    @property
    def nbytes(self) -> int:
        return len(self.response) + len(self.conversation)


class Recall:
    """The newest responses by id; the oldest go first when there are too many or they are too large."""

    def __init__(self, *, responses: int = MAX_RESPONSES, nbytes: int = MAX_BYTES):
        self._responses, self._nbytes = responses, nbytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._held = 0

    def keep(self, response: dict[str, Any], conversation: list[dict[str, Any]]) -> None:
        kept = Kept(msgspec.json.encode(response), msgspec.json.encode(conversation))
        self._kept[response["id"]] = kept
        self._held += kept.nbytes
        while len(self._kept) > self._responses or self._held > self._nbytes:
            self.forget(next(iter(self._kept)))

    def find(self, id: str) -> Kept | None:
        return self._kept.get(id)

    def forget(self, id: str) -> bool:
        """Whether there was something to forget."""
        kept = self._kept.pop(id, None)
        self._held -= kept.nbytes if kept else 0
        return kept is not None
