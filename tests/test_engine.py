"""Requests through the engine: alone or together, cached or not, stopped, shifted, saved."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from fake import HOST, AheadBackend
from layerlift.runtime.engine import Engine
from layerlift.runtime.errors import ContextFull, SessionError, UserError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.model import Model, model_sizes
from layerlift.runtime.models import architecture
from layerlift.runtime.request import Done, Prefill, Request, Token
from layerlift.runtime.sampler import Sampling
from layerlift.runtime.scheduler import plan_layers

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 17, 123, 42], [9], list(range(40, 90)), [1, 2, 3, 4, 5, 6, 7], [250, 250]]


@pytest.fixture(scope="module", params=["cpu", "ahead"])
def model(tiny, request):
    """On the CPU, and on a device that starts a step before the host knows the tokens of the one before."""
    if request.param == "cpu":
        loaded = Model.load(tiny("F32"), ngl=0, threads=2)
    else:
        file = open_gguf(tiny("F32"))
        sizes = model_sizes(file, architecture(file).read_config(file), "f32")
        plan = plan_layers(sizes, 0, 512, [], host=HOST)
        loaded = Model(file, plan, open_device=lambda device, **_: AheadBackend(device))
    with loaded:
        yield loaded


def test_steps_start_before_the_tokens_they_read_are_known_where_the_device_can(model, engine):
    (backend,) = model.backends
    before = getattr(backend, "ahead", 0)
    engine.submit(greedy(PROMPTS[0], 12)).result()
    assert getattr(backend, "ahead", 0) - before == (11 if isinstance(backend, AheadBackend) else 0)


@pytest.fixture
def engine(model):
    with Engine(model, context=256, batch=32, kv_dtype="f32") as running:
        yield running


def ids(completion):
    return [token.id for token in completion.tokens]


def greedy(tokens, n=12, **more):
    return Request(tokens, GREEDY, n, ignore_eos=True, **more)


@pytest.fixture(scope="module")
def alone(model):
    """What each prompt gives in an engine of its own, without any reuse."""
    answers = []
    for prompt in PROMPTS:
        with Engine(model, context=256, batch=512, kv_dtype="f32") as engine:
            answers.append(ids(engine.submit(greedy(prompt, cache_prompt=False)).result()))
    return answers


def test_batched_equals_alone(engine, alone):
    streams = [engine.submit(greedy(prompt)) for prompt in PROMPTS]
    assert [ids(stream.result()) for stream in streams] == alone


def test_cached_equals_uncached(engine, alone):
    for _ in range(2):
        for prompt, answer in zip(PROMPTS, alone, strict=True):
            assert ids(engine.submit(greedy(prompt)).result()) == answer
    again = engine.submit(greedy(PROMPTS[2])).result()
    assert again.timings.cached_tokens == len(PROMPTS[2]) - 1
    assert again.timings.prompt_tokens == 1


def test_going_on_from_an_answer_equals_one_long_answer(engine):
    whole = ids(engine.submit(greedy(PROMPTS[0], 20)).result())
    first = ids(engine.submit(greedy(PROMPTS[0], 8)).result())
    rest = engine.submit(greedy([*PROMPTS[0], *first], 12)).result()
    assert first + ids(rest) == whole
    assert rest.timings.cached_tokens >= len(PROMPTS[0]) + 7


def test_more_requests_than_slots_are_all_answered(model, alone):
    with Engine(model, context=256, slots=2, batch=16, kv_dtype="f32") as engine:
        streams = [engine.submit(greedy(prompt)) for prompt in PROMPTS * 3]
        assert [ids(stream.result()) for stream in streams] == alone * 3


def test_sequences_that_outgrow_the_cache_together_finish_one_after_the_other(model):
    with Engine(model, context=64, slots=3, batch=16, kv_dtype="f32") as engine:
        prompts = [[i, 7, 3] for i in range(3)]
        streams = [engine.submit(greedy(prompt, 50)) for prompt in prompts]
        together = [ids(stream.result()) for stream in streams]
    with Engine(model, context=64, slots=1, kv_dtype="f32") as engine:
        assert [ids(engine.submit(greedy(p, 50)).result()) for p in prompts] == together


def test_a_long_prompt_lets_others_go_on_between_its_chunks(model):
    told: list[str] = []

    def teller(name):
        return lambda event: told.append(name if isinstance(event, Token | Prefill) else "")

    with Engine(model, context=1024, batch=32, kv_dtype="f32") as engine:  # shifts, so that the first answer never ends
        other = engine.submit(Request([5, 6], GREEDY, ignore_eos=True, context_shift=True), teller("token"))
        while told.count("token") < 3:
            time.sleep(0.001)
        engine.submit(greedy([7 + i % 200 for i in range(240)], 1, cache_prompt=False), teller("chunk"))
        while "" not in told:
            time.sleep(0.001)
        other.cancel()
    chunks = [i for i, name in enumerate(told) if name == "chunk"][:-1]  # the last one is its only token
    assert len(chunks) >= 8  # of 32 tokens, the engine's largest step, and fewer where these take long
    assert all(told[i + 1] == "token" for i in chunks[:-1]), told


@pytest.mark.parametrize("fmt", ["Q4_1", "Q6_K", "Q8_0"])
def test_what_a_sequence_says_does_not_depend_on_its_neighbours_to_the_last_bit(tiny, fmt):
    prompts = [[(7 * i * j) % 290 + 5 for j in range(9 + 5 * i)] for i in range(4)]
    with (
        Model.load(tiny(fmt), ngl=0, threads=2) as model,
        Engine(model, context=512, slots=4) as engine,
    ):
        sampling = Sampling(temperature=0.0, n_probs=1)

        def answers(together: bool):
            requests = [Request(p, sampling, 12, ignore_eos=True, cache_prompt=False) for p in prompts]
            if together:
                done = [stream.result() for stream in [engine.submit(r) for r in requests]]
            else:
                done = [engine.submit(r).result() for r in requests]
            return [[(token.id, token.logprob) for token in each.tokens] for each in done]

        assert answers(together=True) == answers(together=False)


def test_events_come_in_order(engine):
    events = list(engine.submit(greedy(PROMPTS[2], 3)))
    prefills = [e for e in events if isinstance(e, Prefill)]
    assert [(p.done, p.total) for p in prefills] == [(32, 50), (50, 50)]
    assert [type(e) for e in events[-4:]] == [Token, Token, Token, Done]
    assert events[-1].reason == "length"
    assert events[-1].timings.generated_tokens == 3


def test_an_answer_ends_at_the_end_token_and_names_it(model, engine, alone):
    request = Request(PROMPTS[0], Sampling(temperature=0.0, logit_bias=((model.tokenizer.eos, 1e9),)))
    done = engine.submit(request).result()
    assert (done.reason, done.eog.id, done.text) == ("eos", model.tokenizer.eos, "")


def test_the_text_is_that_of_the_tokens_and_stops_at_a_stop_string(model, engine):
    whole = engine.submit(greedy(PROMPTS[0], 24)).result()
    assert whole.text == model.tokenizer.decode(ids(whole))
    stop = whole.text[5:8]
    cut = engine.submit(greedy(PROMPTS[0], 24, stop=(stop,))).result()
    assert (cut.reason, cut.stop) == ("stop", stop)
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_max_tokens_zero_only_fills_the_cache(engine):
    done = engine.submit(greedy(PROMPTS[2], 0)).result()
    assert (done.tokens, done.reason) == ((), "length")
    assert engine.submit(greedy(PROMPTS[2], 1)).result().timings.cached_tokens == 49


def test_a_seed_repeats_and_another_seed_differs(engine):
    def sample(seed):
        return ids(
            engine.submit(Request(PROMPTS[0], Sampling(temperature=1.5, seed=seed), 16, ignore_eos=True)).result()
        )

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)


def test_cancel_ends_the_stream_and_frees_the_rows(engine):
    stream = engine.submit(greedy(PROMPTS[0], -1))
    events = iter(stream)
    while not isinstance(next(events), Token):
        pass
    stream.cancel()
    last = list(events)[-1]
    assert isinstance(last, Done)
    assert last.reason == "cancelled"
    assert engine.submit(greedy(PROMPTS[1], 1)).result().reason == "length"


def test_a_full_context_ends_the_answer_or_shifts(engine):
    full = engine.submit(greedy(PROMPTS[0], -1)).result()
    assert full.reason == "context"
    assert len(full.tokens) + len(PROMPTS[0]) == engine.context + 1  # the last one is known but not evaluated
    shifted = engine.submit(greedy(PROMPTS[0], 600, context_shift=True, keep=4)).result()
    assert (shifted.reason, len(shifted.tokens)) == ("length", 600)
    assert ids(shifted)[: len(full.tokens)] == ids(full)


def test_a_prompt_longer_than_the_context_is_refused(engine):
    with pytest.raises(ContextFull, match="300 asked > 256"):
        engine.submit(greedy([1] * 300))


@pytest.mark.parametrize("tokens", [[], [300], [-1]])
def test_impossible_prompts_are_refused(engine, tokens):
    with pytest.raises(UserError):
        engine.submit(greedy(tokens))


def test_logprobs_of_the_prompt_are_those_of_each_token_given_the_ones_before(engine):
    request = Request(PROMPTS[3], Sampling(temperature=0.0, n_probs=2), 1, prompt_logprobs=True, ignore_eos=True)
    scored = engine.submit(request).result().prompt_logprobs
    assert [t.id for t in scored] == PROMPTS[3]
    assert scored[0].logprob is None
    for i in range(1, len(PROMPTS[3])):
        one = Request(PROMPTS[3][:i], Sampling(temperature=0.0, n_probs=300), 1, ignore_eos=True)
        logprobs = dict(engine.submit(one).result().tokens[0].top)
        assert scored[i].logprob == pytest.approx(logprobs[PROMPTS[3][i]], abs=1e-4)
        assert len(scored[i].top) == 2


def test_an_embedding_is_a_unit_vector_that_depends_on_the_text(engine):
    mean = [engine.submit(Request(p, pooling="mean")).result().embedding for p in PROMPTS]
    last = engine.submit(Request(PROMPTS[2], pooling="last")).result().embedding
    assert np.linalg.norm(mean, axis=1) == pytest.approx(1.0)
    assert not np.allclose(mean[0], mean[3], atol=1e-2)
    assert not np.allclose(mean[2], last, atol=1e-2)
    again = engine.submit(Request(PROMPTS[2], pooling="mean")).result().embedding
    assert np.allclose(mean[2], again, atol=1e-5)


def test_text_and_embeddings_share_a_step(engine, alone):
    streams = [engine.submit(greedy(p)) for p in PROMPTS]
    vectors = [engine.submit(Request(p, pooling="mean")) for p in PROMPTS]
    assert [ids(s.result()) for s in streams] == alone
    assert all(len(v.result().embedding) == 256 for v in vectors)


# -- sessions --


def test_save_and_load_equals_not_stopping(engine, tmp_path):
    whole = ids(engine.submit(greedy(PROMPTS[2], 20)).result())
    session = engine.session()
    first = ids(engine.submit(greedy(PROMPTS[2], 9, session=session)).result())
    session.save(tmp_path / "talk")
    other = engine.session()
    other.load(tmp_path / "talk")
    assert other.tokens == [*PROMPTS[2], *first[:-1]]  # the last token is known but not evaluated
    rest = engine.submit(greedy([*PROMPTS[2], *first], 11, session=other)).result()
    assert first + ids(rest) == whole
    assert rest.timings.prompt_tokens == 1


def test_a_session_goes_on_from_what_it_shares(engine, alone):
    session = engine.session()
    engine.submit(greedy([*PROMPTS[2], 1, 2, 3], 4, session=session)).result()
    back = engine.submit(greedy(PROMPTS[2], session=session)).result()
    assert ids(back) == alone[2]
    assert back.timings.cached_tokens == 49


def test_forget_drops_a_span_and_the_rest_goes_on(engine):
    session = engine.session()
    tokens = PROMPTS[2]
    engine.submit(greedy(tokens, 0, session=session)).result()
    session.forget(10, 20)
    assert session.tokens == tokens[:10] + tokens[20:]
    done = engine.submit(greedy([*tokens[:10], *tokens[20:], 7], 4, session=session)).result()
    assert done.timings.cached_tokens == 40
    # What was computed behind the dropped span is never offered to others.
    assert engine.submit(greedy([*tokens[:10], *tokens[20:]], 1)).result().timings.cached_tokens <= 10
    session.close()


def test_a_session_serves_one_request_at_a_time(engine):
    session = engine.session()
    running = engine.submit(greedy(PROMPTS[0], -1, session=session))
    while not isinstance(next(running), Token):
        pass
    with pytest.raises(UserError, match="busy"):
        engine.submit(greedy(PROMPTS[0], 1, session=session)).result()
    running.cancel()
    running.result()


def test_a_damaged_session_file_is_refused(engine, tmp_path):
    (tmp_path / "bad").write_bytes(b"not a session")
    session = engine.session()
    with pytest.raises(SessionError):
        session.load(tmp_path / "bad")
    assert session.tokens == []


# -- the engine itself --


def test_a_failing_step_fails_its_requests_and_the_engine_lives(model, alone):
    class Broken:
        config, tokenizer, new_cache = model.config, model.tokenizer, model.new_cache
        backends, head_backend = model.backends, model.head_backend
        fail = True

        def answer(self, step, draws):
            if self.fail:
                raise RuntimeError("device lost")
            return model.answer(step, draws)

    broken = Broken()
    with Engine(broken, context=256, kv_dtype="f32") as engine:  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="device lost"):
            engine.submit(greedy(PROMPTS[0])).result()
        broken.fail = False
        assert ids(engine.submit(greedy(PROMPTS[0])).result()) == alone[0]


def test_closing_cancels_what_runs_and_leaves_no_thread(model):
    engine = Engine(model, context=256, kv_dtype="f32")
    stream = engine.submit(greedy(PROMPTS[0], -1))
    next(stream)
    engine.close()
    assert list(stream)[-1].reason == "cancelled"
    assert not [t for t in threading.enumerate() if t.name == "layerlift-engine"]


def test_a_context_above_the_trained_one_is_cut_and_zero_means_all(model):
    for asked in (0, 1 << 20):
        with Engine(model, context=asked) as engine:
            assert engine.context == model.config.context
