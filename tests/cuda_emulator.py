"""Builds a text of kernels/cuda with this machine's C++ compiler and runs its kernels on the CPU, thread by thread.

What the device would take by pointer is a NumPy array; writeable arrays are changed in place. The program runs in a
process of its own, under AddressSanitizer and UBSan where a test asks: an array's end is the end of its memory. With a
`Memory`, pointers are addresses in a file that the program maps.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from layerlift.kernels import sources
from native_driver import Driver

FOLDER = Path(__file__).parent / "emulator"
HEADERS = ("grid.h", "cuda.h", "matrices.h", "driver.h")  # in this order before every text
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
PARAMETERS = re.compile(r"^KERNEL\(\w+\)\s+(\w+)\(([^)]*)\)", re.MULTILINE)


def prelude() -> str:
    """In place of kernels/cuda's: the emulator's own stands before every text already."""
    return "// tests/emulator\n"


@dataclass(frozen=True)
class Memory:
    """A file of `nbytes` that lies at address `base` in the program."""

    path: str
    base: int
    nbytes: int


class Emulator:
    """A built text. Use as a context: the process lives in between."""

    def __init__(self, text: str, *, sanitize: bool = False, memory: Memory | None = None):
        self.signatures, self.memory = sources.signatures(text), memory
        self.waits = "wait_for_predecessors()" in text
        place = [memory.path, str(memory.base), str(memory.nbytes)] if memory else []
        self.driver = Driver([str(_build(text, sanitize)), *place], 0, "", {"ASAN_OPTIONS": "detect_leaks=0"})

    def __enter__(self):
        self.driver.__enter__()
        return self

    def __exit__(self, *exception):
        return self.driver.__exit__(*exception)

    def launch(self, name, grid, threads, *arguments, shared=0, seed=1):
        """Runs a kernel on a grid (x, y). Arrays that are writeable come back changed."""
        integers, numbers, arrays = [*grid, threads, shared, seed], [], []
        kinds = self.signatures[name]
        assert len(kinds) == len(arguments), f"{name} takes {len(kinds)} arguments, {len(arguments)} were given"
        for kind, value in zip(kinds, arguments, strict=True):
            {"pointer": arrays, "float": numbers}.get(kind, integers).append(value)
        if self.memory:
            integers += [*(address or 0 for address in arrays), len(arrays)]
            arrays = []
        wanted = [a for a in arrays if a is not None and a.flags.writeable]
        assert self.driver.call(name, integers, numbers, arrays, wanted) == 0


def read_only(x):
    """The array as one that a kernel does not write."""
    x = x.view()
    x.flags.writeable = False
    return x


def _glue(text: str) -> str:
    """call_kernel(name): one call for each kernel of the text, its arguments taken in turn from the message."""
    calls = []
    for name, parameters in PARAMETERS.findall(text):
        arguments, taken = [], {"arrays": 0, "integers": 5, "numbers": 0}
        for parameter in parameters.split(","):
            kind = re.sub(r"\bGLOBAL\b|\w+$", "", parameter.strip()).strip()
            source = "arrays" if "*" in kind else ("numbers" if kind == "float" else "integers")
            arguments.append(f"({kind}){source}[{taken[source]}]")
            taken[source] += 1
        calls.append(f'  if (!strcmp(name, "{name}")) return [] {{ {name}({", ".join(arguments)}); }};')
    return "\nstatic void (*find_kernel(const char *name))() {\n" + "\n".join(calls) + "\n  return nullptr;\n}\n"


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"layerlift-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to somebody else"
    return folder


def _build(text: str, sanitize: bool) -> Path:
    """The program, built once for this text: what was built before is kept in the temporary folder."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler or platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        pytest.skip("the emulator of CUDA needs a C++ compiler on x86-64 and a POSIX system")
    flags = ("-std=c++17", "-w", *(("-O0", *SANITIZERS) if sanitize else ("-O1", "-march=native")))
    source, header = text + _glue(text), _header(compiler, flags)
    program = _folder() / _key(compiler, *flags, header.name, source)
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as folder:
            path, built = Path(folder) / "text.cpp", Path(folder) / "program"
            path.write_text(source, encoding="utf-8")
            _run([compiler, *flags, "-include", str(header), str(path), "-o", str(built)])
            built.replace(program)
    return program


@functools.cache
def _header(compiler: str, flags: tuple[str, ...]) -> Path:
    """What stands before every text, compiled ahead: half of the time of a build."""
    text = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in HEADERS)
    header = _folder() / f"{_key(compiler, *flags, text)}.h"
    ahead = header.with_name(f"{header.name}.gch")
    if not ahead.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as folder:
            path, built = Path(folder) / "header.h", Path(folder) / "header.gch"
            path.write_text(text, encoding="utf-8")
            _run([compiler, *flags, "-x", "c++-header", str(path), "-o", str(built)])
            path.replace(header)
            built.replace(ahead)
    return header


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
