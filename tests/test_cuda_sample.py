"""Sampling on the device, run on the CPU by the emulator, has the distribution of runtime/sampler.py."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import Emulator, prelude, read_only
from layerlift.backends.cuda_kernels import SLICE, sample_kept_shape, sample_text, sampling_ready
from layerlift.backends.draw import Draw, packed
from layerlift.runtime import samplers

SMALL = 64  # logits of a slice, where many draws are wanted


@pytest.fixture(scope="module")
def emulator():
    with Emulator(sample_text(prelude=prelude())) as e:
        yield e


def sample(e, logits, settings, draws, slice_size=SLICE):
    """The tokens of one launch of both kernels; `draws` are pairs of a seed and a number."""
    tokens, vocabulary = logits.shape
    kept = np.full(sample_kept_shape(tokens, vocabulary, slice_size), -1, np.int64)
    own = read_only(packed([Draw(*settings, seed, number) for seed, number in draws]))
    picked, threads, slices = np.full(tokens, -9, np.int32), slice_size // 2, kept.shape[1]
    e.launch("sample_slices", (slices, tokens), threads, read_only(logits), own, kept, vocabulary)
    e.launch("sample_pick", (tokens, 1), threads, read_only(kept), own, picked, slices)
    return picked


def expected(logits, temperature, top_k, top_p, min_p):
    """Probabilities of every token, by the steps of the CPU's sampler in their default order."""
    found = np.arange(logits.size, dtype=np.int32), logits
    found = samplers.top_k(*found, top_k)
    found = samplers.top_p(*found, top_p)
    found = samplers.min_p(*found, min_p)
    ids, left = samplers.temperature(*found, temperature)
    out = np.zeros(logits.size)
    out[ids] = samplers.softmax(left)
    return out


@pytest.mark.parametrize(
    "settings",
    [(0.8, 40, 0.95, 0.05), (1.5, 5, 1.0, 0.0), (0.7, 64, 0.6, 0.0), (1.0, 20, 1.0, 0.2), (0.9, 0, 1.0, 0.0)],
    ids=["defaults", "top-k", "top-p", "min-p", "all"],
)
def test_draws_have_the_distribution_of_the_cpu_sampler(settings):
    rng, draws, vocabulary = np.random.default_rng(5), 1200, 150
    logits = (2 * rng.standard_normal(vocabulary)).astype(np.float32)
    p = expected(logits, *settings)
    with Emulator(sample_text(SMALL, prelude=prelude())) as e:
        picked = sample(e, np.tile(logits, (draws, 1)), settings, [(7, n) for n in range(draws)], SMALL)
    counts = np.bincount(picked, minlength=vocabulary)
    assert not counts[p == 0].any(), "a token that the settings exclude was drawn"
    common = p * draws >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(p[common], p[~common].sum()) * draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi_squared, degrees = ((observed - wanted) ** 2 / wanted).sum(), len(wanted) - 1
    # Wilson and Hilferty's approximation: beyond 4.5 deviations once in 300,000 seeds, and this seed is fixed.
    z = ((chi_squared / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / np.sqrt(2 / (9 * degrees))
    assert z < 4.5, f"chi² {chi_squared:.1f} with {degrees} degrees of freedom"


def test_temperature_0_takes_the_lowest_of_the_likeliest(emulator):
    logits = np.random.default_rng(1).standard_normal((3, 5000)).astype(np.float32)
    logits[0, [4000, 77, 1023, 1024]] = 9.0
    logits[1, 4999] = 9.0
    np.testing.assert_array_equal(sample(emulator, logits, (0, 40, 0.9, 0.1), [(1, 0)] * 3), logits.argmax(-1))


def test_the_likeliest_come_from_one_slice_or_from_all(emulator):
    logits = np.full((2, 70 * SLICE - 3), -20.0, np.float32)
    logits[0, 2 * SLICE : 2 * SLICE + 64] = 5.0
    logits[1, np.arange(64) * SLICE + 9] = 5.0
    picked = sample(emulator, np.repeat(logits, 4, axis=0), (1.0, 64, 1.0, 0.0), [(i, i) for i in range(8)])
    assert all(2 * SLICE <= t < 2 * SLICE + 64 for t in picked[:4])
    assert all(t % SLICE == 9 for t in picked[4:])
    assert len(set(picked)) > 4


def test_tokens_at_minus_infinity_never_come_and_broken_logits_are_reported(emulator):
    logits = np.full((4, 1100), -np.inf, np.float32)
    logits[0, 1050] = -3.0
    logits[2] = 0.0
    logits[2, 1099] = np.nan
    logits[3, 5] = np.inf
    for settings in ((0.8, 40, 0.95, 0.05), (1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0)):
        np.testing.assert_array_equal(sample(emulator, logits, settings, [(1, 2)] * 4), [1050, -1, -1, -1])


def test_philox_gives_the_published_numbers():
    """Known answers of Random123's philox4x32-10, through a kernel of its own."""
    body = """
KERNEL(32)
known(GLOBAL int *words, i64 seed) {
  if (THREAD) return;
  u32 counter[4] = {(u32)words[0], (u32)words[1], (u32)words[2], (u32)words[3]};
  philox(counter, (u64)seed);
  for (int i = 0; i < 4; i++) words[i] = (int)counter[i];
}
"""
    text = sample_text(prelude=prelude()) + body
    known = [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ]
    with Emulator(text) as e:
        for counter, seed, want in known:
            words = np.array(counter, np.uint32).view(np.int32)
            e.launch("known", (1, 1), 32, words, seed)
            assert [int(w) for w in words.view(np.uint32)] == list(want)


def test_settings_that_stay_on_the_host_are_known_beforehand():
    assert sampling_ready(Draw(0.8, 40, 0.95, 0.05))
    assert sampling_ready(Draw(0.0, 0, 0.9, 0.05))
    assert sampling_ready(Draw(1.0))
    assert not sampling_ready(Draw(0.8, 100, 0.95, 0.05))
    assert not sampling_ready(Draw(0.8, 0, 0.95))
    assert not sampling_ready(Draw(1e-30))


def test_a_draw_made_again_is_the_same_and_the_next_is_another(emulator):
    logits = np.zeros((4, 3000), np.float32)
    for settings in ((1.0, 64, 1.0, 0.0), (1.0, 0, 1.0, 0.0)):
        first, again, later, other = sample(emulator, logits, settings, [(9, 4), (9, 4), (9, 5), (2**63 + 9, 4)])
        assert first == again
        assert len({first, later, other}) == 3
