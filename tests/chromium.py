"""Debian's Chromium through playwright, for the tests of the web page: fails on any script error or CSP violation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def executable() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    return found


@contextmanager
def chromium() -> Iterator:
    """A browser; every context of it starts with empty storage."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install '.[test]')")
    with sync_api.sync_playwright() as p, p.chromium.launch(executable_path=executable(), args=FLAGS) as browser:
        yield browser


@contextmanager
def watched(browser, url: str, **options) -> Iterator:
    """A tab at `url`; leaving it fails if the page did what it must not. Options as for playwright's new_context."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
    context.set_default_timeout(15_000)
    page = context.new_page()
    watch = Watch(page, url.partition("#")[0])
    page.goto(url)
    yield page
    context.close()
    assert watch.faults == [], watch.faults


class Watch:
    """What a page does that it must not: script errors, console errors, CSP violations, requests to other hosts."""

    def __init__(self, page, own: str) -> None:
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(f"script error: {error}"))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", self._console)
        page.on("request", lambda request: self._request(request.url, own))
        page.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " (e) => console.error('CSP violation: ' + e.violatedDirective + ' ' + e.blockedURI))"
        )

    def _console(self, message) -> None:
        # Chromium reports every answer of 4xx and 5xx as an error of its own.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(f"console: {message.text}")

    def _request(self, url: str, own: str) -> None:
        if not url.startswith((own, "blob:" + own, "data:", "about:")):
            self.faults.append(f"request to {url}")
