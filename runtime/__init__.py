"""The runtime: everything between a user's words and a backend's kernels.

Importing this package is cheap; the public names below are loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import LayerliftError, UserError
    from .llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "LayerliftError", "UserError"]

_HOME = {"LLM": ".llm", "LayerliftError": ".errors", "UserError": ".errors"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __package__), name)
    raise AttributeError(f"module 'layerlift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
