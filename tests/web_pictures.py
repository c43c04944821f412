"""Takes the README's pictures of the web page: python tests/web_pictures.py URL, with a server running there."""

from __future__ import annotations

import sys
from pathlib import Path

from chromium import chromium, watched
from webpage import answer, ask

DOCS = Path(__file__).resolve().parent.parent / "docs"
QUESTIONS = [
    "What makes the sky blue? Answer in one sentence.",
    "Write a Python function that counts the words of a text.",
]


def settle(page) -> None:
    page.mouse.move(600, 5)
    page.wait_for_timeout(500)


def talk(page) -> None:
    page.get_by_label("Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Max tokens").fill("160")
    page.keyboard.press("Escape")
    for question in QUESTIONS:
        ask(page, question)
        answer(page).wait_for(timeout=60_000)
    settle(page)


def main(url: str) -> None:
    DOCS.mkdir(exist_ok=True)
    with chromium() as browser:
        with watched(browser, url, color_scheme="light", viewport={"width": 1100, "height": 760}) as page:
            talk(page)
            page.screenshot(path=DOCS / "web-light.png")
            page.get_by_role("link", name="Completion").click()
            page.get_by_label("Text to go on from").fill("Four score and seven years ago")
            page.keyboard.press("Control+Enter")
            page.get_by_role("button", name="Write on").wait_for(timeout=60_000)
            page.get_by_role("option").nth(4).click()
            settle(page)
            page.screenshot(path=DOCS / "web-completion.png")
        with watched(browser, url, color_scheme="dark", viewport={"width": 1100, "height": 760}) as page:
            talk(page)
            page.screenshot(path=DOCS / "web-dark.png")
        with watched(
            browser, url, color_scheme="light", viewport={"width": 390, "height": 760}, has_touch=True
        ) as page:
            talk(page)
            page.screenshot(path=DOCS / "web-phone.png")


if __name__ == "__main__":
    main(sys.argv[1])
