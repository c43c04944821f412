"""Landlock: from here on this process reads nothing but what lies beneath some paths, and writes nothing at all.

Linux system calls through ctypes (https://docs.kernel.org/userspace-api/landlock.html). Knows nothing of why.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

from .errors import LayerliftError

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
VERSION, ALL_THREADS = 1 << 0, 1 << 3  # flags of the first and of the last
PATH_BENEATH = 1
NO_NEW_PRIVS = 38  # of prctl

# Rights, as the versions of the interface brought them. One that is handled is denied where no rule grants it.
READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, read a folder
READ_FILE = 1 << 0 | 1 << 2  # those of them that files have
FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
NETWORK = {4: 1 << 0 | 1 << 1}  # bind and connect TCP
SCOPES = {6: 1 << 0}  # abstract unix sockets of other processes


class LandlockError(LayerliftError):
    """The kernel has no Landlock, or refuses it."""


class _Attributes(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The kernel's version of the interface; 0: it has none."""
    if sys.platform != "linux":
        return 0
    return max(0, _libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION))


def restrict(readable: Iterable[str]) -> None:
    """Only files beneath `readable` can be opened from now on, for reading, by every thread. Raises LandlockError.

    It cannot be taken back, and child processes inherit it.
    """
    rules = ruleset(readable)
    try:
        _enforce(rules, version())
    finally:
        os.close(rules)


def ruleset(readable: Iterable[str] = ()) -> int:
    """An open file that stands for these rules, for the system call that enforces them. Raises LandlockError.

    Paths that are not there are passed over.
    """
    number = version()
    if not number:
        raise LandlockError("this kernel has no Landlock")
    attributes = _Attributes(_of(FILES, number), _of(NETWORK, number), _of(SCOPES, number))
    size = 24 if number >= 6 else 16 if number >= 4 else 8
    rules = _call(CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    for path in readable:
        _allow(rules, path)
    return rules


def _of(table: dict[int, int], number: int) -> int:
    return max((rights for since, rights in table.items() if since <= number), default=0)


def _allow(rules: int, path: str) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _Beneath(READ if os.path.isdir(path) else READ_FILE, parent)
        _call(ADD_RULE, rules, PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


def _enforce(rules: int, number: int) -> None:
    if number >= 8:
        _no_new_privileges()
        _call(RESTRICT_SELF, rules, ALL_THREADS)
        return
    from ..kernels.cpu import native

    library = native.library()
    if library is None or not hasattr(library, "ll_restrict_threads"):
        raise LandlockError("this kernel restricts one thread at a time, which needs a native library that can")
    native.declare(library, {"ll_restrict_threads": (ctypes.c_int, [ctypes.c_int])})
    if error := library.ll_restrict_threads(rules):
        raise LandlockError(f"Landlock: {os.strerror(error)}")


def _no_new_privileges() -> None:
    if _libc().prctl(NO_NEW_PRIVS, 1, 0, 0, 0):
        raise LandlockError(f"prctl: {os.strerror(ctypes.get_errno())}")


def _call(*arguments: object) -> int:
    result = _libc().syscall(*arguments)
    if result < 0:
        raise LandlockError(f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
