"""What the web page keeps of conversations: branches, names, storage, files, and what other tabs see of them."""

from __future__ import annotations

import json

import pytest
from fake_web import Script
from webpage import answer, ask

pytestmark = pytest.mark.slow


def test_reload_keeps_the_conversation_and_a_half_written_answer(tab, web):
    ask(tab, "first")
    assert "Hello from" in answer(tab).inner_text()
    web.scripts.append(Script([f"part{i} " for i in range(100)], pause=0.05))
    ask(tab, "second")
    tab.locator(".prose", has_text="part25").wait_for()
    tab.reload()
    assert "Hello from the script." in answer(tab, 0).inner_text()
    assert "part5" in answer(tab, 1).inner_text()
    assert tab.get_by_label("Conversations").get_by_role("link", name="first").count() == 1


def test_regenerate_makes_a_branch_that_arrows_switch(tab, web):
    web.scripts += [Script(["one"]), Script(["two"]), Script(["three"])]
    ask(tab, "count")
    for _ in range(2):
        answer(tab).get_by_label("Answer again").click()
    assert answer(tab).locator(".prose").inner_text() == "three"
    assert "3 / 3" in answer(tab).inner_text()
    answer(tab).get_by_label("Previous alternative").click()
    assert answer(tab).locator(".prose").inner_text() == "two"
    tab.reload()
    assert answer(tab).locator(".prose").inner_text() == "two"
    ask(tab, "go on")
    answer(tab)
    assert [m["content"] for m in web.requests[-1][1]["messages"]] == ["count", "two", "go on"]


def test_editing_a_question_asks_again_and_keeps_the_old_branch(tab, web):
    web.scripts += [Script(["old answer"]), Script(["new answer"])]
    ask(tab, "old question")
    answer(tab)
    question = tab.get_by_role("article", name="You").first
    question.hover()
    question.get_by_label("Edit the message").click()
    question.locator(".editor textarea").fill("new question")
    tab.keyboard.press("Enter")
    assert answer(tab).locator(".prose").inner_text() == "new answer"
    assert web.requests[-1][1]["messages"] == [{"role": "user", "content": "new question"}]
    question.get_by_label("Previous alternative").click()
    assert answer(tab).locator(".prose").inner_text() == "old answer"
    assert question.locator(".bubble").inner_text() == "old question"


def test_editing_an_answer_changes_what_the_model_is_told(tab, web):
    ask(tab, "hi")
    answer(tab).get_by_label("Edit the message").click()
    tab.locator(".editor textarea").fill("my own words")
    tab.get_by_role("button", name="Save").click()
    assert answer(tab).locator(".prose").inner_text() == "my own words"
    ask(tab, "next")
    answer(tab)
    assert web.requests[-1][1]["messages"][1] == {"role": "assistant", "content": "my own words"}


def test_rename_delete_and_undo(tab):
    ask(tab, "a question")
    answer(tab)
    entry = tab.get_by_role("navigation", name="Conversations").get_by_role("listitem")
    entry.hover()
    tab.get_by_label("Rename a question").click()
    tab.get_by_role("textbox", name="Name").fill("Rainbows")
    tab.keyboard.press("Enter")
    entry.get_by_role("link", name="Rainbows").wait_for()
    entry.hover()
    tab.get_by_label("Delete Rainbows").click()
    entry.wait_for(state="detached")
    tab.get_by_role("button", name="Undo").click()
    entry.get_by_role("link", name="Rainbows").click()
    assert "Hello from the script." in answer(tab).inner_text()


def test_export_and_import_round_trip_with_branches(tab, web, tmp_path):
    web.scripts += [Script(["one"]), Script(["two"])]
    ask(tab, "count")
    answer(tab).get_by_label("Answer again").click()
    assert answer(tab).locator(".prose").inner_text() == "two"
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Export all").click()
    file = tmp_path / "kept.json"
    download.value.save_as(file)
    tab.get_by_role("navigation", name="Conversations").get_by_role("listitem").hover()
    tab.get_by_label("Delete count").click()
    tab.get_by_text("What is on your mind?").wait_for()
    tab.get_by_label("Conversations to import").set_input_files(file)
    assert answer(tab).locator(".prose").inner_text() == "two"
    answer(tab).get_by_label("Previous alternative").click()
    assert answer(tab).locator(".prose").inner_text() == "one"
    with tab.expect_download() as again:
        tab.get_by_role("button", name="Export all").click()
    again.value.save_as(tmp_path / "again.json")

    def texts(path):
        (conversation,) = json.loads(path.read_text())["conversations"]
        return sorted((m["role"], m["content"]) for m in conversation["messages"].values())

    assert (
        texts(tmp_path / "again.json") == texts(file) == [("assistant", "one"), ("assistant", "two"), ("user", "count")]
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("no json", "the file is no JSON"),
        ('{"format": "other"}', "the file holds no conversations"),
        ('[{"messages": 3}]', "conversation 1: no messages in it"),
        (
            '[{"messages": {"a": {"id": "a", "parent": "b", "role": "user", "content": ""}}}]',
            "answers one that is not there",
        ),
        ('[{"messages": {"a": {"id": "a", "role": "root", "content": ""}}}]', 'a message with role "root"'),
        (
            '[{"messages": [{"id": "a", "parent": "b", "role": "user"}, {"id": "b", "parent": "a", "role": "user"}]}]',
            "answer each other in a circle",
        ),
    ],
)
def test_a_file_that_is_no_export_is_refused_with_the_reason(tab, tmp_path, text, complaint):
    if text.startswith("["):
        text = f'{{"format": "layerlift-conversations", "conversations": {text}}}'
    file = tmp_path / "bad.json"
    file.write_text(text)
    tab.get_by_label("Conversations to import").set_input_files(file)
    tab.get_by_text(complaint).wait_for()
    assert tab.get_by_text("Your conversations will be listed here.").is_visible()


def test_going_away_and_back_finds_the_answer_written_meanwhile(tab, web):
    web.scripts.append(Script([f"w{i} " for i in range(30)], pause=0.03))
    ask(tab, "slow one")
    tab.locator(".prose", has_text="w3").wait_for()
    tab.get_by_role("button", name="New chat").click()
    tab.get_by_text("What is on your mind?").wait_for()
    ask(tab, "quick one")
    assert "Hello from the script." in answer(tab).inner_text()
    tab.get_by_role("link", name="slow one").click()
    assert "w29" in answer(tab).inner_text()


def test_two_tabs_show_the_same_conversations(tab, web):
    ask(tab, "first")
    answer(tab)
    other = tab.context.new_page()
    other.goto(tab.url)
    assert "Hello from" in answer(other).inner_text()
    web.scripts.append(Script(["from the other tab"]))
    ask(other, "second")
    answer(other)
    tab.get_by_text("from the other tab").first.wait_for()
    ask(tab, "third")
    answer(tab)
    assert [m["content"] for m in web.requests[-1][1]["messages"]][2:] == ["second", "from the other tab", "third"]
    other.bring_to_front()
    other.get_by_role("navigation", name="Conversations").get_by_role("listitem").hover()
    other.get_by_label("Delete first").click()
    tab.get_by_text("What is on your mind?").wait_for()
