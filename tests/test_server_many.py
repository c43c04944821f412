"""Many users at once: each gets the answer that a lone user would, and nothing of anybody else's."""

from __future__ import annotations

import threading

import httpx
import pytest
from layerlift.runtime.request import Request
from layerlift.runtime.sampler import Sampling
from serving import serving

CLIENTS, TURNS, TOKENS = 12, 2, 10


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny("F32"), alias="tiny", slots=4, context=2048) as running:
        yield running


def prompt_of(client: int, turn: int) -> list[int]:
    """Token ids with a canary at the front, so that no two prompts share a prefix beyond it."""
    return [7 + client, 40 + turn, *((client * 37 + i * 11 + turn) % 250 + 5 for i in range(5 + client * 3))]


def ask(server, prompt: list[int], *, stream: bool) -> str:
    asked = {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
    if not stream:
        return server.post("/v1/completions", **asked)["choices"][0]["text"]
    return "".join(event["choices"][0]["text"] for event in server.stream("/v1/completions", **asked))


def test_answers_at_temperature_0_are_those_of_a_lone_user(server):
    prompts = [prompt_of(client, turn) for client in range(CLIENTS) for turn in range(TURNS)]
    alone = {tuple(prompt): ask(server, prompt, stream=False) for prompt in prompts}
    assert len(set(alone.values())) > CLIENTS  # the answers differ, so that a mix-up would show
    wrong: list[str] = []

    def work(client: int) -> None:
        for turn in range(TURNS):
            prompt = prompt_of(client, turn)
            try:
                text = ask(server, prompt, stream=bool((client + turn) % 2))
            except BaseException as error:
                wrong.append(repr(error))
                return
            if text != alone[tuple(prompt)]:
                wrong.append(f"client {client}, turn {turn}: {text!r} is not {alone[tuple(prompt)]!r}")

    threads = [threading.Thread(target=work, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    server.wait_idle()


def test_a_client_that_leaves_frees_its_slot_and_changes_nobodys_answer(server):
    prompt = prompt_of(1, 1)
    alone = ask(server, prompt, stream=False)
    endless = {"prompt": [5, 6, 7], "max_tokens": 2000, "ignore_eos": True, "stream": True, "logprobs": 0}
    for _ in range(3):
        with server.client.stream("POST", "/v1/completions", json=endless) as answer:
            lines = answer.iter_lines()  # kept, for a stream whose iterator is dropped is closed
            while not next(lines).startswith("data: "):
                pass
            assert ask_elsewhere(server, prompt) == alone
        server.wait_idle(2)


def ask_elsewhere(server, prompt: list[int]) -> str:
    """Asks on a connection of its own, while the server's client is busy with a stream."""
    asked = {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60, trust_env=False)
    return answer.json()["choices"][0]["text"]


def test_more_than_may_wait_are_refused_with_when_to_come_back(tiny):
    with serving(tiny("F32"), slots=1, queue=0, context=4096) as server:
        endless = {"prompt": [5, 6], "max_tokens": 4000, "ignore_eos": True, "stream": True, "logprobs": 0}
        with server.client.stream("POST", "/v1/completions", json=endless) as answer:
            lines = answer.iter_lines()  # kept, for a stream whose iterator is dropped is closed
            while not next(lines).startswith("data: "):
                pass
            refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}, trust_env=False)
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        server.wait_idle()
        assert server.post("/v1/completions", prompt=[5], max_tokens=1)["usage"]["completion_tokens"] == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_64_clients_with_20_requests_each_get_their_own_answers(tiny):
    from layerlift.bench import clients

    prompts = [f"{i * 7919 % 1280:04d} of ticket {i}" for i in range(64 * 20)]
    with serving(tiny("Q4_1"), slots=4, context=2048) as server:
        run = clients.run(server.url, prompts, 64, 6)
        server.wait_idle()
    with serving(tiny("Q4_1"), slots=1, context=2048) as server:  # which finds nothing in the cache
        engine = server.service.engine
        encode, greedy = engine.model.tokenizer.encode, Sampling(temperature=0.0)
        alone = {p: engine.submit(Request(encode(p), greedy, 6, ignore_eos=True)).result().text for p in prompts}
    assert run.failed == []
    assert len(set(alone.values())) > 200  # the answers differ, so that a mix-up would show
    assert len(run.answers) == len(prompts)
    assert [p for p in prompts if run.answers[p].text != alone[p]] == []


def test_a_request_that_takes_too_long_is_ended(tiny):
    with serving(tiny("F32"), slots=1, context=4096, timeout=0.1) as server:
        failed = server.post("/v1/completions", 504, prompt=[5, 6], max_tokens=4000, ignore_eos=True)
        assert failed["error"]["type"] == "timeout_error"
        server.wait_idle()


def test_a_prompt_longer_than_the_context_names_both_counts(server):
    error = server.post("/v1/completions", 400, prompt=[5] * 3000)["error"]
    assert error["type"] == "exceed_context_size_error"
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (3000, 2048)


def test_a_full_context_is_shifted_on_request_and_ends_the_answer_otherwise(tiny):
    with serving(tiny("F32"), slots=1, context=64) as server:
        asked = {"prompt": [5] * 40, "max_tokens": 60, "ignore_eos": True}
        cut = server.post("/v1/completions", **asked)
        assert (cut["usage"]["completion_tokens"], cut["choices"][0]["finish_reason"]) == (25, "length")
        shifted = server.post("/v1/completions", **asked, context_shift=True)
        assert shifted["usage"]["completion_tokens"] == 60


def test_a_stream_begins_before_its_prompt_is_read(server):
    asked = {"prompt": [5 + i % 250 for i in range(1500)], "max_tokens": 1, "stream": True, "return_progress": True}
    with server.client.stream("POST", "/v1/completions", json={**asked, "cache_prompt": False}) as answer:
        raw = answer.iter_raw()
        first = next(raw)
        rest = b"".join(raw)
    assert first == b": ping\n\n"
    assert b"prompt_progress" in rest


def test_a_silent_stream_is_kept_alive_by_comments(server, monkeypatch):
    from layerlift.runtime.server import wire

    monkeypatch.setattr(wire, "PING_SECONDS", 0.02)
    blocking = [threading.Thread(target=ask, args=(server, [7] * 1900), kwargs={"stream": False}) for _ in range(4)]
    for thread in blocking:
        thread.start()
    with server.client.stream(
        "POST", "/v1/completions", json={"prompt": [5, 6], "max_tokens": 1, "stream": True}
    ) as it:
        received = b"".join(it.iter_raw())
    for thread in blocking:
        thread.join()
    assert received.count(b": ping\n\n") > 1


def test_the_times_to_and_between_tokens_are_counted(server):
    def counts() -> dict[str, int]:
        lines = server.client.get("/metrics").text.splitlines()
        return {line.split()[0]: int(line.split()[1]) for line in lines if "_count " in line}

    before = counts()
    server.post("/v1/completions", prompt=[5, 6, 7], max_tokens=5, ignore_eos=True)
    added = {name: counts()[name] - before[name] for name in before}
    assert added == {"layerlift:time_to_first_token_seconds_count": 1, "layerlift:inter_token_seconds_count": 4}
