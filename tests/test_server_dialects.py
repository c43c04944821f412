"""Ollama's and Anthropic's dialects over a tiny random model.

One seam is behind all, so that the same question has the same answer everywhere.
"""

from __future__ import annotations

import json

import pytest
from serving import serving

HI = [{"role": "user", "content": "Hi"}]
TOKENS = 12


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny("F32"), alias="tiny", context=2048) as running:
        running.without_blanks()
        yield running


@pytest.fixture(scope="module")
def said(server):
    """The answer to HI at temperature 0, in OpenAI's words."""
    return server.post("/v1/chat/completions", messages=HI, max_tokens=TOKENS)["choices"][0]


def lines(server, path: str, **body) -> list[dict]:
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def events(server, path: str, **body) -> list[dict]:
    """Server-sent events with names, which must be their data's types."""
    answer = server.client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = (line.split(": ", 1)[1] for line in block.splitlines())
        found.append(json.loads(data))
        assert name == found[-1]["type"]
    return found


def test_ollama_chat_says_what_openai_chat_says(server, said):
    options = {"num_predict": TOKENS}
    whole = server.post("/api/chat", model="any", messages=HI, stream=False, options=options)
    assert whole["message"] == {"role": "assistant", "content": said["message"]["content"]}
    assert whole["done"] is True
    assert (whole["eval_count"], whole["done_reason"]) == (TOKENS, said["finish_reason"])
    *parts, last = lines(server, "/api/chat", model="any", messages=HI, options=options)
    assert "".join(part["message"]["content"] for part in parts) == said["message"]["content"]
    assert not any(part["done"] for part in parts)
    assert last["done"] is True
    assert last["prompt_eval_count"] == whole["prompt_eval_count"]


def test_ollama_generate_goes_through_the_template_unless_raw(server, said):
    options = {"num_predict": TOKENS}
    templated = server.post("/api/generate", prompt="Hi", stream=False, options=options)["response"]
    assert templated == said["message"]["content"]
    raw = server.post("/api/generate", prompt="Hi", raw=True, stream=False, options=options)["response"]
    assert raw == server.post("/v1/completions", prompt="Hi", max_tokens=TOKENS)["choices"][0]["text"] != templated
    system = server.post("/api/generate", prompt="Hi", system="Be brief.", stream=False, options=options)
    assert system["prompt_eval_count"] > TOKENS


def test_ollama_format_makes_json(server):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    asked = {"messages": HI, "stream": False, "options": {"num_predict": 64}, "format": schema}
    assert set(json.loads(server.post("/api/chat", **asked)["message"]["content"])) == {"a"}


def test_ollama_embeddings_are_openais(server):
    data = server.post("/v1/embeddings", input=["ab", "cd"])["data"]
    found = server.post("/api/embed", model="any", input=["ab", "cd"])
    assert found["embeddings"] == [each["embedding"] for each in data]
    assert found["prompt_eval_count"] > 0
    assert server.post("/api/embeddings", model="any", prompt="cd")["embedding"] == data[1]["embedding"]
    assert "'input'" in server.post("/api/embed", 400, model="any")["error"]


def test_ollama_names_the_model(server):
    (model,) = server.get("/api/tags")["models"]
    assert (model["name"], model["details"]["format"]) == ("tiny", "gguf")
    assert server.get("/api/ps")["models"][0]["name"] == "tiny"
    assert server.post("/api/show", model="tiny")["model_info"]["general.architecture"] == "llama"
    assert server.get("/api/version")["version"]
    assert server.post("/api/generate", model="tiny")["done_reason"] == "load"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ("/api/chat", {"messages": HI, "format": "xml"}, "format"),
        ("/api/chat", {"messages": HI, "options": {"temperature": "hot"}}, "options.temperature"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "x", "options": {"num_predict": -9}}, "num_predict"),
    ],
)
def test_ollama_errors_are_a_text_that_names_the_field(server, path, body, words):
    assert words in server.post(path, 400, **body)["error"]


def test_anthropic_messages_say_what_openai_chat_says(server, said):
    asked = {"model": "any", "messages": HI, "max_tokens": TOKENS}
    whole = server.post("/v1/messages", **asked)
    assert whole["content"] == [{"type": "text", "text": said["message"]["content"]}]
    assert whole["usage"]["output_tokens"] == TOKENS
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("max_tokens", None)
    stream = [event for event in events(server, "/v1/messages", **asked) if event["type"] != "ping"]
    kinds = [event["type"] for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(event["delta"]["text"] for event in stream if event["type"] == "content_block_delta")
    assert text == said["message"]["content"]
    assert stream[-2]["delta"]["stop_reason"] == "max_tokens"
    assert stream[-2]["usage"]["output_tokens"] == TOKENS


def test_anthropic_names_the_stop_sequence(server, said):
    stop = said["message"]["content"][3:5]
    answer = server.post("/v1/messages", messages=HI, max_tokens=TOKENS, stop_sequences=[stop])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)


def test_anthropic_blocks_become_the_messages_of_a_template(server):
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "Rome"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "Sunny."}]},
    ]
    tools = [{"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}]
    counted = server.post("/v1/messages/count_tokens", messages=blocks, tools=tools, system="Be brief.")
    shorter = server.post("/v1/messages/count_tokens", messages=blocks[:1], tools=tools, system="Be brief.")
    assert counted["input_tokens"] > shorter["input_tokens"] > 10


def test_anthropic_tool_choice_any_makes_a_call(server):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    tools = [{"name": "mark", "input_schema": {**schema, "additionalProperties": False}}]
    asked = {"messages": HI, "max_tokens": 100, "tools": tools, "tool_choice": {"type": "any"}}
    whole = server.post("/v1/messages", **asked)
    (call,) = whole["content"]
    assert (call["type"], call["name"], set(call["input"])) == ("tool_use", "mark", {"ok"})
    assert whole["stop_reason"] == "tool_use"
    stream = events(server, "/v1/messages", **asked)
    (block,) = [event["content_block"] for event in stream if event["type"] == "content_block_start"]
    assert (block["type"], block["name"]) == ("tool_use", "mark")
    parts = [event["delta"]["partial_json"] for event in stream if event["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == call["input"]
    ollama = {"type": "function", "function": {"name": "mark", "parameters": tools[0]["input_schema"]}}
    assert server.post("/api/chat", messages=HI, tools=[ollama], stream=False, options={"num_predict": 1})["done"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": HI}, "max_tokens"),
        ({"messages": [], "max_tokens": 1}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}], "max_tokens": 1}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 1}, "image"),
        ({"messages": HI, "max_tokens": 1, "tools": [{"name": "x"}]}, "tools[0]"),
        ({"messages": HI, "max_tokens": 1, "top_p": 3}, "top_p"),
    ],
)
def test_anthropic_errors_have_its_shape(server, body, words):
    error = server.post("/v1/messages", 400, **body)
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert words in error["error"]["message"]
