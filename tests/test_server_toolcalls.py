"""Tools in a prompt and calls in an answer: both formats, in whatever pieces the text comes."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeEngine
from layerlift.runtime.errors import UserError
from layerlift.runtime.server.toolcalls import CallPiece, CallReader, TextPiece, Tools
from serving import serving, serving_engine

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMES = frozenset({"weather", "clock"})
ROME = '{"city": "Rome {\\"old\\"}", "days": [1, {"a": 2}]}'
TWO = (
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>\n'
    '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
)
HERMES = "{% for t in tools %}{{ t }}{% endfor %}<tool_call>"
LLAMA3 = "{{ tools }} ipython <|python_tag|>"


def read(style: str, text: str, size: int, *, inside: bool = False):
    """(text, calls as (name, arguments)) of an answer that comes `size` characters at a time."""
    reader = CallReader(style, NAMES, inside=inside)
    pieces = [p for i in range(0, len(text), size) for p in reader.feed(text[i : i + size])] + reader.flush()
    calls: list[list[str]] = []
    for piece in pieces:
        if isinstance(piece, CallPiece):
            if piece.id:
                assert piece.index == len(calls)
                calls.append([piece.name, ""])
            calls[piece.index][1] += piece.arguments
    return "".join(p.text for p in pieces if isinstance(p, TextPiece)), [tuple(call) for call in calls]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("style", "text", "shown", "calls"),
    [
        ("hermes", "Hello there", "Hello there", []),
        ("hermes", f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>', "", [("weather", ROME)]),
        (
            "hermes",
            f'Let me see.\n<tool_call>{{"name":"weather","arguments":{ROME}}}</tool_call>\n<tool_call>'
            '{"name": "clock", "arguments": {}}</tool_call>',
            "Let me see.",
            [("weather", ROME), ("clock", "{}")],
        ),
        (
            "hermes",
            '<tool_call>{"arguments": {"city": "Oslo"}, "name": "weather"}</tool_call>',
            "",
            [("weather", '{"city": "Oslo"}')],
        ),
        ("hermes", "1 < 2 and <tool> <tool_cal", "1 < 2 and <tool> <tool_cal", []),
        ("llama3", f'{{"name": "weather", "parameters": {ROME}}}', "", [("weather", ROME)]),
        ("llama3", f'<|python_tag|>{{"name": "weather", "parameters": {ROME}}}', "", [("weather", ROME)]),
        (
            "llama3",
            f'{{"type": "function", "name": "weather", "parameters": {ROME}}}; {{"name": "clock", "parameters": {{}}}}',
            "",
            [("weather", ROME), ("clock", "{}")],
        ),
        ("llama3", "Hello {there}", "Hello {there}", []),
        ("llama3", '{"name": "Rome", "parameters": {}}', '{"name": "Rome", "parameters": {}}', []),
        ("llama3", '{"answer": 42}', '{"answer": 42}', []),
    ],
)
def test_calls_are_parted_from_text_however_it_is_cut(style, text, shown, calls, size):
    assert read(style, text, size) == (shown, calls)


def test_a_required_call_begins_inside_its_mark():
    assert read("hermes", f'{{"name": "weather", "arguments": {ROME}}}', 3, inside=True) == ("", [("weather", ROME)])


def test_arguments_are_passed_on_before_the_call_ends():
    reader = CallReader("hermes", NAMES)
    first = reader.feed('<tool_call>{"name": "weather", "arguments": {"city": "Ro')
    assert [piece.arguments for piece in first] == ["", '{"city": "Ro']
    assert first[0].name == "weather"
    assert first[0].id.startswith("call_")


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_what_comes_behind_the_last_call_that_may_be_is_not_read(size):
    reader = CallReader("hermes", NAMES, most=1)
    pieces = [p for i in range(0, len(TWO), size) for p in reader.feed(TWO[i : i + size])] + reader.flush()
    assert reader.full
    assert [p.name for p in pieces if isinstance(p, CallPiece) and p.id] == ["weather"]
    assert not [p for p in pieces if isinstance(p, TextPiece)]


def test_a_model_is_spoken_to_in_the_format_of_its_template():
    hermes, llama3 = (Tools.choose([WEATHER], "required", template) for template in (HERMES, LLAMA3))
    assert hermes
    assert hermes.opening == "<tool_call>\n"
    assert hermes.schema
    assert hermes.schema["required"] == ["name", "arguments"]
    assert llama3
    assert llama3.opening == ""
    assert llama3.schema
    assert llama3.schema["required"] == ["name", "parameters"]
    assert Tools.choose([WEATHER], "none", HERMES) is None


def test_a_template_without_tools_gets_them_in_the_system_message():
    tools = Tools.choose([WEATHER], "auto", "{{ messages }}")
    assert tools
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    said = tools.messages(
        [
            {"role": "system", "content": "Be kind"},
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        ]
    )
    assert [m["role"] for m in said] == ["system", "user", "assistant", "user"]
    assert said[0]["content"].startswith("Be kind")
    assert json.dumps(WEATHER) in said[0]["content"]
    assert '"arguments": {"city": "Rome"}' in said[2]["content"]
    assert "sunny" in said[3]["content"]


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([{}], "auto", "tools[0]"),
        ([WEATHER, {"function": {"name": ""}}], "auto", "tools[1]"),
        ([WEATHER], "clock", "tool_choice"),
        ([{"function": {"name": "a", "parameters": 5}}], "auto", "parameters"),
    ],
)
def test_tools_that_are_none_are_named(tools, choice, words):
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        Tools.choose(tools, choice, HERMES)


@pytest.fixture(scope="module")
def scripted():
    """A server whose engine answers what `scripted.engine.answers` holds."""
    engine = FakeEngine(pause=0.001, context=10_000)
    with serving_engine(lambda: engine) as running:
        running.engine = engine
        yield running


@pytest.mark.parametrize(("parallel", "calls"), [(True, ["weather", "clock"]), (False, ["weather"])])
def test_without_parallel_calls_an_answer_ends_with_its_first(scripted, parallel, calls):
    asked = {"messages": [{"role": "user", "content": "Hi"}], "tools": [WEATHER, CLOCK]}
    scripted.engine.answers[:] = [TWO, TWO, TWO + "x" * 5000]
    (whole,) = scripted.post("/v1/chat/completions", **asked, parallel_tool_calls=parallel)["choices"]
    assert [call["function"]["name"] for call in whole["message"]["tool_calls"]] == calls
    assert whole["finish_reason"] == "tool_calls"
    events = scripted.stream("/v1/chat/completions", **asked, parallel_tool_calls=parallel)
    pieces = [piece for event in events for piece in event["choices"][0]["delta"].get("tool_calls", ())]
    assert [piece["function"]["name"] for piece in pieces if "id" in piece] == calls
    if not parallel:
        tool = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        answer = scripted.post(
            "/v1/messages", messages=asked["messages"], max_tokens=9000, tools=[tool], tool_choice=choice
        )
        assert [block["type"] for block in answer["content"]] == ["tool_use"]
        assert answer["usage"]["output_tokens"] < len(TWO) + 1000  # the engine is told to stop
    scripted.engine.answers.clear()


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny("F32"), context=2048) as running:
        yield running


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_required_call_is_made_whole_and_streamed(server, choice):
    bounded = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    closed = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
    asked = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [bounded, {"type": "function", "function": closed}],
        "tool_choice": choice,
        "max_tokens": 400,
    }
    (whole,) = server.post("/v1/chat/completions", **asked)["choices"]
    assert whole["finish_reason"] == "tool_calls"
    (call,) = whole["message"]["tool_calls"]
    assert whole["message"]["content"] is None
    assert call["function"]["name"] in (("weather", "clock") if choice == "required" else ("clock",))
    arguments = json.loads(call["function"]["arguments"])
    assert arguments == {} or arguments["city"] in ("Rome", "Oslo")
    name, text = "", ""
    for event in server.stream("/v1/chat/completions", **asked):
        for piece in event["choices"][0]["delta"].get("tool_calls", ()):
            name += piece["function"].get("name", "")
            text += piece["function"]["arguments"]
    assert (name, json.loads(text)) == (call["function"]["name"], arguments)
