"""The curl lines that README and docs/server.md show are run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from layerlift.runtime.server.guard import Policy
from serving import serving

ROOT = Path(__file__).resolve().parent.parent
LINES = re.compile(r"^    (curl .*(?:\n {5,}\S.*)*)", re.MULTILINE)
COMMANDS = [
    pytest.param(command, id=f"{name}-{number}")
    for name in ("README.md", "docs/server.md")
    for number, command in enumerate(LINES.findall((ROOT / name).read_text()))
]


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny("F32"), context=1024, max_tokens=16, policy=Policy.make("127.0.0.1", ())) as running:
        yield running


def test_there_are_lines_to_run():
    assert len(COMMANDS) >= 6


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_line_of_the_documentation_works(server, command):
    assert "localhost:8080" in command
    command = command.replace("localhost:8080", f"127.0.0.1:{server.port}").replace(
        "curl ", "curl -sS -f --noproxy '*' "
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout
