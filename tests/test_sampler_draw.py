"""Which choices a device may make: those that need nothing but the logits as they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from layerlift.backends.draw import LAYOUT, Draw, packed
from layerlift.runtime.sampler import Sampler, Sampling


@pytest.mark.parametrize(
    ("settings", "draw"),
    [
        ({"temperature": 0}, Draw()),
        ({"seed": 5}, Draw(0.8, 40, 0.95, 0.05, 5, 3)),
        ({"seed": 5, "samplers": "top_k;temperature"}, Draw(0.8, 40, seed=5, number=3)),
        ({"seed": 5, "samplers": "typ_p;min_p"}, Draw(1.0, 0, 1.0, 0.05, 5, 3)),
    ],
)
def test_what_needs_only_the_logits_can_be_drawn_elsewhere(settings, draw):
    assert Sampler(Sampling(**settings)).draw(3) == draw


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_bias": {3: 1.0}},
        {"repeat_penalty": 1.1},
        {"n_probs": 0},
        {"mirostat": 2},
        {"typical_p": 0.9},
        {"min_keep": 2},
        {"samplers": "temperature;top_k"},
        {"temperature": 0, "presence_penalty": 0.5},
        {"grammar": SimpleNamespace(matcher=lambda: object())},
    ],
    ids="-".join,
)
def test_what_needs_more_is_not_drawn_elsewhere(settings):
    assert Sampler(Sampling(**settings)).draw(3) is None


def test_draws_are_packed_as_the_kernel_reads_them():
    assert LAYOUT.itemsize == 32
    (row,) = packed([Draw(0.5, -1, 0.25, 0.125, 2**64 - 1, 7)]).view(LAYOUT)
    assert row.tolist() == (0.5, 0, 0.25, 0.125, 2**64 - 1, 7)
