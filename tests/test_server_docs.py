"""The curl lines that README and docs/server.md show are run as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from layerlift.runtime.arguments import parse
from layerlift.runtime.server.guard import Policy
from layerlift.runtime.server.routes import ROUTES
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


TEXT = (ROOT / "docs/server.md").read_text()
UNIT = re.search(r"```ini\n(.*?)```", TEXT, re.DOTALL)[1]  # type: ignore[index]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(re.search(r"ExecStart=(.*)", UNIT)[1].split(), id="unit"),  # type: ignore[index]
        pytest.param(json.loads(re.search(r"ENTRYPOINT (.*)", TEXT)[1]), id="container"),  # type: ignore[index]
    ],
)
def test_flags_of_the_unit_and_the_container_are_known(words):
    assert words[0].endswith("layerlift")
    options = parse(words[1:])
    assert options.mode == "server"
    assert not options.browser


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_knows_all_settings_of_the_unit(tmp_path):
    unit = tmp_path / "layerlift.service"
    unit.write_text(UNIT.replace("/opt/layerlift/bin/layerlift", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if "layerlift.service" in line] == []


def test_the_documentation_names_every_route():
    for entry in ROUTES:
        path = re.sub(r"/?{.*}", "", entry.path).removeprefix("/v1")  # some are there with and without
        assert path in TEXT
