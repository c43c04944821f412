"""What a user does on the web page, for the tests."""

from __future__ import annotations


def ask(tab, text: str) -> None:
    """Sends a message; does not wait for the answer."""
    tab.get_by_label("Message", exact=True).fill(text)
    tab.get_by_label("Send", exact=True).click()


def answer(tab, number: int = -1):
    """The last answer, or another by its number, once nothing is being written."""
    tab.get_by_label("Stop").wait_for(state="detached")
    answers = tab.get_by_role("article", name="Assistant")
    return answers.last if number < 0 else answers.nth(number)
