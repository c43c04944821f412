"""The architectures, one file each, found by file name. CONTRIBUTING.md shows how to add one.

A file holds `read_config(gguf) -> Config` and `Block.load(tensors, config, layer) -> Block`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ..errors import ModelError
from ..gguf import GGUF

NOT_ARCHITECTURES = ("config",)


def known() -> tuple[str, ...]:
    """Names of all architectures, as in `general.architecture`."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name not in NOT_ARCHITECTURES))


def architecture(gguf: GGUF) -> ModuleType:
    """The module of a file's architecture; ModelError names the known ones where there is none."""
    name = gguf.metadata.text("general.architecture")
    if name not in known():
        raise ModelError(
            f"gguf: {gguf.path}: architecture {name!r} is not supported",
            hint=f"supported architectures: {', '.join(known())}",
        )
    return importlib.import_module(f".{name}", __name__)
