"""OpenAI's own client against the default model; test_clients_older.py runs this file with an older one."""

from __future__ import annotations

import json

import pytest
from asking import CAPITAL, QUESTION, SCHEMA, city_type

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of other people's packages


@pytest.fixture
def openai(default_server):
    package = pytest.importorskip("openai", reason="OpenAI's client is not installed (pip install '.[test]')")
    with package.OpenAI(base_url=f"{default_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_chat_and_stream(openai):
    asked = {"model": "default", "messages": QUESTION, "max_tokens": 32, "temperature": 0}
    whole = openai.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert "Paris" in text
    assert whole.choices[0].finish_reason == "stop"
    parts = list(openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == text
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_json_schema(openai):
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    answer = openai.chat.completions.create(
        model="default", messages=QUESTION, max_tokens=64, temperature=0, response_format=wanted
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"city", "big"}


def test_openai_tool_that_must_be_called(openai):
    tool = {"type": "function", "function": {"name": "look_up", "description": "Looks up", "parameters": SCHEMA}}
    choice = {"type": "function", "function": {"name": "look_up"}}
    answer = openai.chat.completions.create(
        model="default", messages=QUESTION, max_tokens=100, temperature=0, tools=[tool], tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look_up"
    assert set(json.loads(call.function.arguments)) == {"city", "big"}
    assert answer.choices[0].finish_reason == "tool_calls"


def test_openai_logprobs(openai):
    answer = openai.chat.completions.create(
        model="default", messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    for token in answer.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob
        assert bytes(token.bytes).decode() == token.token


def test_openai_echo_scores_the_likelier_text_higher(openai):
    def score(text: str) -> float:
        answer = openai.completions.create(model="default", prompt=text, max_tokens=0, echo=True, logprobs=1)
        assert answer.choices[0].text == text
        return sum(answer.choices[0].logprobs.token_logprobs[1:])

    assert score("The capital of France is Paris") > score("The capital of France is Banana")


def test_openai_errors_are_the_clients_own(openai):
    import openai as package

    with pytest.raises(package.BadRequestError, match="top_p") as caught:
        openai.chat.completions.create(model="default", messages=QUESTION, top_p=7)
    assert caught.value.param == "top_p"


def test_openai_embeddings(openai):
    import numpy as np

    texts = ["A cat sat on the mat.", "A kitten rested on the rug.", "Interest rates rose in March."]
    vectors = np.array([each.embedding for each in openai.embeddings.create(model="default", input=texts).data])
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far


ASKED = {"model": "default", "input": CAPITAL, "max_output_tokens": 32, "temperature": 0}


def test_openai_response_and_stream(openai):
    whole = openai.responses.create(**ASKED)
    assert "Paris" in whole.output_text
    assert whole.status == "completed"
    parts = list(openai.responses.create(**ASKED, stream=True))
    assert "".join(part.delta for part in parts if part.type == "response.output_text.delta") == whole.output_text
    assert parts[-1].type == "response.completed"
    assert parts[-1].response.usage.output_tokens == whole.usage.output_tokens
    with openai.responses.stream(**ASKED) as stream:
        stream.until_done()
        assert stream.get_final_response().output_text == whole.output_text


def test_openai_response_that_goes_on_from_another(openai):
    first = openai.responses.create(**ASKED)
    second = openai.responses.create(
        model="default", input="What did I ask?", previous_response_id=first.id, max_output_tokens=48, temperature=0
    )
    assert "France" in second.output_text
    assert openai.responses.retrieve(first.id).output_text == first.output_text
    openai.responses.delete(first.id)


def test_openai_response_with_a_call_and_its_result(openai):
    tool = {"type": "function", "name": "look_up", "description": "Looks up", "parameters": SCHEMA}
    choice = {"type": "function", "name": "look_up"}
    first = openai.responses.create(**{**ASKED, "max_output_tokens": 100}, tools=[tool], tool_choice=choice)
    (call,) = first.output
    assert (call.type, call.name, set(json.loads(call.arguments))) == ("function_call", "look_up", {"city", "big"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "The city is Paris."}
    asked = {**ASKED, "input": [{"role": "user", "content": CAPITAL}, *first.output, result]}
    assert "Paris" in openai.responses.create(**asked, tools=[tool], tool_choice="none").output_text


def test_openai_response_in_a_form(openai):
    City = city_type()
    answer = openai.responses.parse(**ASKED, text_format=City)
    assert isinstance(answer.output_parsed, City)
