"""The completion page in Chromium, against scripted answers."""

from __future__ import annotations

import pytest
from fake_web import Script

pytestmark = pytest.mark.slow


@pytest.fixture
def writing(tab, web):
    """The completion page with its field filled."""
    tab.get_by_role("link", name="Completion").click()
    tab.get_by_label("Text to go on from").fill("Four score and")
    return tab


def test_tokens_are_written_with_their_probabilities(writing, web):
    web.scripts.append(Script([" seven", " years", " ago"]))
    writing.get_by_role("button", name="Write on").click()
    assert writing.get_by_role("option").all_inner_texts() == [" seven", " years", " ago"]
    route, body = web.requests[0]
    assert route == "/v1/completions"
    assert (body["prompt"], body["logprobs"], body["max_tokens"]) == ("Four score and", 5, 128)
    writing.get_by_role("option", name="ago").click()
    details = writing.get_by_label("Probabilities")
    assert "Token 3: “ ago” 74.1 %" in details.inner_text()
    assert [row.split() for row in details.locator("tbody tr").all_inner_texts()] == [
        ["“", "ago”", "74.1", "%"],
        ["“", "other”", "8.2", "%"],
    ]


def test_arrow_keys_move_between_tokens(writing, web):
    web.scripts.append(Script([" a", " b", " c"]))
    writing.keyboard.press("Control+Enter")
    writing.get_by_role("option").nth(2).wait_for()
    writing.get_by_role("option").nth(0).focus()
    writing.keyboard.press("ArrowRight")
    assert "Token 2: “ b”" in writing.get_by_label("Probabilities").inner_text()
    writing.keyboard.press("End")
    assert "Token 3: “ c”" in writing.get_by_label("Probabilities").inner_text()


def test_another_token_is_taken_and_written_on_from(writing, web):
    web.scripts += [Script([" seven", " years", " ago"]), Script([" things"])]
    writing.keyboard.press("Control+Enter")
    writing.get_by_role("option", name="years").click()
    writing.get_by_role("button", name="“ other”").click()
    writing.get_by_role("option", name="things").wait_for()
    assert writing.get_by_role("option").all_inner_texts() == [" seven", " other", " things"]
    assert web.requests[-1][1]["prompt"] == "Four score and seven other"


def test_the_text_written_is_taken_up_and_lasts(writing, web):
    web.scripts.append(Script([" seven"]))
    writing.keyboard.press("Control+Enter")
    writing.get_by_role("option", name="seven").wait_for()
    writing.get_by_role("button", name="Take into the text above").click()
    assert writing.get_by_label("Text to go on from").input_value() == "Four score and seven"
    writing.reload()
    assert writing.get_by_label("Text to go on from").input_value() == "Four score and seven"


def test_escape_stops_and_keeps_what_was_written(writing, web):
    web.scripts.append(Script([f" {i}" for i in range(300)], pause=0.05))
    writing.keyboard.press("Control+Enter")
    writing.get_by_role("option").nth(3).wait_for()
    writing.keyboard.press("Escape")
    writing.get_by_role("button", name="Write on").wait_for()
    assert 4 <= writing.get_by_role("option").count() < 100


def test_openais_older_shape_of_probabilities_is_read_too(writing, web):
    logprobs = {"tokens": [" x"], "token_logprobs": [-0.5], "top_logprobs": [{" x": -0.5, " y": -1.0}]}
    web.scripts.append(Script([], chunks=[{"choices": [{"text": " x", "logprobs": logprobs}]}]))
    writing.keyboard.press("Control+Enter")
    writing.get_by_role("option").click()
    assert "“ x” 60.7 %" in writing.get_by_label("Probabilities").inner_text()
    assert "36.8 %" in writing.get_by_label("Probabilities").inner_text()


def test_a_server_without_probabilities_still_writes(writing, web):
    web.scripts.append(Script([], chunks=[{"choices": [{"text": " plain", "logprobs": None}]}]))
    writing.keyboard.press("Control+Enter")
    writing.get_by_role("option").click()
    assert "The server sent no probabilities" in writing.get_by_label("Probabilities").inner_text()


def test_a_character_spread_over_tokens_is_put_together(writing, web):
    def half(*values):
        content = [{"token": "\ufffd", "bytes": list(values), "logprob": -0.1, "top_logprobs": []}]
        return {"choices": [{"text": "", "logprobs": {"content": content}}]}

    web.scripts.append(Script([" caf"], chunks=[half(0xC3), half(0xA9)]))
    writing.keyboard.press("Control+Enter")
    writing.get_by_role("option").nth(2).wait_for()
    writing.get_by_role("button", name="Take into the text above").click()
    assert writing.get_by_label("Text to go on from").input_value() == "Four score and café"
