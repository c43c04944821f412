"""Facts about perplexity: which tokens are scored, and how."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from layerlift.runtime.cli import main
from layerlift.runtime.errors import UserError
from layerlift.runtime.perplexity import perplexity

GPL = Path("/usr/share/common-licenses/GPL-3")
VOCAB = 16


class FakeCache:
    stores = ()

    def __init__(self, capacity: int):
        self.capacity = capacity

    def open(self, tokens=(), *, share: bool = True):
        assert not share
        self.length = 0
        return SimpleNamespace(rows=np.arange(self.capacity, dtype=np.int32))

    def reserve(self, sequence, n: int):
        assert self.length + n <= self.capacity
        sequence.rows = np.arange(self.length + n, dtype=np.int32)
        return np.arange(self.length, self.length + n, dtype=np.int32)

    def commit(self, sequence, tokens) -> None:
        self.length += len(tokens)

    def close(self, sequence, *, keep: bool = True) -> None:
        assert not keep


class FakeModel:
    """Gives the next token's logits as `guess(position)`; records what it saw."""

    def __init__(self, guess, *, add_bos: bool = True):
        self.guess = guess
        self.tokenizer = SimpleNamespace(add_bos=add_bos, bos=1)
        self.seen: list[int] = []
        self.outputs: list[int] = []

    def new_cache(self, capacity: int, dtype: str) -> FakeCache:
        return FakeCache(capacity)

    def forward(self, step):
        self.seen += step.tokens.tolist()
        self.outputs += step.positions[step.outputs].tolist()
        assert len(step.spans[0].rows) == step.positions[-1] + 1
        return SimpleNamespace(download=lambda x: x), step.positions[step.outputs]

    def logits(self, origin, positions):
        return origin, np.array([self.guess(p) for p in positions], np.float32).reshape(-1, VOCAB)


def uniform(position: int):
    return np.zeros(VOCAB)


def last(scores):
    return list(scores)[-1]


@pytest.mark.parametrize("batch", [1, 3, 8, 512])
def test_of_each_chunk_the_tokens_behind_the_first_half_are_scored(batch):
    model = FakeModel(uniform)
    score = last(perplexity(model, list(range(2, 15)) * 2, context=8, batch=batch))
    assert score.chunks == score.total == 3  # 26 tokens: the last two are dropped
    assert model.outputs == [4, 5, 6] * 3  # they predict tokens 5, 6 and 7
    assert score.count == 9


def test_the_start_token_takes_the_place_of_each_chunks_first():
    tokens = list(range(2, 10)) * 2
    model = FakeModel(uniform)
    last(perplexity(model, tokens, context=8))
    assert model.seen == [1, *tokens[1:8], 1, *tokens[9:]]
    model = FakeModel(uniform, add_bos=False)
    last(perplexity(model, tokens, context=8))
    assert model.seen == tokens


def test_even_odds_have_the_vocabularys_size_as_perplexity_and_no_error():
    score = last(perplexity(FakeModel(uniform), [2] * 64, context=16))
    assert score.perplexity == pytest.approx(VOCAB)
    assert score.error == pytest.approx(0.0, abs=1e-6)


def test_mean_and_standard_error_follow_their_definitions():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(32, VOCAB))
    tokens = rng.integers(0, VOCAB, 64).tolist()
    score = last(perplexity(FakeModel(lambda p: table[p]), tokens, context=32))
    losses = []
    for chunk in (tokens[:32], tokens[32:]):
        for position in range(16, 31):
            row = np.exp(table[position].astype(np.float32).astype(float))
            losses.append(-math.log(row[chunk[position + 1]] / row.sum()))
    assert score.nll == pytest.approx(np.mean(losses), rel=1e-6)
    assert score.nll_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(len(losses)), rel=1e-6)
    assert score.error == pytest.approx(score.perplexity * score.nll_error)


def test_logits_of_any_size_do_not_overflow():
    score = last(perplexity(FakeModel(lambda p: 1e4 * np.arange(VOCAB)), [VOCAB - 1] * 16, context=8))
    assert score.perplexity == pytest.approx(1.0)


def test_scores_come_chunk_by_chunk_and_stop_where_asked():
    scores = list(perplexity(FakeModel(uniform), [2] * 80, context=8, chunks=3))
    assert [(s.chunks, s.total, s.count) for s in scores] == [(1, 3, 3), (2, 3, 6), (3, 3, 9)]


@pytest.mark.parametrize(("tokens", "context"), [([2] * 7, 8), ([2] * 100, 2)])
def test_a_text_or_a_chunk_that_is_too_short_is_refused(tokens, context):
    with pytest.raises(UserError):
        list(perplexity(FakeModel(uniform), tokens, context=context))


def test_the_command_prints_result_and_standard_error(capsys, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    flags = ["perplexity", "-m", str(tiny()), "-f", str(text), "-c", "32", "--gpu", "disable"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert out.startswith("PPL = ")
    assert " ± " in out
    assert main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["context"] == 32
    assert f"PPL = {found['perplexity']:.4f}" in out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_default_model_scores_the_gpl_as_in_float32(default_model, capsys):
    if not GPL.exists():
        pytest.skip(f"{GPL} is not here")
    assert main(["perplexity", "-m", str(default_model), "-f", str(GPL), "-c", "512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] == pytest.approx(18.299, rel=0.002)
