"""Gathers layerlift and the wheels it stands on, for this platform and several Pythons. Knows nothing of models.

Wheels come through the user's pip. layerlift's own is made of the files that are running, whether they were installed
or lie in a source tree, so that a packed file runs what packed it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pack_manifest import Bundle, PackError

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = ("", "server")
# tokenizers names it for fetching vocabularies by name, which layerlift does not do: 11 MB less.
UNUSED = ("huggingface-hub",)
ROUNDS = 4


@dataclass(frozen=True)
class Wheels:
    """Wheels in a folder, and what the packed file says of them."""

    folder: Path
    bundle: Bundle


def gather(folder: Path, pythons: Sequence[str] = (), *, notify: Callable[[str], None] = lambda line: None) -> Wheels:
    """Fetches the wheels into `folder` for `pythons`, by default all that can be had. Raises PackError."""
    own = own_wheel(folder)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    by_python: dict[str, tuple[str, ...]] = {}
    for version in pythons or dict.fromkeys((*PYTHONS, here)):
        notify(f"gathering wheels for Python {version}")
        try:
            by_python[version] = (own.name, *_closure(folder, own, version))
        except PackError as error:
            if pythons or version == here:
                raise
            notify(f"not for Python {version}: {error}")
    names = sorted({name for names in by_python.values() for name in names})
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    return Wheels(folder, Bundle(sysconfig.get_platform(), digests, by_python))


# ---------------------------------------------------------------------------------------------------------------
# layerlift itself


def own_wheel(folder: Path) -> Path:
    """A wheel of the running layerlift in `folder`."""
    from . import __version__

    tag = re.sub(r"[-.]", "_", sysconfig.get_platform())
    path = folder / f"layerlift-{__version__}-py3-none-{tag}.whl"
    info = f"layerlift-{__version__}.dist-info"
    try:
        metadata = importlib.metadata.distribution("layerlift").read_text("METADATA") or ""
    except importlib.metadata.PackageNotFoundError:
        raise PackError(
            "layerlift is not installed, so its wheel cannot be made", hint="pip install layerlift"
        ) from None
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:

        def add(name: str, data: bytes) -> None:
            item = zipfile.ZipInfo(name)
            item.compress_type, item.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            z.writestr(item, data)

        for name, file in sorted(_own_files().items()):
            add(name, file.read_bytes())
        add(f"{info}/METADATA", metadata.encode())
        add(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-{tag}\n".encode())
        add(f"{info}/RECORD", b"")
    return path


def _own_files() -> dict[str, Path]:
    """Every file of the package by its name in a wheel; an editable install has a package in several folders."""
    package = importlib.import_module("layerlift")
    found: dict[str, Path] = {}
    for name in ("runtime", "backends", "kernels", "bench"):
        for folder in importlib.import_module(f"layerlift.{name}").__path__:
            found |= _files(Path(folder), f"layerlift/{name}")
    assert package.__file__ is not None
    found["layerlift/__init__.py"] = Path(package.__file__)
    return found


def _files(folder: Path, name: str) -> dict[str, Path]:
    skipped = ("__pycache__", "results", "build")
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part in skipped or part.startswith(".") for part in path.relative_to(folder).parts)
        and path.suffix not in (".pyc", ".o", ".a")
    }


# ---------------------------------------------------------------------------------------------------------------
# What it stands on


def _closure(folder: Path, own: Path, version: str) -> tuple[str, ...]:
    """The wheels that layerlift needs under a Python, fetched.

    pip judges markers such as `python_version < "3.11"` by the Python that runs it, so what another Python needs
    besides is found out here and asked for in a second round.
    """
    wanted = [str(r) for r in _requirements(own, version, EXTRAS)]
    missing: list[str] = []
    for _ in range(ROUNDS):
        fetched = {w.name.partition("-")[0].lower().replace("_", "-"): w for w in _download(folder, wanted, version)}
        needed, missing = _reachable(fetched, own, version)
        if not missing:
            return tuple(sorted(needed))
        wanted += missing
    raise PackError(f"wheels for Python {version}: {', '.join(missing)} cannot be had")


def _reachable(fetched: Mapping[str, Path], own: Path, version: str) -> tuple[set[str], list[str]]:
    """Names of the wheels that are needed, and the requirements that no wheel meets."""
    needed: set[str] = set()
    missing: list[str] = []
    seen: set[tuple[str, str]] = set()
    queue = list(_requirements(own, version, EXTRAS))
    while queue:
        requirement = queue.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        key = (name, ",".join(sorted(requirement.extras)))
        if name in UNUSED or key in seen:
            continue
        seen.add(key)
        wheel = fetched.get(name)
        if wheel is None:
            missing.append(f"{requirement.name}{requirement.specifier}")
            continue
        needed.add(wheel.name)
        queue += _requirements(wheel, version, ("", *requirement.extras))
    return needed, missing


def _requirements(wheel: Path, version: str, extras: Sequence[str]) -> list[Any]:
    """What a wheel's metadata asks for under a Python with some of its extras."""
    Requirement = _packaging()
    with zipfile.ZipFile(wheel) as z:
        names = [name for name in z.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        text = z.read(names[0]).decode("utf-8", "replace").partition("\n\n")[0]
    found = []
    for line in re.findall(r"(?mi)^Requires-Dist:\s*(.+)$", text):
        requirement = Requirement(line)
        environment = {"python_version": version, "python_full_version": f"{version}.0"}
        if requirement.marker is None or any(requirement.marker.evaluate({**environment, "extra": e}) for e in extras):
            requirement.marker = None
            found.append(requirement)
    return found


def _packaging() -> Any:
    for name in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(name).Requirement
        except ImportError:
            continue
    raise PackError("gathering wheels needs pip, which this Python does not have", hint="python -m ensurepip")


def _download(folder: Path, wanted: Sequence[str], version: str) -> list[Path]:
    """What pip takes for these requirements under a Python; binary wheels for this platform only."""
    place = folder / version
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", *wanted, "--dest", str(place), "--python-version", version]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        errors = [line.removeprefix("ERROR:").strip() for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = (errors or done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise PackError(
            f"pip download for Python {version}: {reason[:300]}", hint="check the network and pip's settings"
        )
    found = []
    for wheel in place.glob("*.whl"):
        target = folder / wheel.name
        if not target.exists():
            shutil.copyfile(wheel, target)
        found.append(target)
    return found
