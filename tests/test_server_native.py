"""llama-server's own routes, with its field names, and embeddings in both shapes."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from serving import serving


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny("F32"), alias="tiny") as running:
        yield running


def test_a_completion_has_llama_servers_fields(server):
    answer = server.post("/completion", prompt=[5, 17, 123], n_predict=6, ignore_eos=True, return_tokens=True)
    assert answer["stop"] is True
    assert answer["stop_type"] == "limit"
    assert answer["truncated"] is False
    assert (answer["tokens_predicted"], answer["tokens_evaluated"]) == (6, 3)
    assert len(answer["tokens"]) == 6
    assert answer["generation_settings"]["temperature"] == 0.0
    assert answer["timings"]["predicted_n"] == 6
    text = server.service.tokenizer.decode(answer["tokens"], special=False)
    assert answer["content"] == text


def test_a_stream_ends_with_the_whole_of_the_settings(server):
    asked = {"prompt": [5, 17, 123], "n_predict": 6, "ignore_eos": True}
    whole = server.post("/completion", **asked)["content"]
    with server.client.stream("POST", "/completion", json={**asked, "stream": True}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert "".join(event["content"] for event in events) == whole
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["stop_type"] == "limit"


def test_a_stop_word_is_named_and_left_out(server):
    whole = server.post("/completion", prompt=[5, 17, 123], n_predict=40, ignore_eos=True)["content"]
    word = whole[8:11]
    answer = server.post("/completion", prompt=[5, 17, 123], n_predict=40, ignore_eos=True, stop=[word])
    assert answer["content"] == whole[: whole.index(word)]
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", word)


def test_probabilities_come_with_each_token(server):
    answer = server.post("/completion", prompt=[5], n_predict=3, n_probs=4, ignore_eos=True)
    assert [len(entry["top_logprobs"]) for entry in answer["completion_probabilities"]] == [4, 4, 4]


def test_a_prompt_seen_before_is_cached_unless_told_not_to(server):
    prompt = [7, 7, 8, 8, 9, 9]
    server.post("/completion", prompt=prompt, n_predict=1)
    assert server.post("/completion", prompt=prompt, n_predict=1)["timings"]["cache_n"] == 5
    assert server.post("/completion", prompt=prompt, n_predict=1, cache_prompt=False)["timings"]["cache_n"] == 0


def test_texts_and_ids_mix_and_lists_are_many_prompts(server):
    mixed = server.post("/completion", prompt=[5, "ab"], n_predict=1)
    assert mixed["tokens_evaluated"] == 1 + len(server.service.tokenizer.encode("ab", add_special=False))
    assert [a["index"] for a in server.post("/completion", prompt=["ab", [5, 6]], n_predict=1)] == [0, 1]
    for prompt in (None, [], {}, [[]], [None], 5):
        assert "prompt" in server.post("/completion", 400, prompt=prompt)["error"]["message"]


def test_a_full_context_ends_or_shifts_as_asked(server):
    prompt = [5, 17] * 200
    ended = server.post("/completion", prompt=prompt, n_predict=300, ignore_eos=True)
    assert ended["truncated"] is True
    assert ended["tokens_predicted"] < 300
    shifted = server.post("/completion", prompt=prompt, n_predict=300, ignore_eos=True, context_shift=True)
    assert shifted["tokens_predicted"] == 300


def test_embeddings_have_length_one_in_every_shape(server):
    (plain,) = server.post("/v1/embeddings", input="ab")["data"]
    assert np.isclose(np.linalg.norm(plain["embedding"]), 1, atol=1e-5)
    coded = server.post("/v1/embeddings", input="ab", encoding_format="base64")["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(coded), "<f4"), plain["embedding"], atol=1e-6)
    (own,) = server.post("/embedding", content="ab")
    assert np.allclose(own["embedding"][0], plain["embedding"], atol=1e-6)
    several = server.post("/v1/embeddings", input=["ab", [5, 6]])
    assert [each["index"] for each in several["data"]] == [0, 1]
    assert several["usage"]["prompt_tokens"] == several["usage"]["total_tokens"] > 2
    assert "input" in server.post("/v1/embeddings", 400)["error"]["message"]


def test_a_grammar_and_a_schema_hold_the_answer(server):
    yes = server.post("/completion", prompt=[5], n_predict=20, grammar='root ::= "ab" | "ba"')["content"]
    assert yes in ("ab", "ba")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    body = {"prompt": [5], "n_predict": 40, "json_schema": schema}
    assert json.loads(server.post("/completion", **body)["content"])["a"] in (1, 2)
