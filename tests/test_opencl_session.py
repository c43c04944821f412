"""A session saved on one device resumes on another, and answers there as if it had never moved."""

from __future__ import annotations

import io
import sys

import pytest
from layerlift.runtime.cli import main
from layerlift.runtime.engine import Engine
from layerlift.runtime.model import Model
from layerlift.runtime.request import Request
from layerlift.runtime.sampler import Sampling
from opencl_here import opencl_device

TALK = [1, 7, 250, 33, 4, 99, 12, 8, 3, 200, 41]
PLACES = {"the CPU": 0, "both": 1, "OpenCL": 999}


def answer(path, ngl, dtype, *, load=None, save=None):
    """Six tokens behind TALK, and how many of its tokens the session had; with `save`, it is kept after eight."""
    with (
        Model.load(path, ngl=ngl, gpu="opencl", context=64) as model,
        Engine(model, context=64, kv_dtype=dtype) as engine,
    ):
        session = engine.session()
        if load:
            session.load(load)
        prompt, most = (TALK[:8], 0) if save else (TALK, 6)
        request = Request(prompt, Sampling(temperature=0), max_tokens=most, ignore_eos=True, session=session)
        done = engine.submit(request).result()
        if save:
            session.save(save)
        return [token.id for token in done.tokens], done.timings.cached_tokens


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize(
    ("first", "second"), [("OpenCL", "the CPU"), ("the CPU", "OpenCL"), ("both", "OpenCL"), ("OpenCL", "both")]
)
def test_a_talk_moves_to_another_device(tiny, tmp_path, first, second, dtype):
    opencl_device()
    path, file = tiny("F32"), tmp_path / "talk"
    stayed, _ = answer(path, PLACES[second], dtype)
    answer(path, PLACES[first], dtype, save=file)
    moved, cached = answer(path, PLACES[second], dtype, load=file)
    assert moved == stayed
    assert cached == 8


@pytest.mark.parametrize(("first", "second"), [("opencl", "disable"), ("disable", "opencl")])
def test_the_prompt_cache_of_the_command_line_moves_too(capsys, tiny, tmp_path, first, second, monkeypatch):
    opencl_device()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))

    def cli(gpu, *flags):
        common = ["--cli", "-m", str(tiny("F32")), "--temp", "0", "-ngl", "999", "-p", "Hello there", "-n", "6"]
        assert main([*common, "--ignore-eos", "--gpu", gpu, *flags]) == 0
        return capsys.readouterr().out

    file = str(tmp_path / "cache")
    plain = cli(second)
    cli(first, "--prompt-cache", file)
    assert cli(second, "--prompt-cache", file, "--prompt-cache-ro") == plain
