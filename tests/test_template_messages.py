"""Chat templates are kind to what clients send: parts, tools, a system message that a template refuses."""

from __future__ import annotations

import copy
import threading
from datetime import datetime

import pytest
from chat_styles import CALLED, STYLES, SYSTEM, USER, render
from layerlift.runtime.errors import UserError
from layerlift.runtime.template import ChatTemplate

PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
ONLY_TEXT = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{% endfor %}"
ONLY_PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


def test_parts_are_joined_where_the_template_takes_text():
    assert render(ONLY_TEXT, PARTS) == "user: one\ntwo"
    assert render("{{ messages[0].content + '!' }}", PARTS) == "one\ntwo!"


def test_parts_stay_where_the_template_reads_them():
    both = "{% for p in messages[0].content %}{{ p.text if p is mapping else p }}.{% endfor %}"
    assert render(both, PARTS) == "one.two."
    assert render(ONLY_PARTS, PARTS) == "onetwo"


def test_text_becomes_a_part_where_the_template_reads_only_parts():
    assert render(ONLY_PARTS, USER) == "Hello"


def test_an_image_is_refused_by_name():
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(UserError, match="'image_url'"):
        render(ONLY_TEXT, image)


def test_a_refused_system_message_goes_into_the_first_user_message():
    text = render(STYLES["gemma"], SYSTEM)
    assert "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>" in text


def test_a_dropped_system_message_goes_into_the_first_user_message():
    source = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    assert render(source, SYSTEM) == "Be brief.\n\nHello"


def test_tool_arguments_may_be_json_text():
    source = "{{ messages[-1].tool_calls[0].function.arguments | tojson }}"
    call = {"function": {"name": "f", "arguments": '{"city": "Malmö"}'}}
    messages = [*USER, {"role": "assistant", "tool_calls": [call]}]
    assert render(source, messages) == '{"city": "Malmö"}'
    assert render("{{ 'x' + messages[-1].tool_calls[0].function.arguments }}", messages) == 'x{"city": "Malmö"}'


def test_templates_that_ask_whether_none_is_iterable():
    assert render("{% if tools is iterable and tools | length > 0 %}tools{% endif %}.") == "."


def test_the_callers_messages_stay_as_they_are():
    messages = copy.deepcopy(CALLED)
    render("{{ messages.append(1) }}{{ messages[0].update({'content': 'x'}) }}", messages)
    assert messages == CALLED


def test_dates_come_from_now():
    assert render("{{ strftime_now('%Y-%m-%d %-d') }}") == "2025-03-04 4"
    assert ChatTemplate.from_source("{{ strftime_now('%Y') }}").render(USER) == str(datetime.now().year)


def test_lone_surrogates_do_not_break_a_conversation():
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "a\ud800b"}]) == "a\ufffdb"


def test_a_long_conversation_is_no_bomb():
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 200} for i in range(1001)]
    text = render(STYLES["chatml"], messages)
    assert len(text) > 1_000_000
    assert "1000 word" in text


def test_threads_share_the_process():
    results = {}

    def work(i):
        results[i] = [render("{{ messages[0].content }}", [{"role": "user", "content": f"{i}-{j}"}]) for j in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [f"{i}-{j}" for j in range(20)] for i in range(4)}


@pytest.mark.parametrize("name", ["chat_template", "bos_token", "eos_token", "_x", "a-b", "a b", "1a", ""])
def test_names_that_no_request_may_set(name):
    with pytest.raises(UserError, match="cannot be set"):
        ChatTemplate.from_source("x").render(USER, **{name: "x"})


@pytest.mark.parametrize(
    "messages",
    [["hi"], [{"content": "hi"}], [{"role": 1, "content": "hi"}], [{"role": "user", "content": b"hi"}],
     [{"role": "user", "content": object()}], [{"role": "user", "content": float("nan")}]],
)  # fmt: skip
def test_what_is_no_conversation_is_the_users_mistake(messages):
    with pytest.raises(UserError, match=r"messages\[0\]"):
        render("x", messages)


def test_data_nested_without_end_is_the_users_mistake():
    knot: list = []
    knot.append(knot)
    with pytest.raises(UserError, match="nested"):
        render("x", [{"role": "user", "content": knot}])
