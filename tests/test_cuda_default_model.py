"""The default model whole on the emulated CUDA device answers as on the CPU."""

from __future__ import annotations

import fake_cuda
import pytest
from layerlift.runtime.engine import Engine
from layerlift.runtime.model import Model
from layerlift.runtime.request import Request
from layerlift.runtime.sampler import Sampling


def answer(path, **placing):
    with Model.load(path, context=64, **placing) as model, Engine(model, context=64) as engine:
        request = Request(model.tokenizer.encode("The capital of France is"), Sampling(temperature=0), max_tokens=3)
        return [token.id for token in engine.submit(request).result().tokens]


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_it_names_the_capital_of_france(default_model):
    with fake_cuda.installed():
        assert answer(default_model, ngl=999, gpu="nvidia") == answer(default_model, ngl=0)
