"""Real clients against the default model: what they get is what their users rely on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from asking import CAPITAL, QUESTION, SCHEMA, city_type

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of other people's packages

EXTRA = "is not installed (pip install '.[clients-test]')"
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up", "parameters": SCHEMA}}


def test_ollama(default_server):
    package = pytest.importorskip("ollama", reason="Ollama's client is not installed (pip install '.[test]')")
    client = package.Client(host=default_server.url)
    asked = {"model": "default", "options": {"temperature": 0, "num_predict": 32}}
    answer = client.chat(messages=QUESTION, **asked)
    assert "Paris" in answer["message"]["content"]
    parts = client.chat(messages=QUESTION, stream=True, **asked)
    assert "".join(part["message"]["content"] for part in parts) == answer["message"]["content"]
    assert client.generate(prompt=CAPITAL, **asked).response == answer["message"]["content"]
    City = city_type()
    formed = client.chat(messages=QUESTION, format=City.model_json_schema(), **asked)
    assert City.model_validate_json(formed.message.content)
    assert [model.model for model in client.list().models] == ["default"]
    assert client.show("default").modelinfo["general.architecture"] == "llama"
    (vector,) = client.embed(model="default", input="some text").embeddings
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-3)


def test_anthropic(default_server):
    package = pytest.importorskip("anthropic", reason="Anthropic's client is not installed (pip install '.[test]')")
    client = package.Anthropic(base_url=default_server.url, api_key="none", max_retries=0)
    asked = {"model": "default", "messages": QUESTION, "max_tokens": 32}
    answer = client.messages.create(**asked)
    assert "Paris" in answer.content[0].text
    assert answer.stop_reason == "end_turn"
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
        assert stream.get_final_message().usage.output_tokens == answer.usage.output_tokens
    assert client.messages.count_tokens(model="default", messages=QUESTION).input_tokens > 10
    tool = {"name": "look_up", "description": "Looks up", "input_schema": SCHEMA}
    choice = {"type": "tool", "name": "look_up"}
    call = client.messages.create(**{**asked, "max_tokens": 100}, tools=[tool], tool_choice=choice)
    assert (call.content[0].type, set(call.content[0].input)) == ("tool_use", {"city", "big"})
    with pytest.raises(package.BadRequestError, match="top_p"):
        client.messages.create(**asked, extra_body={"top_p": 7})


def test_litellm(default_server, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it is fetched
    litellm = pytest.importorskip("litellm", reason=f"litellm {EXTRA}")
    where = {"model": "openai/default", "api_base": f"{default_server.url}/v1", "api_key": "none"}
    asked = {**where, "messages": QUESTION, "temperature": 0}
    answer = litellm.completion(**asked, max_tokens=32)
    text = answer.choices[0].message.content
    assert "Paris" in text
    parts = litellm.completion(**asked, max_tokens=32, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    choice = {"type": "function", "function": {"name": "look_up"}}
    called = litellm.completion(**asked, max_tokens=100, tools=[TOOL], tool_choice=choice)
    assert called.choices[0].message.tool_calls[0].function.name == "look_up"
    assert len(litellm.embedding(**where, input=["one", "two"]).data) == 2
    with pytest.raises(litellm.BadRequestError, match="top_p"):
        litellm.completion(**asked, top_p=7)


@pytest.mark.parametrize("use_responses", [False, True])
def test_langchain_openai(default_server, use_responses):
    package = pytest.importorskip("langchain_openai", reason=f"langchain-openai {EXTRA}")
    where = {"model": "default", "base_url": f"{default_server.url}/v1", "api_key": "none"}
    chat = package.ChatOpenAI(**where, temperature=0, max_tokens=100, use_responses_api=use_responses)
    answer = chat.invoke(CAPITAL)
    assert "Paris" in answer.text
    assert "".join(part.text for part in chat.stream(CAPITAL)) == answer.text
    City = city_type()
    assert isinstance(chat.with_structured_output(City, method="json_schema").invoke(CAPITAL), City)
    assert isinstance(chat.with_structured_output(City, method="function_calling").invoke(CAPITAL), City)
    embeddings = package.OpenAIEmbeddings(**where, check_embedding_ctx_length=False)
    assert len(embeddings.embed_documents(["one", "two"])) == 2


def test_llm(default_server, tmp_path):
    pytest.importorskip("llm", reason=f"llm {EXTRA}")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: default\n  api_base: {default_server.url}/v1\n"
        f"- model_id: ours-responses\n  model_name: default\n  api_base: {default_server.url}/v1\n  responses: true\n"
    )
    said = []
    for options in (["-m", "ours"], ["-m", "ours", "--no-stream"], ["-m", "ours-responses"]):
        command = [sys.executable, "-m", "llm", *options, "-o", "temperature", "0", CAPITAL]
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "Paris" in said[0]
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(default_server, mode):
    package = pytest.importorskip("instructor", reason="instructor needs OpenAI's older client (test_clients_older.py)")
    import openai

    client = openai.OpenAI(base_url=f"{default_server.url}/v1", api_key="none", max_retries=0)
    City = city_type()
    answer = package.from_openai(client, mode=package.Mode[mode]).chat.completions.create(
        model="default", messages=QUESTION, response_model=City, max_tokens=100, temperature=0, max_retries=0
    )
    assert isinstance(answer, City)
