"""The root of layerlift's exception tree, and what a backend may raise. runtime/errors.py draws the whole tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import DeviceInfo


class LayerliftError(Exception):
    """A failure with a one-line message; `hint`, if any, is the next step for the user."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = ""):
        super().__init__(message)
        self.hint = hint


class BackendError(LayerliftError):
    """A device or a kernel library failed."""


class BackendUnavailable(BackendError):
    """The backend, or its `device` where that is said, cannot be used on this machine; the message is the reason."""

    device: DeviceInfo | None = None


class UnsupportedFormat(BackendError):
    """The backend has no kernel for a weight's format."""


class DeviceOutOfMemory(BackendError):
    """An allocation on `device` failed (None: not said); `nbytes` were asked for."""

    def __init__(self, message: str, *, nbytes: int, device: DeviceInfo | None = None, hint: str = ""):
        super().__init__(message, hint=hint)
        self.nbytes, self.device = nbytes, device


def first_line(error: BaseException) -> str:
    """What a library's exception says, on one line; its type's name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
