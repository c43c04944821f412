"""Puts a GPU program's text together from the files beside this one. Knows no device and no compiler."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
KERNEL = re.compile(r"^KERNEL\(\w+\)\s+(\w+)\(([^)]*)\)", re.MULTILINE)
PRELUDES = {"opencl": ("prelude",), "cuda": ("prelude", "vectors")}
SCALARS = ("int", "float", "i64")


@functools.cache
def read(name: str) -> str:
    """The text of a file, such as "shared/product.h"."""
    return (FOLDER / name).read_text(encoding="utf-8")


def program(language: str, files: Iterable[str], macros: Mapping[str, int | str]) -> str:
    """The macros, the prelude of `language` ("opencl", "cuda"), and the shared files."""
    defines = "".join(f"#define {name} {value}\n" for name, value in sorted(macros.items()))
    preludes = (read(f"{language}/{name}.h") for name in PRELUDES[language])
    return "\n".join([defines, *preludes, *(read(f"shared/{name}.h") for name in files)])


def signatures(text: str) -> dict[str, tuple[str, ...]]:
    """The kernels of a text by name, and of each parameter whether it is a "pointer", "int", "float" or "i64"."""
    found = {}
    for name, parameters in KERNEL.findall(text):
        words = [parameter.split() for parameter in parameters.split(",")]
        found[name] = tuple(w[0] if w[0] in SCALARS else "pointer" for w in words)
    return found
