"""`layerlift --server` gives up what it does not need, and still answers."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest
from layerlift.runtime import landlock
from layerlift.runtime.pack import pack
from serverprocess import started

pytestmark = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")

LOOP = "{% for x in range(99999) %}"
BOMB = 3 * LOOP + 3 * "{% endfor %}"
TEMPLATE = "{% if messages[0]['content'] == 'bomb' %}" + BOMB + "{% endif %}{{ messages[0]['content'] }}:"


def filters(pid: int) -> set[str]:
    """The seccomp modes of a process's threads: 0 is none, 2 a filter."""
    lines = [line for path in Path(f"/proc/{pid}/task").glob("*/status") for line in path.read_text().splitlines()]
    return {line.split()[1] for line in lines if line.startswith("Seccomp:")}


def chat(url: str, text: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "ignore_eos": True}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)


def test_a_confined_server_answers_also_after_a_template_had_to_be_stopped(tiny, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    with started("-m", str(tiny()), "--port", "0", "-c", "512", "--chat-template", str(template)) as process:
        url = process.url()
        assert filters(process.child.pid) == {"2"}
        assert chat(url, "hello").json()["usage"]["completion_tokens"] == 4
        for _ in range(2):
            stopped = chat(url, "bomb")
            assert stopped.status_code == 400
            assert "chat template" in stopped.json()["error"]["message"]
            assert chat(url, "hello").status_code == 200
        constrained = {"prompt": "x", "max_tokens": 4, "grammar": 'root ::= "yes"'}  # its library is loaded only now
        answer = httpx.post(f"{url}/v1/completions", json=constrained, timeout=60, trust_env=False)
        assert answer.json()["choices"][0]["text"] in ("y", "ye", "yes")
        assert filters(process.child.pid) == {"2"}
        assert process.end() == 0
        assert "confined" not in process.said
        assert "Traceback" not in process.said


@pytest.mark.slow
def test_a_server_may_be_left_as_it_is(tiny):
    with started("-m", str(tiny()), "--port", "0", "-c", "512", "--unsecure") as process:
        url = process.url()
        assert filters(process.child.pid) == {"0"}
        assert chat(url, "hello").status_code == 200
        assert process.end() == 0


@pytest.mark.slow
def test_a_packed_server_is_confined_and_answers_from_a_read_only_folder(tiny, tmp_path):
    packed = tmp_path / "folder" / "tiny.llm"
    packed.parent.mkdir()
    pack(tiny(), packed)
    packed.parent.chmod(0o555)
    try:
        command = [sys.executable, str(packed)]
        with started("--port", "0", "-c", "512", command=command, cwd=packed.parent) as process:
            url = process.url()
            assert filters(process.child.pid) == {"2"}
            assert chat(url, "hello").json()["usage"]["completion_tokens"] == 4
            assert "<title>" in httpx.get(url, trust_env=False).text
            constrained = {"prompt": "x", "max_tokens": 4, "grammar": 'root ::= "yes"'}
            answer = httpx.post(f"{url}/v1/completions", json=constrained, timeout=60, trust_env=False)
            assert answer.json()["choices"][0]["text"] in ("y", "ye", "yes")
            assert process.end() == 0
            assert "confined" not in process.said
    finally:
        packed.parent.chmod(0o755)
