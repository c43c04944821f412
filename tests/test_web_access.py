"""The web page for everybody: screen readers, keyboards, phones, and long conversations."""

from __future__ import annotations

import json

import pytest
from chromium import watched
from fake_web import Script
from webpage import answer, ask

pytestmark = pytest.mark.slow

MARKDOWN = (
    "# A title\n\nText with `code` and a [link](https://example.org).\n\n```python\nprint('x' * 200)  # "
    + "long " * 60
    + "\n```\n\n"
    "| column | " + "wide " * 30 + "|\n|---|---|\n| 1 | 2 |\n\n- one\n- two\n\n> a quote\n\n" + "unbroken" * 60
)


def talk(page, web) -> None:
    """A conversation with everything in it that the page can show."""
    web.scripts += [Script([MARKDOWN]), Script(["<think>why</think>", "short"]), Script(error=(400, "too long"))]
    page.get_by_label("Files", exact=True).set_input_files(
        [{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"some text"}]
    )
    page.get_by_label("Files to send").wait_for()
    ask(page, "first")
    answer(page)
    ask(page, "second")
    answer(page).get_by_label("Answer again").click()
    page.get_by_text("too long").wait_for()


def findings(page, axe: str) -> list[str]:
    page.wait_for_timeout(300)  # fades and slides have ended
    page.evaluate(axe)
    violations = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)")
    return [
        f"{one['impact']}: {one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for one in violations
        for node in one["nodes"]
    ]


@pytest.fixture(scope="module")
def axe(web_modules) -> str:
    return (web_modules / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 375])
def test_axe_finds_nothing_on_any_page(web, browser, axe, scheme, width):
    with watched(browser, web.url, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        page.get_by_label("Message", exact=True).wait_for()
        assert findings(page, axe) == []
        talk(page, web)
        page.mouse.move(width / 2, 300)
        assert findings(page, axe) == []
        if width < 700:
            page.get_by_label("Open the list").click()
            assert findings(page, axe) == []
            page.keyboard.press("Escape")
        page.get_by_label("Settings").click()
        assert findings(page, axe) == []
        page.keyboard.press("Escape")
        page.goto(web.url + "#/completion")
        page.get_by_label("Text to go on from").fill("Four score and")
        web.scripts.append(Script([" seven", " years", "\n", " ago", ",", " our", " fathers", " brought", " forth"]))
        page.keyboard.press("Control+Enter")
        page.locator(".token").nth(8).click()
        assert findings(page, axe) == []


@pytest.mark.parametrize("width", [320, 375, 768])
def test_nothing_scrolls_sideways_on_a_phone(web, browser, width):
    with watched(browser, web.url, viewport={"width": width, "height": 640}, has_touch=True) as page:
        overflow = (
            "() => [document.scrollingElement, ...document.querySelectorAll('.scroll, .completion, .dialog, .sidebar')]"
            ".filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.className)"
        )
        talk(page, web)
        assert page.evaluate(overflow) == []
        for button in ("Send", "Settings", "Add text files"):
            assert page.get_by_label(button, exact=True).is_visible()
        page.get_by_label("Settings").click()
        assert page.evaluate(overflow) == []
        page.keyboard.press("Escape")
        page.goto(web.url + "#/completion")
        page.get_by_label("Text to go on from").fill("x" * 300)
        web.scripts.append(Script([" seven", "y" * 300]))
        page.keyboard.press("Control+Enter")
        page.locator(".token").nth(1).click()
        assert page.evaluate(overflow) == []


def test_on_a_phone_the_list_opens_and_closes(web, browser):
    with watched(browser, web.url, viewport={"width": 375, "height": 640}, has_touch=True) as page:
        ask(page, "first")
        answer(page)
        new = page.get_by_role("button", name="New chat")
        assert not new.is_visible()
        page.get_by_label("Open the list").tap()
        page.get_by_role("link", name="first").wait_for()
        page.keyboard.press("Escape")
        new.wait_for(state="hidden")
        page.get_by_label("Open the list").tap()
        new.tap()
        page.get_by_text("What is on your mind?").wait_for()
        new.wait_for(state="hidden")


def test_a_screen_reader_hears_that_an_answer_begins_and_the_answer_once(tab, web):
    heard = "() => [...document.querySelectorAll('.chat [role=status]')].map((region) => region.textContent)"
    web.scripts.append(Script(["The ", "capital ", "is ", "Paris."], pause=0.3))
    tab.get_by_label("Message", exact=True).fill("capital?")
    tab.keyboard.press("Enter")
    tab.locator(".prose", has_text="capital").wait_for()
    assert tab.evaluate(heard) == ["The model is answering"]
    assert tab.get_by_role("log", name="Messages").get_attribute("aria-live") == "off"
    tab.get_by_label("Stop").wait_for(state="detached")
    tab.wait_for_function("document.querySelector('.chat [role=status]').textContent.startsWith('Answer')")
    assert tab.evaluate(heard) == ["Answer: The capital is Paris."]


def test_dialogs_take_and_give_back_the_focus(tab):
    tab.get_by_label("Settings").focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.closest('dialog') !== null")
    tab.keyboard.press("Escape")
    tab.locator("dialog").wait_for(state="detached")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Settings"


def test_everything_is_reached_with_the_tab_key(tab, web):
    ask(tab, "hi")
    answer(tab)
    reached = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate(
                "(document.activeElement.getAttribute('aria-label') || document.activeElement.textContent).trim()"
            )
        )
    wanted = {"New chat", "Completion", "hi", "Rename hi", "Delete hi", "Export hi", "Settings", "Import", "Export all"}
    wanted |= {"Copy the message", "Edit the message", "Answer again", "Add text files", "Messages"}
    assert wanted - reached == set()


def long_conversation(messages: int) -> str:
    tree = [
        {"id": str(i), "parent": str(i - 1) if i else None, "role": ("user", "assistant")[i % 2], "created": i + 1}
        | {"content": f"message {i}\n\n```python\nx = {i}\n```\n\n- a\n- b" if i % 2 else f"question {i}"}
        for i in range(messages)
    ]
    conversation = {"title": "long", "messages": tree, "leaf": str(messages - 1)}
    return json.dumps({"format": "layerlift-conversations", "version": 1, "conversations": [conversation]})


def test_200_messages_are_not_drawn_again_while_an_answer_grows(tab, web, tmp_path):
    file = tmp_path / "long.json"
    file.write_text(long_conversation(200))
    tab.get_by_label("Conversations to import").set_input_files(file)
    tab.get_by_text("message 199").wait_for()
    assert tab.locator("article").count() == 200
    assert tab.evaluate(
        "(({scrollTop, scrollHeight, clientHeight}) => scrollHeight - scrollTop - clientHeight < 2)"
        "(document.querySelector('.scroll'))"
    ), "the end is in sight"
    tab.evaluate(
        """() => {
            window.redrawn = 0;
            const observer = new MutationObserver((changes) => (redrawn += changes.length));
            for (const text of document.querySelectorAll(".prose, .bubble"))
                observer.observe(text, {childList: true, characterData: true, subtree: true});
        }"""
    )
    web.scripts.append(Script([f"word{i} " for i in range(400)], pause=0.004))
    ask(tab, "more")
    assert "word399" in answer(tab).inner_text()
    assert tab.evaluate("redrawn") == 0
    assert len(web.requests[-1][1]["messages"]) == 201


def test_the_finished_part_of_a_long_answer_is_not_drawn_again(tab, web):
    web.scripts.append(Script([f"Paragraph {i} with text.\n\n" for i in range(300)] + [""] * 100, pause=0.01))
    tab.get_by_label("Message", exact=True).fill("go")
    tab.keyboard.press("Enter")
    tab.locator(".prose", has_text="Paragraph 20 ").wait_for()
    tab.evaluate(
        """() => {
            window.redrawn = 0;
            const finished = [...document.querySelectorAll(".prose > div")].slice(0, 15);
            const observer = new MutationObserver((changes) => (redrawn += changes.length));
            const everything = {childList: true, characterData: true, subtree: true};
            for (const block of finished) observer.observe(block, everything);
        }"""
    )
    tab.locator(".prose", has_text="Paragraph 299 ").wait_for()
    assert tab.evaluate("redrawn") == 0


def test_scrolling_up_ends_the_following_and_a_button_resumes_it(tab, web):
    web.scripts.append(Script([f"Line {i}\n\n" for i in range(300)], pause=0.02))
    tab.get_by_label("Message", exact=True).fill("go")
    tab.keyboard.press("Enter")
    tab.locator(".prose", has_text="Line 60").wait_for()
    tab.mouse.move(700, 300)
    tab.mouse.wheel(0, -900)
    tab.get_by_role("button", name="Latest").wait_for()
    before = tab.evaluate("document.querySelector('.scroll').scrollTop")
    tab.wait_for_timeout(500)
    assert tab.evaluate("document.querySelector('.scroll').scrollTop") == before
    tab.get_by_role("button", name="Latest").click()
    tab.get_by_role("button", name="Latest").wait_for(state="detached")
    tab.wait_for_function(
        "(({scrollTop: t, scrollHeight: h, clientHeight: c}) => h - t - c < 100)(document.querySelector('.scroll'))"
    )
