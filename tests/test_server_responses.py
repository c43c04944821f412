"""OpenAI's Responses API over a tiny random model: items, streams, what is kept, errors that name the field."""

from __future__ import annotations

import json

import pytest
from layerlift.runtime.errors import UserError
from layerlift.runtime.server import response_items
from layerlift.runtime.server.recall import Recall
from serving import serving

MARK = {
    "type": "function",
    "name": "mark",
    "description": "Marks",
    "parameters": {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny("F32"), alias="tiny", context=2048) as running:
        running.without_blanks()
        yield running


def events(server, **body) -> list[dict]:
    """The events of a stream, named after their types and numbered from 0."""
    answer = server.client.post("/v1/responses", json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.strip().split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = (line.split(": ", 1)[1] for line in block.splitlines())
        found.append(json.loads(data))
        assert name == found[-1]["type"]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def text_of(response: dict) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def test_a_text_is_answered_as_a_chat_would_answer_it(server):
    chat = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], max_tokens=9)
    response = server.post("/v1/responses", input="Hi", max_output_tokens=9)
    assert text_of(response) == chat["choices"][0]["message"]["content"]
    assert (response["object"], response["model"]) == ("response", "tiny")
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    (item,) = response["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "incomplete")
    usage = response["usage"]
    assert usage["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert (usage["output_tokens"], usage["total_tokens"]) == (9, usage["input_tokens"] + 9)


def test_an_answer_that_ends_by_itself_is_completed(server):
    said = text_of(server.post("/v1/responses", input="Hi", max_output_tokens=9))
    response = server.post("/v1/responses", input="Hi", max_output_tokens=9, stop=said[-1])
    assert (response["status"], response["incomplete_details"]) == ("completed", None)
    assert text_of(response) == said[: said.index(said[-1])]


def test_a_stream_tells_of_everything_that_the_whole_answer_has(server):
    told = events(server, input="Hi", max_output_tokens=9)
    kinds = [event["type"] for event in told]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert told[0]["response"]["output"] == told[2]["item"]["content"] == []
    final = told[-1]["response"]
    text = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
    assert text == told[-4]["text"] == told[-3]["part"]["text"] == text_of(final)
    assert told[-2]["item"] == final["output"][0]
    assert {event["item_id"] for event in told if "item_id" in event} == {final["output"][0]["id"]}
    whole = server.post("/v1/responses", input="Hi", max_output_tokens=9)
    assert text_of(whole) == text
    assert whole["usage"]["output_tokens"] == final["usage"]["output_tokens"]


def test_a_call_is_an_item_whole_and_streamed(server):
    asked = {"input": "Hi", "tools": [MARK], "tool_choice": "required", "max_output_tokens": 100}
    (call,) = server.post("/v1/responses", **asked)["output"]
    assert (call["type"], call["name"], set(json.loads(call["arguments"]))) == ("function_call", "mark", {"ok"})
    told = events(server, **asked)
    added, *deltas, done, ended, completed = told[2:]
    assert (added["item"]["type"], added["item"]["arguments"]) == ("function_call", "")
    assert {event["type"] for event in deltas} == {"response.function_call_arguments.delta"}
    assert "".join(event["delta"] for event in deltas) == done["arguments"] == call["arguments"]
    assert ended["item"]["call_id"] == added["item"]["call_id"]
    assert completed["response"]["output"] == [ended["item"]]
    assert completed["type"] == "response.completed"


def test_a_schema_decides_what_the_text_looks_like(server):
    text = {"format": {"type": "json_schema", "name": "mark", "strict": True, "schema": MARK["parameters"]}}
    response = server.post("/v1/responses", input="Hi", text=text, max_output_tokens=100)
    assert set(json.loads(text_of(response))) == {"ok"}
    assert response["text"] == text


def test_logprobs_are_there_when_included(server):
    asked = {"input": "Hi", "max_output_tokens": 4, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    tokens = server.post("/v1/responses", **asked)["output"][0]["content"][0]["logprobs"]
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * 4
    streamed = [token for event in events(server, **asked) for token in event.get("logprobs", ()) if "delta" in event]
    assert [token["token"] for token in streamed] == [token["token"] for token in tokens][: len(streamed)]
    assert server.post("/v1/responses", input="Hi", max_output_tokens=4)["output"][0]["content"][0]["logprobs"] == []


def prompt_tokens(server, **body) -> int:
    return server.post("/v1/responses/input_tokens", **body)["input_tokens"]


def test_a_response_goes_on_from_the_one_before_without_its_instructions(server):
    first = server.post("/v1/responses", input="Hi", instructions="Be brief.", max_output_tokens=5)
    items = [{"role": "user", "content": "Hi"}, *first["output"], {"role": "user", "content": "And now?"}]
    whole = server.post("/v1/responses", input=items, max_output_tokens=5)
    second = server.post("/v1/responses", input="And now?", previous_response_id=first["id"], max_output_tokens=5)
    assert second["previous_response_id"] == first["id"]
    assert text_of(second) == text_of(whole)
    assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"] == prompt_tokens(server, input=items)


def test_a_streamed_response_is_kept_too_and_can_be_forgotten(server):
    response = events(server, input="Hi", max_output_tokens=5)[-1]["response"]
    assert server.get(f"/v1/responses/{response['id']}") == response
    assert prompt_tokens(server, input="More", previous_response_id=response["id"]) > response["usage"]["total_tokens"]
    assert server.client.delete(f"/v1/responses/{response['id']}").json()["deleted"] is True
    assert server.client.delete(f"/v1/responses/{response['id']}").status_code == 404
    assert server.get(f"/v1/responses/{response['id']}", 404)["error"]["type"] == "not_found_error"
    error = server.post("/v1/responses", 400, input="More", previous_response_id=response["id"])["error"]
    assert error["param"] == "previous_response_id"


def test_what_is_not_to_be_stored_is_not(server):
    response = server.post("/v1/responses", input="Hi", max_output_tokens=2, store=False)
    assert server.get(f"/v1/responses/{response['id']}", 404)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "x"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0]"),
        ({"input": "Hi", "previous_response_id": "resp_0"}, "previous_response_id"),
        ({"input": "Hi", "background": True}, "background"),
        ({"input": "Hi", "conversation": "conv_1"}, "conversation"),
        ({"input": "Hi", "prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": "Hi", "truncation": "auto"}, "truncation"),
        ({"input": "Hi", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "Hi", "tools": [{"type": "function"}]}, "tools[0]"),
        ({"input": "Hi", "tools": [MARK], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"input": "Hi", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "Hi", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "Hi", "top_p": 3}, "top_p"),
        ({"input": "Hi", "max_output_tokens": -2}, "max_output_tokens"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_mistake_is_400_and_names_the_field(server, body, field):
    error = server.post("/v1/responses", 400, **body)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field), error


def test_items_become_the_messages_of_a_template():
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "Rome"}'}
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "summary": []},
        {"role": "assistant", "content": "Let me look."},
        call,
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "Sunny."},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "Warm."}]},
    ]
    system, user, assistant, first, second = response_items.messages(items)
    assert (system["role"], system["content"]) == ("system", "Be kind.")
    assert user["content"] == [{"type": "text", "text": "Weather?"}]
    assert assistant["content"] == "Let me look."
    assert [made["id"] for made in assistant["tool_calls"]] == ["c1", "c2"]
    assert (first["role"], first["tool_call_id"], first["content"]) == ("tool", "c1", "Sunny.")
    assert second["content"] == "Warm."
    with pytest.raises(UserError, match="is 'mcp', must be function"):
        response_items.tools([{"type": "mcp"}])


def test_the_oldest_responses_are_forgotten_first():
    recall = Recall(responses=2, nbytes=1000)
    for id in "abc":
        recall.keep({"id": id}, [{"role": "user", "content": id}])
    assert [recall.find(id) is not None for id in "abc"] == [False, True, True]
    recall.keep({"id": "large"}, [{"role": "user", "content": "x" * 900}])
    assert [recall.find(id) is not None for id in ("b", "c", "large")] == [False, True, True]
    recall.keep({"id": "larger"}, [{"role": "user", "content": "x" * 2000}])
    assert [recall.find(id) is not None for id in ("c", "large", "larger")] == [False, False, False]
