"""seccomp: from here on no thread of this process can start programs, open files for writing, or make connections.

A filter of system calls (Linux, x86-64 and 64-bit ARM), written as classic BPF. Knows nothing of why.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

from .errors import LayerliftError

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_…
FILTER, ALL_THREADS, NO_NEW_PRIVS, X32 = 1, 1, 38, 0x40000000
OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE_THREAD = 0x10000

# name: numbers on x86-64 and on ARM; None: there is no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "creat": (85, None), "truncate": (76, 45), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None),
    "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "setxattrat": (463, 463), "removexattrat": (466, 466),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442),
    "unshare": (272, 97), "setns": (308, 268), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "personality": (135, 92),
}  # fmt: skip
# As if the kernel had not got them: the C library then does without.
ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}
# name: numbers, which argument has the flags.
OPENING = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
CLONE = (56, 220)
SECCOMP = (317, 277)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: ld, jeq, jge, jset, ret
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # places in struct seccomp_data


class SeccompError(LayerliftError):
    """The kernel or the processor has no such filter."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def program(machine: str) -> bytes:
    """The filter for a processor of ARCHITECTURES."""
    column = list(ARCHITECTURES).index(machine)
    no, nowhere = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    code = [_op(_LOAD, _ARCHITECTURE), _op(_EQUAL, ARCHITECTURES[machine], 1, 0), _op(_RETURN, no), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        code += [_op(_AT_LEAST, X32, 0, 1), _op(_RETURN, no)]
    for table, answer in ((DENIED, no), (ABSENT, nowhere)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                code += [_op(_EQUAL, number, 0, 1), _op(_RETURN, answer)]
    for numbers, argument in OPENING.values():
        if (number := numbers[column]) is not None:
            code += _if_bits(number, argument, OPEN_TO_WRITE, no, _ALLOW)
    code += _if_bits(CLONE[column], 0, CLONE_THREAD, _ALLOW, no)
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _if_bits(number: int, argument: int, bits: int, some: int, none: int) -> list[bytes]:
    """For one system call, what is answered where its argument has some of the bits, and where it has none."""
    return [
        _op(_EQUAL, number, 0, 4),
        _op(_LOAD, _ARGUMENTS + 8 * argument),  # the lower half; both processors are little-endian
        _op(_ANY_BIT, bits, 0, 1),
        _op(_RETURN, some),
        _op(_RETURN, none),
    ]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def restrict() -> None:
    """Filters every thread from now on; it cannot be taken back. Raises SeccompError."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        raise SeccompError(f"there is no filter of system calls for {sys.platform} on {machine}")
    code = program(machine)
    held = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None, use_errno=True)
    filter = _Program(len(code) // 8, ctypes.addressof(held))
    number = SECCOMP[list(ARCHITECTURES).index(machine)]
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(number, FILTER, ALL_THREADS, ctypes.byref(filter)):
        raise SeccompError(f"seccomp: {os.strerror(ctypes.get_errno())}")
