"""Facts about `layerlift --server` as a process: it answers at once, says where it listens, and ends in good order."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time

import httpx
import pytest
from serverprocess import started

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process at once on Windows")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_the_answer_under_way_end_and_the_exit_is_0(tiny, number):
    with started("-m", str(tiny()), "--port", "0", "-c", "512") as process:
        url = process.url()
        lines = []
        asked = {"prompt": [5, 9], "max_tokens": 40, "ignore_eos": True, "stream": True, "logprobs": 0}
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60, trust_env=False) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: ") and not lines:
                    process.child.send_signal(number)
                lines += [line] if line.startswith("data: ") else []
        assert lines[-1] == "data: [DONE]"
        assert process.wait() == 0
        assert "Traceback" not in process.said
        assert process.child.stdout is not None
        assert process.child.stdout.read() == ""


@pytest.mark.slow
def test_the_next_free_port_is_taken_and_named(tiny):
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(socket.create_server(("127.0.0.1", 8080)))
        except OSError:
            pass  # somebody else has it, which is as good
        process = stack.enter_context(started("-m", str(tiny())))
        url = process.url()
        assert "8080 is taken" in process.said
        assert not url.endswith(":8080")
        assert httpx.get(f"{url}/health", trust_env=False).json() == {"status": "ok"}
        assert process.end() == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "--api-key"),
        pytest.param(["--api-key-file", "/nothing/here"], 2, "cannot read", marks=pytest.mark.slow),
        pytest.param(["--host", "256.1.1.1", "--insecure-bind"], 2, "cannot listen", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_work_is_one_line_and_an_exit_code(tiny, flags, code, words):
    with started("-m", str(tiny()), "--port", "0", *flags) as process:
        assert process.wait() == code
        assert words in process.said
        assert "Traceback" not in process.said


@pytest.mark.slow
def test_a_port_that_was_asked_for_is_not_replaced(tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started("-m", str(tiny()), "--port", str(port)) as process:
            assert process.wait() == 2
            assert str(port) in process.said


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with started("-m", str(broken), "--port", "0") as process:
        assert process.wait() in (1, 2)
        assert "error:" in process.said
        assert "Traceback" not in process.said


@pytest.mark.slow
def test_an_answer_without_end_is_cut_off_after_five_seconds(tiny):
    with started("-m", str(tiny()), "--port", "0", "-c", "65536") as process:
        url = process.url()
        asked = {"prompt": [5, 9], "max_tokens": 60000, "ignore_eos": True, "stream": True, "logprobs": 0}
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60, trust_env=False) as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith("data: "):
                pass
            process.child.send_signal(signal.SIGTERM)
            ended = time.monotonic()
            with contextlib.suppress(httpx.RemoteProtocolError):
                for _ in lines:
                    pass
        assert process.wait() == 0
        assert 4 < time.monotonic() - ended < 20
        assert "1 answers may end within 5 s" in process.said


def test_neither_words_nor_keys_are_logged(tiny):
    flags = ("--log-format", "json", "--verbose", "--api-key", "open-sesame")
    with started("-m", str(tiny()), "--port", "0", "-c", "256", *flags) as process:
        url = process.url()
        for key in ("open-sesame", "wrong-sesame"):
            headers = {"Authorization": f"Bearer {key}"}
            for body in (
                {"prompt": "whisper", "max_tokens": 2},
                {"prompt": ["whisper", {}]},
                {"stop": "whisper" * 999},
            ):
                httpx.post(f"{url}/v1/completions?whisper", json=body, headers=headers, trust_env=False)
        assert process.end() == 0
        assert process.said.count('"status"') == 6
        assert "sesame" not in process.said
        assert "whisper" not in process.said


def test_a_server_says_that_it_loads_before_it_answers(tiny):
    port = free_port()
    with started("-m", str(tiny()), "--port", str(port)) as process:
        seen: list[int] = []
        deadline = time.monotonic() + 60
        while 200 not in seen and time.monotonic() < deadline:
            with contextlib.suppress(httpx.ConnectError):
                seen.append(httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code)
        assert set(seen) == {200, 503}
        assert process.end() == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
