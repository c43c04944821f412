"""The chat page in Chromium, against scripted answers."""

from __future__ import annotations

import re
import time

import pytest
from fake_web import Script
from webpage import answer, ask

pytestmark = pytest.mark.slow


def eventually(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.02)


def test_first_use_asks_and_shows_the_answer(tab, web):
    web.scripts.append(Script(["Rain **bends**", " light."]))
    assert tab.get_by_label("Message", exact=True).evaluate("field => field === document.activeElement")
    tab.get_by_role("button", name="Explain how a rainbow forms").click()
    tab.keyboard.press("Enter")
    assert answer(tab).locator(".prose").inner_text() == "Rain bends light."
    assert answer(tab).locator("strong").inner_text() == "bends"
    assert "2 tokens · 41.3 tokens/s · prompt of 30" in answer(tab).locator(".figures").inner_text()
    route, body = web.requests[0]
    assert route == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Explain how a rainbow forms"}]
    assert body["model"] == "scripted-model"
    assert body["stream"] is True
    assert "temperature" not in body, "an empty setting leaves the choice to the server"
    assert tab.title() == "Explain how a rainbow forms – layerlift"


# Notes that a text was on the page, however short the time: on a slow machine it is gone before one can look.
WATCH = """text => {
  window.seen = false;
  new MutationObserver(() => { window.seen ||= document.body.innerText.includes(text); })
    .observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def test_text_appears_while_it_is_written_after_prompt_progress(tab, web):
    web.scripts.append(Script([f"word{i} " for i in range(10)], pause=0.4, progress=[(100, 400), (300, 400)]))
    tab.evaluate(WATCH, "Reading the prompt, 300 of 400 tokens")
    ask(tab, "go")
    eventually(lambda: tab.evaluate("seen"))
    tab.locator(".prose", has_text="word3").wait_for()
    assert tab.get_by_label("Stop").is_visible()
    assert "word9" not in tab.locator("article").last.inner_text()
    assert "word9" in answer(tab).inner_text()


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_keeps_what_was_written_and_closes_the_stream(tab, web, how):
    web.scripts.append(Script([f"w{i} " for i in range(200)], pause=0.05))
    ask(tab, "go")
    tab.locator(".prose", has_text="w3").wait_for()
    tab.get_by_label("Stop").click() if how == "button" else tab.keyboard.press("Escape")
    assert "Stopped" in answer(tab).inner_text()
    assert "w3" in answer(tab).inner_text()
    assert "w199" not in answer(tab).inner_text()
    eventually(lambda: web.dropped == 1)
    assert tab.get_by_label("Message", exact=True).evaluate("field => field === document.activeElement")
    ask(tab, "and now")
    assert "Hello from the script." in answer(tab).inner_text()
    assert [m["role"] for m in web.requests[-1][1]["messages"]] == ["user", "assistant", "user"]


def test_settings_and_system_prompt_reach_the_server_and_last(tab, web):
    tab.get_by_label("Settings").click()
    tab.get_by_label("System prompt of this conversation").fill("Answer in verse.")
    tab.get_by_role("button", name="Use it for new conversations too").click()
    fields = {"Temperature": 0.3, "Top-k": 5, "Top-p": 0.5, "Min-p": 0.1, "Max tokens": 7, "Seed": 42}
    fields |= {"Repeat penalty": 1.1, "Presence penalty": 0.2, "Frequency penalty": -0.1}
    for label, value in fields.items():
        tab.get_by_label(label).fill(str(value))
    assert tab.get_by_label("Top-p").get_attribute("placeholder") == "0.95"
    tab.keyboard.press("Escape")
    tab.reload()
    ask(tab, "hi")
    answer(tab)
    body = web.requests[-1][1]
    assert body["messages"][0] == {"role": "system", "content": "Answer in verse."}
    assert {
        name.lower().replace(" ", "_").replace("-", "_"): value for name, value in fields.items()
    }.items() <= body.items()


def test_a_setting_out_of_range_is_named_and_not_sent(tab, web):
    tab.get_by_label("Settings").click()
    tab.get_by_label("Top-p").fill("3")
    assert tab.get_by_text("A number from 0 to 1").is_visible()
    tab.keyboard.press("Escape")
    ask(tab, "hi")
    answer(tab)
    assert "top_p" not in web.requests[-1][1]


def test_dropped_text_files_go_with_the_message_and_others_are_refused(tab, web):
    tab.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File(["def f(): pass\\n```"], "f.py"));
            data.items.add(new File([new Uint8Array([255, 254, 0, 1])], "photo.jpg"));
            document.querySelector("main").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }"""
    )
    tab.get_by_text("photo.jpg: not a text file").wait_for()
    tab.get_by_label("Files to send").get_by_text("f.py").wait_for()
    ask(tab, "What is this?")
    answer(tab)
    (message,) = web.requests[-1][1]["messages"]
    assert message["content"] == "f.py\n````\ndef f(): pass\n```\n````\n\nWhat is this?"
    assert tab.get_by_role("article", name="You").get_by_text("f.py").is_visible()


def test_shift_enter_starts_a_line(tab, web):
    field = tab.get_by_label("Message", exact=True)
    field.press_sequentially("one")
    tab.keyboard.press("Shift+Enter")
    field.press_sequentially("two")
    tab.keyboard.press("Enter")
    answer(tab)
    assert web.requests[-1][1]["messages"][0]["content"] == "one\ntwo"


def test_code_is_coloured_and_copied(tab, web):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    web.scripts.append(Script(["```python\ndef f():\n", "    return '<b>'\n```\n"]))
    ask(tab, "code")
    assert answer(tab).locator(".hljs-keyword").all_inner_texts() == ["def", "return"]
    answer(tab).get_by_role("button", name="Copy", exact=True).click()
    answer(tab).get_by_role("button", name="Copied", exact=True).wait_for()
    assert tab.evaluate("navigator.clipboard.readText()") == "def f():\n    return '<b>'"


def test_markdown_written_piecewise_equals_markdown_read_whole(tab, web):
    text = """# Title

Some *text* with `code`
and a line.

1. one

   more
2. two
   - deep

| a | b |
|---|--:|
| 1 | 2 |

> quote
> on

~~~
plain <b>

```
~~~

last [link](https://example.org/x) and $x_1$

- [x] done
"""
    silence = [""] * 100
    web.scripts.append(Script([text[i : i + 3] for i in range(0, len(text), 3)] + silence, pause=0.02))
    ask(tab, "go")
    tab.get_by_role("listitem").filter(has_text="done").wait_for()
    assert tab.get_by_label("Stop").is_visible()
    growing = tab.locator(".prose").last.inner_html()
    tab.keyboard.press("Escape")
    assert answer(tab).locator(".prose").inner_html() == growing
    assert answer(tab).locator("a").get_attribute("rel") == "noopener noreferrer nofollow"


def test_thoughts_are_folded_and_not_sent_again(tab, web):
    web.scripts.append(Script(["<think>hm", "m</think>\n\n", "Four."]))
    ask(tab, "two and two")
    assert answer(tab).locator(".prose").last.inner_text() == "Four."
    answer(tab).get_by_text("Thoughts").click()
    assert answer(tab).get_by_text("hmm").is_visible()
    ask(tab, "sure?")
    answer(tab)
    assert web.requests[-1][1]["messages"][1]["content"] == "Four."


def test_tool_calls_are_shown_as_text(tab, web):
    def call(**function):
        return {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": function}]}}]}

    web.scripts.append(Script([], chunks=[call(name="weather", arguments='{"city":'), call(arguments=' "Oslo"}')]))
    ask(tab, "weather?")
    assert "weather" in answer(tab).inner_text()
    assert answer(tab).locator("pre").inner_text().strip() == '{"city": "Oslo"}'


def test_a_refusal_is_shown_in_the_servers_words_and_can_be_tried_again(tab, web):
    web.scripts.append(Script(error=(400, "the request exceeds the available context size")))
    ask(tab, "long")
    answer(tab).get_by_text("the request exceeds the available context size").wait_for()
    answer(tab).get_by_role("button", name="Try again").click()
    assert "Hello from the script." in answer(tab).inner_text()


def test_an_error_inside_the_stream_is_shown(tab, web):
    web.scripts.append(
        Script(["half"], chunks=[{"error": {"code": 500, "message": "out of memory", "type": "server_error"}}])
    )
    ask(tab, "hi")
    answer(tab).get_by_text("out of memory").wait_for()
    assert "half" in answer(tab).inner_text()


def test_a_server_with_a_key_is_asked_with_it(tab, web):
    web.key = "secret"
    tab.reload()
    tab.get_by_label("API key").fill("wrong")
    tab.keyboard.press("Enter")
    tab.get_by_text("The server does not accept this key").wait_for()
    tab.get_by_label("API key").fill("secret")
    tab.keyboard.press("Enter")
    tab.get_by_label("API key").wait_for(state="detached")
    ask(tab, "hi")
    assert "Hello from" in answer(tab).inner_text()
    assert tab.evaluate("JSON.stringify(localStorage)").find("secret") < 0
    assert tab.evaluate("Object.values(sessionStorage)") == ["secret"]


def test_a_loading_model_is_waited_for(tab, web):
    web.loading = True
    tab.reload()
    tab.get_by_text("The model is loading").wait_for()
    web.loading = False
    tab.get_by_text("The model is loading").wait_for(state="detached")
    assert tab.get_by_text("scripted-model").first.is_visible()


def test_colours_follow_the_system_and_the_switch(tab):
    def ground():
        red = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return "light" if int(re.search(r"\d+", red)[0]) > 128 else "dark"

    tab.emulate_media(color_scheme="dark")
    assert ground() == "dark"
    tab.get_by_label("Colours: as the system").click()
    tab.get_by_label("Colours: light").wait_for()
    assert ground() == "light"
    tab.reload()
    tab.get_by_label("Colours: light").wait_for()
    assert ground() == "light"


def test_a_question_after_a_failed_answer_joins_the_one_before(tab, web):
    web.scripts.append(Script(error=(500, "out of memory")))
    ask(tab, "one")
    answer(tab).get_by_text("out of memory").wait_for()
    ask(tab, "two")
    assert "Hello from" in answer(tab).inner_text()
    assert web.requests[-1][1]["messages"] == [{"role": "user", "content": "one\n\ntwo"}]


def test_an_empty_answer_is_said_to_be_one(tab, web):
    web.scripts.append(Script([]))
    ask(tab, "hi")
    assert "The answer is empty" in answer(tab).inner_text()
