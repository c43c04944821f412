"""Cuts generated text at stop strings. Knows nothing of tokens."""

from __future__ import annotations


class StopStrings:
    """Passes text on as soon as it can no longer be part of a stop string."""

    def __init__(self, stops: tuple[str, ...]):
        self._stops = tuple(s for s in stops if s)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to show, and the stop string met, if any; nothing after it is shown."""
        if not self._stops:
            return text, None
        held = self._held + text
        met = [(held.find(stop), stop) for stop in self._stops if stop in held]
        if met:
            at, stop = min(met)
            self._held = ""
            return held[:at], stop
        keep = max(self._overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], None

    def flush(self) -> str:
        """What is still held back, when nothing more will come."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that begins `stop`."""
        for size in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:size]):
                return size
        return 0
