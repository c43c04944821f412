"""Whole files have the types that llama.cpp's own quantiser gives them, recorded in llama_cpp_types.txt.

A line there is a shape, a mix, the weights of a layer (or a weight outside), and their types from the first layer to
the last, `Q6_K*2` for two in a row. They are what llama_model_quantize of llama-cpp-python 0.3.36 wrote for these
shapes; `python -m layerlift.bench.quantize_model` compares one file with the real one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from layerlift.bench.synth import Shape, write_model
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.quantize import mix_named, plan, write
from layerlift.runtime.weight_types import MIXES

pytestmark = pytest.mark.slow

COMMON = {"head_dim": 32, "d_ff": 512, "vocab": 300, "context": 4096, "rope_base": 10000.0}
SHAPES = (
    Shape("shared", d=256, layers=16, n_heads=8, n_kv_heads=2, rope_factors=True, **COMMON),
    Shape(
        "untied", d=256, layers=20, n_heads=4, n_kv_heads=4, rope_factors=False, tied=False, **COMMON | {"head_dim": 64}
    ),
    Shape(
        "odd", d=192, layers=9, n_heads=6, n_kv_heads=2, rope_factors=False, **COMMON
    ),  # 256 does not divide rows of 192
)


def recorded(shape: str, mix: str) -> dict[str, str]:
    """Types by the names of weights."""
    types = {}
    for line in Path(__file__).with_name("llama_cpp_types.txt").read_text().splitlines():
        what, _, runs = line.partition(": ")
        of_shape, of_mix, kinds = what.split(" ")
        if (of_shape, of_mix) != (shape, mix):
            continue
        layers = [
            fmt for fmt, _, times in (run.partition("*") for run in runs.split(" ")) for _ in range(int(times or 1))
        ]
        for kind in kinds.split(","):
            if kind in ("token_embd", "output"):
                types[f"{kind}.weight"] = layers[0]
            else:
                types |= {f"blk.{layer}.{kind}.weight": fmt for layer, fmt in enumerate(layers)}
    return types


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")

    def make(shape: Shape) -> Path:
        path = folder / f"{shape.name}.gguf"
        if not path.exists():
            write_model(path, shape, "F16", pure=True)
        return path

    return make


QUANTISED = [mix.name for mix in MIXES if mix.name not in ("F32", "F16", "BF16")]


@pytest.mark.parametrize("mix", QUANTISED)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_weight_has_the_type_that_llama_cpp_gives_it(shape, mix, source):
    expected = recorded(shape.name, mix)
    with open_gguf(source(shape)) as gguf:
        types = {change.info.name: change.fmt for change in plan(gguf, mix_named(mix)).changes if change.fmt != "F32"}
    assert types == expected


@pytest.mark.parametrize("mix", ["Q2_K", "Q4_K_M", "IQ4_NL"])
def test_the_file_has_the_types_that_were_planned(mix, source, tmp_path):
    with open_gguf(source(SHAPES[2])) as gguf:
        write(plan(gguf, mix_named(mix)), tmp_path / "out.gguf", progress=lambda done, total: None)
    with open_gguf(tmp_path / "out.gguf") as gguf:
        types = {name: info.fmt for name, info in gguf.tensors.items() if info.fmt != "F32"}
    assert types == recorded("odd", mix)
