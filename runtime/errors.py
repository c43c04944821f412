"""The exception tree.

    LayerliftError               everything layerlift raises on purpose; the CLI prints one line, exit 1
    ├── UserError                a request that cannot work as typed, exit 2
    ├── GGUFError                a model file that is damaged, truncated or not a GGUF
    ├── ModelError               a sound file that this version cannot run (architecture, missing tensor)
    │   └── TokenizerError       … because of its vocabulary
    ├── TemplateError            a chat template that fails, loops or grows without bound
    ├── GrammarError             a grammar or JSON schema that cannot be used
    ├── ContextFull              more tokens asked for than the context holds
    ├── DownloadError            a model that could not be fetched
    ├── ConvertError             a checkpoint that is damaged, or that cannot become a GGUF
    ├── SessionError             a saved session that does not fit this model, or is damaged
    └── BackendError             a device or a kernel library (backends/errors.py, with its kinds)

A message states the fact with its operands; `hint` is the next step and goes on its own line.
"""

from __future__ import annotations

from ..backends.errors import BackendError, LayerliftError

__all__ = [
    "BackendError",
    "ContextFull",
    "ConvertError",
    "DownloadError",
    "GGUFError",
    "GrammarError",
    "LayerliftError",
    "ModelError",
    "SessionError",
    "TemplateError",
    "TokenizerError",
    "UserError",
]


class UserError(LayerliftError):
    exit_code = 2


class GGUFError(LayerliftError):
    pass


class ModelError(LayerliftError):
    pass


class TokenizerError(ModelError):
    pass


class TemplateError(LayerliftError):
    pass


class GrammarError(LayerliftError):
    pass


class ContextFull(LayerliftError):
    """`used` tokens are in the context, `asked` more were wanted, `capacity` is the limit."""

    def __init__(self, used: int, asked: int, capacity: int):
        super().__init__(
            f"context full: {used} used + {asked} asked > {capacity}",
            hint="raise -c or shorten the prompt",
        )
        self.used, self.asked, self.capacity = used, asked, capacity


class DownloadError(LayerliftError):
    pass


class ConvertError(LayerliftError):
    pass


class SessionError(LayerliftError):
    pass
