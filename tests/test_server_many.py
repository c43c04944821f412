"""Many users at once: each gets the answer that a lone user would, and nothing of anybody else's."""

from __future__ import annotations

import threading

import httpx
import pytest
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
