"""OpenAI's routes over a tiny random model: shapes, streams, errors that name the field."""

from __future__ import annotations

import pytest
from serving import serving

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny("F32"), alias="tiny") as running:
        yield running


def test_a_chat_answers_with_text_usage_and_timings(server):
    answer = server.post("/v1/chat/completions", messages=HI, max_tokens=5, ignore_eos=True)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert answer["timings"]["predicted_n"] == 5


def test_a_stream_says_what_the_whole_answer_says(server):
    asked = {"messages": HI, "max_tokens": 12, "ignore_eos": True}
    whole = server.post("/v1/chat/completions", **asked)["choices"][0]["message"]["content"]
    events = server.stream("/v1/chat/completions", **asked, stream_options={"include_usage": True})
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == whole
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-2]["choices"][0]["delta"] == {}
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 12
    assert len({event["id"] for event in events}) == 1


def test_logprobs_name_each_token_and_its_rivals(server):
    answer = server.post(
        "/v1/chat/completions", messages=HI, max_tokens=3, ignore_eos=True, logprobs=True, top_logprobs=2
    )
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    for token in content:
        assert len(token["top_logprobs"]) == 2
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]  # temperature 0 takes the likeliest


def test_several_answers_have_seeds_of_their_own(server):
    asked = {"messages": HI, "max_tokens": 8, "n": 3, "seed": 7, "temperature": 5, "top_k": 0, "ignore_eos": True}
    first, again = (server.post("/v1/chat/completions", **asked)["choices"] for _ in range(2))
    texts = [choice["message"]["content"] for choice in first]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in again]
    streamed = ["", "", ""]
    for event in server.stream("/v1/chat/completions", **asked):
        streamed[event["choices"][0]["index"]] += event["choices"][0]["delta"].get("content") or ""
    assert streamed == texts


def test_a_completion_with_echo_scores_its_prompt(server):
    asked = {"prompt": [5, 17, 123, 42], "max_tokens": 1, "echo": True, "logprobs": 2, "temperature": 0}
    (choice,) = server.post("/v1/completions", **asked, ignore_eos=True)["choices"]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 5
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())
    assert logprobs["text_offset"][0] == 0


def test_places_in_the_text_are_those_of_characters_whole_and_streamed(server):
    tokenizer = server.service.tokenizer
    ids = [next(i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) == bytes([b])) for b in "aé€b".encode()]
    asked = {"prompt": ids, "max_tokens": 6, "echo": True, "logprobs": 1, "ignore_eos": True}
    (whole,) = server.post("/v1/completions", **asked)["choices"]
    logprobs, text = whole["logprobs"], whole["text"]
    assert text.startswith("aé€b")
    assert logprobs["text_offset"][:8] == [0, 1, 1, 2, 2, 2, 3, 4]
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert logprobs["text_offset"][-1] < len(text)
    events = [event["choices"][0] for event in server.stream("/v1/completions", **asked)]
    assert "".join(event["text"] for event in events) == text
    *generated, prompt = [event["logprobs"] for event in events if event["logprobs"]]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [*prompt[name], *(value for each in generated for value in each[name])] == logprobs[name]


def test_a_prompt_of_text_is_counted_without_the_marks_that_tokens_add(server):
    asked = {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 0}
    (choice,) = server.post("/v1/completions", **asked)["choices"]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["text_offset"][-1] == 1
    assert choice["logprobs"]["text_offset"][0] == 0
    assert len(choice["logprobs"]["tokens"]) == len(server.post("/tokenize", prompt="ab")["tokens"])


def test_the_token_that_ends_an_answer_is_scored_with_echo(server):
    end = server.service.tokenizer.eos
    asked = {"prompt": [5, 17], "max_tokens": 1, "echo": True, "logprobs": 1, "logit_bias": {str(end): 100}}
    answer = server.post("/v1/completions", **asked)
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", 0)
    assert len(choice["logprobs"]["token_logprobs"]) == 3
    assert choice["logprobs"]["tokens"][-1] == server.service.tokenizer.piece(end).decode()
    assert choice["logprobs"]["token_logprobs"][-1] < 0
    assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])
    last = server.stream("/v1/completions", **asked)[-1]["choices"][0]
    assert last["logprobs"]["token_logprobs"] == choice["logprobs"]["token_logprobs"]
    assert server.post("/v1/completions", **{**asked, "echo": False})["choices"][0]["logprobs"]["tokens"] == []
    assert server.stream("/v1/completions", **{**asked, "echo": False})[-1]["choices"][0]["logprobs"] is None


def test_the_best_of_several_answers_are_the_likeliest(server):
    asked = {"prompt": [5], "max_tokens": 6, "seed": 7, "temperature": 3, "top_k": 0, "ignore_eos": True}

    def likelihood(choice) -> float:
        return sum(choice["logprobs"]["token_logprobs"]) / 6

    all = server.post("/v1/completions", **asked, n=5, logprobs=0)
    best = server.post("/v1/completions", **asked, n=2, best_of=5)
    wanted = sorted(all["choices"], key=likelihood, reverse=True)[:2]
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in wanted]
    assert [(choice["index"], choice["logprobs"]) for choice in best["choices"]] == [(0, None), (1, None)]
    assert best["usage"] == all["usage"]
    for wrong in ({"n": 2, "best_of": 1}, {"best_of": 2, "stream": True}):
        assert server.post("/v1/completions", 400, **asked, **wrong)["error"]["param"] == "best_of"


def test_prompts_in_a_list_are_answered_in_order(server):
    alone = [
        server.post("/v1/completions", prompt=p, max_tokens=4, ignore_eos=True)["choices"][0]["text"]
        for p in ([5, 17], [9, 1, 1])
    ]
    together = server.post("/v1/completions", prompt=[[5, 17], [9, 1, 1]], max_tokens=4, ignore_eos=True)
    assert [choice["text"] for choice in together["choices"]] == alone
    assert [choice["index"] for choice in together["choices"]] == [0, 1]


def test_logit_bias_forces_a_token(server):
    wanted = server.service.tokenizer.piece(123).decode("utf-8", "replace")
    for bias in ({"123": 100}, [[123, 100]]):
        answer = server.post("/v1/completions", prompt=[5], max_tokens=1, logit_bias=bias, logprobs=0)
        assert answer["choices"][0]["logprobs"]["tokens"] == [wanted]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": HI, "temperature": "hot"}, "temperature"),
        ({"messages": HI, "top_p": 2}, "top_p"),
        ({"messages": HI, "n": 0}, "'n'"),
        ({"messages": HI, "max_tokens": -5}, "max_tokens"),
        ({"messages": HI, "top_logprobs": 3}, "logprobs"),
        ({"messages": HI, "logit_bias": {"999999": 1}}, "logit_bias"),
        ({"messages": HI, "logit_bias": 3}, "logit_bias"),
        ({"messages": HI, "stop": 5}, "stop"),
        ({"messages": HI, "tools": [{}]}, "tools[0]"),
        ({"messages": HI, "tool_choice": 5}, "tool_choice"),
        ({"messages": HI, "response_format": {"type": "xml"}}, "response_format"),
        ({"messages": HI, "grammar": "root ::= ("}, "grammar"),
        (
            {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}},
            "schema",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_is_400_and_names_the_field(server, body, words, stream):
    error = server.post("/v1/chat/completions", 400, **body, stream=stream)["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == 400


def test_what_is_no_json_is_400(server):
    for content in (b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000):
        answer = server.client.post("/v1/chat/completions", content=content)
        assert answer.status_code == 400, content[:10]


def test_null_fields_are_absent(server):
    fields = ("temperature", "top_p", "n", "stop", "tools", "tool_choice", "seed", "logprobs", "response_format")
    server.post("/v1/chat/completions", messages=HI, max_tokens=1, **dict.fromkeys(fields))


def test_a_prompt_longer_than_the_context_is_400_with_the_counts(server):
    error = server.post("/v1/completions", 400, prompt=[5] * 600)["error"]
    assert error["type"] == "exceed_context_size_error"
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (600, 512)


def test_the_model_is_listed(server):
    (model,) = server.get("/v1/models")["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert server.get("/v1/models/tiny")["id"] == "tiny"
    assert server.get("/v1/models/other", 404)["error"]["type"] == "not_found_error"


def test_unknown_paths_and_methods_have_the_shape_of_errors(server):
    assert server.get("/v1/nothing", 404)["error"]["code"] == 404
    assert server.get("/v1/chat/completions", 405)["error"]["code"] == 405


def test_tokens_go_to_text_and_back(server):
    ids = server.post("/tokenize", content="ab")["tokens"]
    assert server.post("/detokenize", tokens=ids)["content"] == "ab"
    assert server.post("/tokenize", content="ab", with_pieces=True)["tokens"][0]["id"] == ids[0]
    assert "tokens" in server.post("/detokenize", 400, tokens=[10**6])["error"]["message"]
    assert "content" in server.post("/tokenize", 400)["error"]["message"]


def test_the_template_is_applied(server):
    assert "Hi" in server.post("/apply-template", messages=HI)["prompt"]


def test_props_and_slots_and_metrics_tell_the_state(server):
    props = server.get("/props")
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["total_slots"] == 4
    assert [slot["is_processing"] for slot in server.get("/slots")] == [False] * 4
    text = server.client.get("/metrics").text
    assert "llamacpp:prompt_tokens_total" in text
    assert 'layerlift:time_to_first_token_seconds_bucket{le="+Inf"}' in text
