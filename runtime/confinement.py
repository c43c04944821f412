"""Takes from this process what it no longer needs once its model is loaded, should anybody get control of it.

Afterwards it opens no file for writing, reads none but the program's own, starts no programs and makes no connections;
those that are open stay so. Linux only: Landlock for the files, seccomp for the rest.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig

from . import landlock, seccomp

# What Python's modules are loaded from late, and what the C library looks up.
SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime"),
    *("/usr/share/zoneinfo", "/etc/mime.types", "/sys/devices/system/cpu", "/dev/null", "/dev/urandom"),
)


def readable() -> list[str]:
    """The paths that the program itself may have to read: its modules and libraries, no data of anybody's."""
    modules = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    modules |= {os.path.join(prefix, "lib") for prefix in (sys.base_prefix, sys.prefix)}
    for module in list(sys.modules.values()):
        modules.update(getattr(module, "__path__", ()))  # an editable install's lie elsewhere
    # A packed file has its modules in itself and in a folder of its own. The current folder is anybody's, and so is
    # what stands in sys.path though no module came from it: an editable install adds the folder above its own.
    homes = _homes()
    modules |= {path for path in sys.path if path in homes and os.path.realpath(path) != os.getcwd()}
    return sorted({*SYSTEM, *modules} - {"", "/", None})


def _homes() -> set[str]:
    """The folders and archives that hold a module or package loaded by its own name."""
    homes = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and "." not in name:
            homes.add(os.path.dirname(os.path.dirname(file) if hasattr(module, "__path__") else file))
    return homes


def confine() -> list[str]:
    """Confines every thread of the process. Lines that say what could not be done; it cannot be taken back."""
    if sys.platform != "linux":
        return []
    missing = []
    for what, restrict in (("files", lambda: landlock.restrict(readable())), ("system calls", seccomp.restrict)):
        try:
            restrict()
        except (landlock.LandlockError, seccomp.SeccompError) as error:
            missing.append(f"the server's {what} are not confined: {error} ({platform.release()})")
    return missing
