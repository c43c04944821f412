"""OpenAI's client 2.14 with the same tests, and instructor, which does not go with the newest one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PACKAGES = ("openai==2.14.0", "instructor==1.17.0")
TESTS = Path(__file__).parent


def test_older_clients(default_model, tmp_path):
    """In a process of its own, where they come before those that are installed."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), *PACKAGES]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=600)
    if installed.returncode:
        pytest.skip(f"pip could not install {' '.join(PACKAGES)}: {installed.stderr.strip()[-300:]}")
    files = [str(TESTS / "test_clients_openai.py"), str(TESTS / "test_clients.py")]
    chosen = "(openai or instructor) and not langchain"
    command = [sys.executable, "-m", "pytest", "-m", "slow", "-k", chosen, "-rs", *files]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-3000:]
