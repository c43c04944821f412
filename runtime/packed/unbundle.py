"""Unpacks the wheels of a packed file into the user's cache: once, checked, whole or not at all.

Native libraries cannot be loaded out of a zip. The folder is named by the hash of what goes into it and appears by
a rename, so that any number of first starts at once, and one that is killed, leave nothing half done.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
import zipfile


class Refused(Exception):
    """Why the wheels cannot be used, and what to do."""

    def __init__(self, message: str, hint: str):
        super().__init__(message)
        self.hint = hint


def folder(path: str) -> str:
    """The folder with the unpacked wheels of the packed file `path`. Raises Refused."""
    try:
        with zipfile.ZipFile(path) as z:
            bundle = json.loads(z.read("layerlift.json"))["bundle"]
            names = _choose(path, bundle)
            wheels = {name: bundle["wheels"][name] for name in names}
            key = hashlib.sha256(json.dumps([wheels, sys.version_info[:2]], sort_keys=True).encode()).hexdigest()
            place = os.path.join(cache_dir(), "engines")
            target = os.path.join(place, key[:40])
            if not os.path.isdir(target):
                _unpack(z, wheels, place, target, path)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, TypeError) as error:
        raise Refused(path + ": the wheels in it are damaged: " + str(error), "fetch or pack the file again") from None
    except OSError as error:
        hint = "set LAYERLIFT_CACHE to a folder that can be written"
        raise Refused("the wheels cannot be unpacked: " + str(error), hint) from None
    _check_owner(target)
    return target


def cache_dir() -> str:
    """layerlift's cache, where it is also when layerlift is installed."""
    env, home = os.environ, os.path.expanduser("~")
    if env.get("LAYERLIFT_CACHE"):
        return os.path.abspath(os.path.expanduser(env["LAYERLIFT_CACHE"]))
    if sys.platform == "win32":
        return os.path.join(env.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local"), "layerlift", "Cache")
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Caches", "layerlift")
    return os.path.join(env.get("XDG_CACHE_HOME") or os.path.join(home, ".cache"), "layerlift")


def _choose(path: str, bundle: dict) -> list[str]:
    here, platform = f"{sys.version_info[0]}.{sys.version_info[1]}", sysconfig.get_platform()
    without = "pack the model without --bundle-deps, or on a machine like this one"
    if bundle["platform"] != platform:
        raise Refused(f"{path} carries layerlift for {bundle['platform']}; this is {platform}", without)
    if here not in bundle["pythons"]:
        known = ", ".join(bundle["pythons"])
        raise Refused(
            f"{path} carries layerlift for Python {known}; this is {here}",
            f"start it with one of these: python3.N {path}",
        )
    return bundle["pythons"][here]


def _unpack(z: zipfile.ZipFile, wheels: dict[str, str], place: str, target: str, path: str) -> None:
    os.makedirs(place, mode=0o700, exist_ok=True)
    with _locked(os.path.join(place, "lock")) as alone:
        if os.path.isdir(target):  # another start was quicker
            return
        if alone:  # what a killed start left is rubbish
            for name in os.listdir(place):
                if name.startswith(".new-"):
                    shutil.rmtree(os.path.join(place, name), ignore_errors=True)
        if sys.stderr.isatty():
            sys.stderr.write("unpacking layerlift, once...\n")
        needed = 4 * sum(z.getinfo("wheels/" + name).file_size for name in wheels)
        if shutil.disk_usage(place).free < needed:
            raise OSError(f"about {needed / 1e6:.0f} MB needed in {place}")
        work = tempfile.mkdtemp(prefix=".new-", dir=place)  # of mode 0700
        try:
            for name, digest in wheels.items():
                data = z.read("wheels/" + name)
                found = hashlib.sha256(data).hexdigest()
                if found != digest:
                    raise ValueError(f"{name} has sha256 {found}, expected {digest}")
                _extract(data, work, name)
            if hasattr(os, "sync"):
                os.sync()  # the name must not outlive the bytes when the power fails
            with contextlib.suppress(OSError):
                os.rename(work, target)
            if not os.path.isdir(target):
                raise OSError(f"{target} cannot be made")
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _extract(data: bytes, work: str, name: str) -> None:
    """A wheel's modules; its scripts and headers stay behind."""
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        for info in wheel.infolist():
            parts = info.filename.split("/")
            if info.is_dir():
                continue
            if "\\" in info.filename or ":" in info.filename or any(part in ("", ".", "..") for part in parts):
                raise ValueError(f"{name} holds {info.filename!r}")
            if parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            file = os.path.join(work, *parts)
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with wheel.open(info) as source, open(file, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)


@contextlib.contextmanager
def _locked(path: str):
    """Whether this process is alone here. Where the file system has no locks, renaming alone keeps order."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _check_owner(target: str) -> None:
    """Refuses a folder that somebody else could have filled."""
    if not hasattr(os, "getuid"):
        return
    status = os.stat(target)
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"{target} is not only yours", "remove it, or set LAYERLIFT_CACHE to a folder of your own")
