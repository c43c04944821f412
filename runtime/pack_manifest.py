"""What a packed file says of itself, in `layerlift.json` of its zip. Knows the text, not the file around it.

A packed file is a `#!` line, GGUF files raw at multiples of 65536, and a zip at the end whose offsets count from its
own first byte: that is how Python starts it at any size, and how the weights are mapped where they lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from .errors import GGUFError, LayerliftError

NAME = "layerlift.json"
ARGS = ".args"
WHEELS = "wheels/"
FORMAT = 1
ALIGNMENT = 65536  # the coarsest granularity at which any system maps files
CRC_BLOCK = 16 << 20  # bytes of weights under one CRC-32: how closely `verify` tells where the damage is
MAX_NBYTES = 16 << 20
MAX_OFFSET = 1 << 62

_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX8 = re.compile(r"[0-9a-f]{8}")
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,200}\.whl")
_PYTHON = re.compile(r"3\.\d{1,3}")


class PackError(LayerliftError):
    """A packed file that is damaged, or that could not be written."""


@dataclass(frozen=True)
class Weights:
    """One GGUF in a packed file."""

    name: str
    offset: int
    nbytes: int
    sha256: str
    crc32: tuple[str, ...]  # of each CRC_BLOCK bytes


@dataclass(frozen=True)
class Bundle:
    """The wheels a packed file carries: their SHA-256, and which of them each Python takes."""

    platform: str  # as sysconfig.get_platform()
    wheels: Mapping[str, str]
    pythons: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Manifest:
    layerlift: str  # the version that packed it
    weights: tuple[Weights, ...]
    bundle: Bundle | None = None

    def dump(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode()


def parse(data: bytes, label: str) -> Manifest:
    """The manifest in `data`. Raises GGUFError in the name of `label` for anything unsound."""

    def fail(reason: str) -> NoReturn:
        raise GGUFError(f"pack: {NAME} of {label} {reason}", hint="pack the model again")

    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        fail("is no JSON")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise GGUFError(
                f"pack: {label} has format {version}; this layerlift reads {FORMAT}",
                hint="pip install --upgrade layerlift",
            )
        fail("has no format that is known")
    try:
        weights = tuple(_weights(each) for each in found["weights"])
        bundle = _bundle(found["bundle"]) if found.get("bundle") is not None else None
        by = found["layerlift"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fail(f"is unsound: {error}")
    if not weights or not isinstance(by, str):
        fail("names no weights")
    return Manifest(by[:40], weights, bundle)


def _weights(found: dict[str, Any]) -> Weights:
    name, offset, nbytes = found["name"], found["offset"], found["nbytes"]
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError("weights without a name")
    if (
        type(offset) is not int
        or type(nbytes) is not int
        or not 0 <= offset <= MAX_OFFSET
        or not 0 < nbytes <= MAX_OFFSET
    ):
        raise ValueError(f"{name!r} at {offset!r}, {nbytes!r} bytes")
    crcs = tuple(found["crc32"])
    if not _HEX64.fullmatch(found["sha256"]) or not all(_HEX8.fullmatch(crc) for crc in crcs):
        raise ValueError(f"{name!r} without its checksums")
    if len(crcs) != -(-nbytes // CRC_BLOCK):
        raise ValueError(f"{name!r} with {len(crcs)} checksums for {nbytes} bytes")
    return Weights(name, offset, nbytes, found["sha256"], crcs)


def _bundle(found: dict[str, Any]) -> Bundle:
    wheels, pythons = dict(found["wheels"]), {k: tuple(v) for k, v in found["pythons"].items()}
    for name, digest in wheels.items():
        if not _WHEEL.fullmatch(name) or not _HEX64.fullmatch(digest):
            raise ValueError(f"wheel {name!r}")
    for version, names in pythons.items():
        if not _PYTHON.fullmatch(version) or not set(names) <= wheels.keys():
            raise ValueError(f"wheels for Python {version!r}")
    return Bundle(str(found["platform"]), wheels, pythons)
