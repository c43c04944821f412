"""The web page on the real server with the default model."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from chromium import watched
from webpage import answer, ask

GREEDY = {"temperature": 0, "max_tokens": 48}  # as `page` sets them

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(default_model, tmp_path_factory):
    """The address of `layerlift --server` with the default model and a key."""
    pytest.importorskip("starlette", reason="the server's packages are not installed (pip install '.[server]')")
    port = free_port()
    log = tmp_path_factory.mktemp("served") / "log"
    command = [sys.executable, "-m", "layerlift", "--server", "--nobrowser", "-m", str(default_model)]
    command += ["--port", str(port), "--api-key", "a key", "-c", "2048"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(url + "health", timeout=5) as health:
                    if health.status == 200:
                        break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        else:
            raise AssertionError(f"the server did not become ready: {log.read_text()}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture
def page(served, browser):
    """The page with the key given, temperature 0 and at most 48 tokens."""
    with watched(browser, served) as page:
        page.set_default_timeout(60_000)
        page.get_by_label("API key").fill("a key")
        page.keyboard.press("Enter")
        page.get_by_label("API key").wait_for(state="detached")
        page.get_by_label("Settings").click()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Max tokens").fill("48")
        page.keyboard.press("Escape")
        yield page


def posted(served: str, path: str, **body) -> dict:
    """What the server answers to a program."""
    headers = {"Authorization": "Bearer a key", "Content-Type": "application/json"}
    request = urllib.request.Request(served + path, json.dumps({**GREEDY, **body}).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def said(served: str, *talk: str) -> str:
    """The answer to the last question of a talk."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(talk)]
    return posted(served, "v1/chat/completions", messages=messages)["choices"][0]["message"]["content"]


def words(text: str) -> list[str]:
    """What stays the same when a text is shown as Markdown."""
    return re.findall(r"[A-Za-z]+", text)


def finished(page, number: int):
    """Answer `number`, counted from 0, once it is whole."""
    article = page.get_by_role("article", name="Assistant").nth(number)
    article.get_by_label("Answer again").wait_for()
    return article


def shown(article) -> str:
    return article.locator(".prose").inner_text()


def test_a_question_is_answered_with_figures_and_kept(page, served):
    talk = ["What is the capital of France? Answer in one sentence."]
    ask(page, talk[0])
    first = finished(page, 0)
    talk.append(said(served, *talk))
    assert "Paris" in talk[1]
    assert words(shown(first)) == words(talk[1])
    assert "tokens/s · prompt of" in first.locator(".figures").inner_text()
    ask(page, "And of Italy?")
    second = shown(finished(page, 1))
    assert words(second) == words(said(served, *talk, "And of Italy?"))
    page.reload()
    assert shown(finished(page, 0)) == talk[1]
    assert shown(finished(page, 1)) == second
    page.get_by_label("Context used").wait_for()  # the server's context is asked for after the page is there


def test_another_answer_stands_beside_the_first(page, served):
    ask(page, "Name three colours.")
    before = shown(finished(page, 0))
    assert words(before) == words(said(served, "Name three colours."))
    finished(page, 0).get_by_label("Answer again").click()
    page.get_by_text("2 / 2").wait_for()  # which is there once the second is whole
    assert shown(finished(page, 0)) == before
    finished(page, 0).get_by_label("Previous alternative").click()
    page.get_by_text("1 / 2").wait_for()
    assert shown(finished(page, 0)) == before


def test_a_stop_frees_the_server(page, served):
    page.get_by_label("Settings").click()
    page.get_by_label("Max tokens").fill("1000")
    page.keyboard.press("Escape")
    ask(page, "Write a long story about the sea.")
    page.locator(".prose", has_text=re.compile(r"\w")).wait_for()
    page.keyboard.press("Escape")
    assert "Stopped" in answer(page).inner_text()
    request = urllib.request.Request(served + "slots", headers={"Authorization": "Bearer a key"})
    for _ in range(100):
        with urllib.request.urlopen(request, timeout=5) as slots:
            if not any(slot["is_processing"] for slot in json.load(slots)):
                return
        time.sleep(0.05)
    raise AssertionError("the slot is still busy 5 s after the stop")


def test_a_prompt_that_is_too_long_is_refused_in_words(page):
    ask(page, "word " * 4000)
    answer(page).get_by_role("alert").wait_for()
    assert "context" in answer(page).get_by_role("alert").inner_text().lower()


def test_a_completion_has_probabilities(page, served):
    page.get_by_role("link", name="Completion").click()
    page.get_by_label("Text to go on from").fill("The capital of France is")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Write on").wait_for()
    tokens = page.get_by_role("option")
    tokens.nth(1).wait_for()
    wanted = posted(served, "v1/completions", prompt="The capital of France is")["choices"][0]["text"]
    assert words("".join(tokens.all_text_contents())) == words(wanted)
    tokens.first.click()
    shares = page.get_by_label("Probabilities").locator("tbody tr")
    assert shares.count() == 5
    chances = [float(row.split()[-2].rstrip("%")) for row in shares.all_inner_texts()]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) <= 100.5
