"""The sampler: its settings, its order, its state, and what it costs."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from layerlift.runtime.errors import BackendError, GrammarError, UserError
from layerlift.runtime.sampler import DEFAULT_ORDER, Sampled, Sampler, Sampling, parse_samplers, parse_sampling_seq
from sampling import INF, VOCAB, chosen, logits, softmax

# -- names --


def test_names_follow_llama_cpp():
    everything = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"
    assert parse_samplers(everything) == DEFAULT_ORDER
    assert parse_samplers("top-k;typical_p;TYPICAL;typ;topp;nucleus;min-p;temp;") == (
        "top_k", "typ_p", "typ_p", "typ_p", "top_p", "top_p", "min_p", "temperature",
    )  # fmt: skip
    assert parse_sampling_seq("edskypmxt") == DEFAULT_ORDER
    assert parse_sampling_seq("tk") == ("temperature", "top_k")


@pytest.mark.parametrize("call", [lambda: parse_samplers("top_k;foo"), lambda: parse_sampling_seq("kz")])
def test_unknown_names_are_refused(call):
    with pytest.raises(UserError, match=r"'(foo|z)' is unknown"):
        call()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan), ("temperature", "1"), ("top_p", 1.5), ("top_p", -0.1), ("min_p", 2),
        ("typical_p", -1), ("repeat_penalty", 0), ("repeat_penalty", INF), ("repeat_last_n", -2), ("mirostat", 3),
        ("mirostat", 1.0), ("mirostat_tau", -1), ("n_probs", -2), ("min_keep", -1), ("seed", 1.5), ("seed", True),
        ("top_k", None), ("logit_bias", ((1, math.nan),)), ("logit_bias", ((1, INF),)), ("logit_bias", ((-1, 0.0),)),
        ("logit_bias", 5), ("logit_bias", ((1,),)), ("samplers", ("nope",)), ("samplers", (1,)),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(field, value):
    with pytest.raises(UserError, match=f"^{field}"):
        Sampling(**{field: value})


def test_settings_take_other_spellings():
    sampling = Sampling(samplers="temp;top-k", logit_bias={3: -INF})  # type: ignore[arg-type]
    assert sampling.samplers == ("temperature", "top_k")
    assert sampling.logit_bias == ((3, -INF),)


# -- choosing --


def test_temperature_zero_takes_the_likeliest_and_the_lower_id_of_two():
    values = logits()
    values[[40, 700]] = 99
    for temperature in (0, -1, 0.0):
        assert Sampler(Sampling(temperature=temperature)).sample(values).id == 40


def test_sampling_leaves_the_logits_as_they_are():
    values = logits()
    before = values.copy()
    values.flags.writeable = False
    for settings in ({}, {"mirostat": 1}, {"mirostat": 2}, {"repeat_penalty": 2.0, "logit_bias": ((1, 5.0),)}):
        Sampler(Sampling(n_probs=3, **settings), context=[1, 2, 3]).sample(values)
    assert np.array_equal(values, before)


def test_draws_follow_the_distribution():
    values = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    n = 4000
    found = np.bincount(chosen(Sampling(temperature=1, top_p=1, min_p=0, seed=1), values, n), minlength=4) / n
    assert np.abs(found - [0.5, 0.25, 0.125, 0.125]).max() < 0.02, found


def test_temperature_sharpens():
    values = np.log(np.array([0.6, 0.4], np.float32))
    n = 4000
    found = np.mean(chosen(Sampling(temperature=0.5, top_p=1, min_p=0, seed=1), values, n) == 0)
    assert abs(found - 0.36 / 0.52) < 0.015
    assert set(chosen(Sampling(temperature=1e-38, top_p=1, min_p=0), values, 50)) == {0}


def test_the_same_seed_draws_the_same_tokens():
    values = logits(scale=0.1)
    for settings in ({}, {"mirostat": 1}, {"mirostat": 2}, {"top_k": 0}):
        first = chosen(Sampling(seed=7, **settings), values, 50).tolist()
        assert chosen(Sampling(seed=7, **settings), values, 50).tolist() == first
        assert chosen(Sampling(seed=8, **settings), values, 50).tolist() != first
    assert Sampler(Sampling(seed=-5)).seed == 2**64 - 5
    assert Sampler(Sampling()).seed != Sampler(Sampling(seed=-1)).seed


def test_the_order_of_samplers_matters_as_given():
    # At temperature 3 the second token passes min-p; before it, it does not.
    values = np.log(np.array([0.9, 0.1], np.float32))
    before = Sampling(temperature=3, min_p=0.3, samplers=("min_p", "temperature"), seed=1)
    after = Sampling(temperature=3, min_p=0.3, samplers=("temperature", "min_p"), seed=1)
    assert set(chosen(before, values, 200)) == {0}
    assert set(chosen(after, values, 200)) == {0, 1}


def test_a_sampler_left_out_does_nothing():
    values = logits(scale=0.01)
    assert set(chosen(Sampling(top_k=1, seed=1), values, 20)) == {int(values.argmax())}
    assert len(set(chosen(Sampling(top_k=1, samplers=(), seed=1), values, 20))) > 1


def test_penalties_count_the_last_tokens_only():
    values = np.array([1.0, 1.1, 0.0], np.float32)

    def greedy(last_n, context):
        sampling = Sampling(temperature=0, presence_penalty=1.0, repeat_last_n=last_n)
        return Sampler(sampling, context=context)

    assert greedy(2, [1, 2, 2]).sample(values).id == 1  # token 1 is too long ago
    assert greedy(3, [1, 2, 2]).sample(values).id == 0
    assert greedy(-1, [1] + [2] * 1000).sample(values).id == 0
    assert greedy(0, [1]).sample(values).id == 1
    sampler, found = greedy(2, []), []
    for token in (1, 2, 2):
        sampler.accept(token)
        found.append(sampler.sample(values).id)
    assert found == [0, 0, 1]


def test_a_bias_of_minus_infinity_forbids_in_every_mode():
    values = logits()
    best = int(values.argmax())
    for settings in ({"temperature": 0}, {"top_k": 1}, {"mirostat": 1}, {"mirostat": 2}, {"samplers": ()}):
        sampling = Sampling(logit_bias=((best, -INF),), seed=1, **settings)
        assert best not in chosen(sampling, values, 50)


def test_biases_that_add_up_to_more_than_a_float_force_or_forbid():
    values = np.zeros(5, np.float32)
    for settings in ({"temperature": 0.0}, {}, {"n_probs": 2}, {"mirostat": 2}, {"repeat_penalty": 1000.0}):
        forced = Sampling(seed=1, logit_bias=((2, 3e38), (2, 3e38)), **settings)
        assert Sampler(forced, context=[2]).sample(values).id == 2
        forbidden = Sampling(seed=1, logit_bias=tuple((i, -1e300) for i in (0, 1, 3, 4)), **settings)
        assert Sampler(forbidden).sample(values).id == 2


def test_a_bias_can_force_and_an_impossible_one_is_an_error():
    values = logits(n=4)
    assert Sampler(Sampling(logit_bias=((2, 1000.0),))).sample(values).id == 2
    nothing = tuple((i, -INF) for i in range(4))
    for temperature in (0, 1):
        with pytest.raises(UserError, match="leaves no token"):
            Sampler(Sampling(logit_bias=nothing, temperature=temperature)).sample(values)
        with pytest.raises(UserError, match="outside the vocabulary of 4"):
            Sampler(Sampling(logit_bias=((4, 1.0),), temperature=temperature)).sample(values)


def test_greedy_says_when_the_backend_may_choose():
    assert Sampler(Sampling(temperature=0)).greedy
    assert Sampler(Sampling(temperature=0, repeat_penalty=1.1, repeat_last_n=0)).greedy
    for settings in (
        {"temperature": 0.1}, {"repeat_penalty": 1.1}, {"n_probs": 0}, {"logit_bias": ((1, 1.0),)},
        {"frequency_penalty": 0.1}, {"presence_penalty": -0.1},
    ):  # fmt: skip
        assert not Sampler(Sampling(**{"temperature": 0, **settings})).greedy, settings


def test_log_probabilities_are_the_models_own():
    values = logits()
    expected = np.log(softmax(values))
    sampling = Sampling(temperature=0, n_probs=3, logit_bias=((5, 100.0),), repeat_penalty=1.5)
    found = Sampler(sampling, context=[1, 2]).sample(values)
    order = np.argsort(-values)[:3]
    assert found.id == 5
    assert found.logprob == pytest.approx(expected[5], abs=1e-5)
    assert [i for i, _ in found.top] == order.tolist()
    assert [p for _, p in found.top] == pytest.approx(expected[order], abs=1e-5)
    assert Sampler(Sampling(n_probs=0)).sample(values).top == ()
    assert len(Sampler(Sampling(n_probs=9999)).sample(values).top) == VOCAB
    assert Sampler(Sampling()).sample(values).logprob is None
    assert Sampled(3) == Sampled(3, None, ())


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("settings", [{"temperature": 0}, {}, {"mirostat": 2}, {"top_k": 0}])
def test_broken_logits_are_an_error_that_names_them(bad, settings):
    values = logits()
    values[123] = bad
    with pytest.raises(BackendError, match=rf"{bad} as the logit of token 123"):
        Sampler(Sampling(**settings)).sample(values)
    with pytest.raises(BackendError, match="-inf"):
        Sampler(Sampling(**settings)).sample(np.full(8, -INF, np.float32))


# -- grammar, by a stand-in --


class FakeGrammar:
    """Permits a set of tokens and counts what it is asked."""

    def __init__(self, permitted):
        self.permitted, self.masks, self.accepted = set(permitted), 0, []

    def matcher(self):
        return self

    def permits(self, token):
        return token in self.permitted

    def allow(self, values):
        self.masks += 1
        out = np.full_like(values, -INF)
        out[list(self.permitted)] = values[list(self.permitted)]
        return out

    def accept(self, token):
        self.accepted.append(token)


def test_a_greedy_choice_masks_only_when_the_grammar_rejects_it():
    values = logits()
    best = int(values.argmax())
    agreeing, refusing = FakeGrammar({best, 3}), FakeGrammar({3, 4})
    assert Sampler(Sampling(temperature=0, grammar=agreeing)).sample(values).id == best  # type: ignore[arg-type]
    assert agreeing.masks == 0
    found = Sampler(Sampling(temperature=0, grammar=refusing)).sample(values).id  # type: ignore[arg-type]
    assert found == max((3, 4), key=lambda i: values[i])
    assert refusing.masks == 1


def test_a_draw_under_a_grammar_truncates_what_is_permitted():
    # The permitted tokens are not among the likeliest two: truncation has to come after the mask.
    values = np.array([9, 8, 1, 0.5, 0], np.float32)
    sampling = Sampling(temperature=1, top_k=2, top_p=1, min_p=0, seed=1, grammar=FakeGrammar({2, 3, 4}))  # type: ignore[arg-type]
    n = 1500
    found = np.bincount(chosen(sampling, values, n), minlength=5) / n
    expected = softmax(values[2:4])
    assert np.abs(found[2:4] - expected).max() < 0.03
    assert found[[0, 1, 4]].sum() == 0


def test_a_grammar_that_permits_nothing_is_an_error():
    for temperature in (0, 1):
        with pytest.raises(GrammarError, match="no token"):
            Sampler(Sampling(temperature=temperature, grammar=FakeGrammar(()))).sample(logits())  # type: ignore[arg-type]


def test_accepted_tokens_reach_the_grammar():
    grammar = FakeGrammar({1})
    Sampler(Sampling(grammar=grammar)).accept(1)  # type: ignore[arg-type]
    assert grammar.accepted == [1]


# -- cost --


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "milliseconds"), [({}, 1.0), ({"temperature": 0}, 0.15)])
def test_a_choice_from_a_128k_vocabulary_is_cheap(settings, milliseconds):
    values = logits(n=128_256)
    sampler = Sampler(Sampling(seed=1, **settings))
    sampler.sample(values)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        sampler.sample(values)
        times.append(time.perf_counter() - start)
    assert np.median(times) * 1e3 <= milliseconds
