"""Loads the native CPU library and declares its functions. Knows nothing of backends or models.

The library lies beside this package as `layerlift_cpu.so` (in an editable install the package has several folders);
where none was built, `library()` is None and `reason()` says why.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["ABI_VERSION", "declare", "forced_isa", "isa_names", "library", "reason"]

ABI_VERSION = 4
FILE_NAME = "layerlift_cpu.so"

INPUT = [c_void_p, c_void_p, c_int64, c_void_p, c_float]  # context, x, T, norm, eps
FACTOR = [c_void_p, c_void_p, c_void_p]  # matrix, bias, y

# name: (result, arguments). Pointers are plain addresses (int), so that a call costs no conversion.
Signatures = dict[str, tuple[Any, list[Any]]]
SIGNATURES: Signatures = {
    "ll_abi_version": (c_int, []),
    "ll_isa_names": (c_char_p, []),
    "ll_open": (c_void_p, [c_int, c_char_p]),
    "ll_close": (None, [c_void_p]),
    "ll_isa": (c_char_p, [c_void_p]),
    "ll_threads": (c_int, [c_void_p]),
    "ll_alloc": (c_void_p, [c_size_t]),
    "ll_free": (None, [c_void_p, c_size_t]),
    "ll_matrix_new": (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_void_p, c_void_p]),
    "ll_matrix_free": (None, [c_void_p]),
    "ll_matrix_nbytes": (c_int64, [c_void_p]),
    "ll_rows": (c_int, [c_void_p, c_void_p, c_void_p, c_int64, c_void_p]),
    "ll_matmul": (c_int, [*INPUT, c_int, *FACTOR]),
    "ll_matmul_add": (c_int, [c_void_p, c_void_p, c_int64, *FACTOR]),
    "ll_matmul3": (c_int, [*INPUT, *FACTOR, *FACTOR, *FACTOR]),
    "ll_quantize": (c_int64, [c_void_p, c_int, c_void_p, c_int64, c_int64, c_int, c_void_p, c_void_p]),
    "ll_gated": (c_int, [*INPUT, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p]),
}


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    folders = [Path(p) for p in sys.modules[__package__ or ""].__path__]
    for path in (folder / FILE_NAME for folder in folders):
        if path.is_file():
            return _open(path)
    return None, f"{FILE_NAME} was not built (no C++ compiler at installation)"


def _open(path: Path) -> tuple[ctypes.CDLL | None, str]:
    try:
        lib = ctypes.CDLL(str(path))
        version = lib.ll_abi_version()
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {error}"
    if version != ABI_VERSION:
        return None, f"{path} has ABI {version}, this layerlift needs {ABI_VERSION}: reinstall it"
    declare(lib, SIGNATURES)
    return lib, ""


def declare(lib: ctypes.CDLL, signatures: Signatures) -> None:
    """Sets result and argument types of the functions named, so that a wrong call fails in Python."""
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


def library() -> ctypes.CDLL | None:
    """The library with every function declared, or None (see `reason`)."""
    return _load()[0]


def reason() -> str:
    """Why `library()` is None; empty when it is not."""
    return _load()[1]


def isa_names() -> tuple[str, ...]:
    """The instruction sets that library and CPU share, best first; empty without a library."""
    lib = library()
    return tuple(lib.ll_isa_names().decode().split()) if lib else ()


def forced_isa() -> str:
    """The instruction set that LAYERLIFT_ISA asks for; empty: the best."""
    return os.environ.get("LAYERLIFT_ISA", "")
