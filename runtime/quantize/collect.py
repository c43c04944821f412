"""Collects an importance matrix: a text goes through the model, and every weight's inputs are squared and summed."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends import registry
from ...backends.observe import observing
from ..errors import GGUFError
from ..gguf import open_gguf
from ..model import Model, model_sizes
from ..models import architecture
from ..perplexity import perplexity
from ..scheduler import plan_layers
from .imatrix import Sums

LEFT_OUT = ("token_embd.weight", "output.weight")  # as llama.cpp does: quantised with more bits anyway


def collect(
    path: str | PathLike[str],
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Sums], int, int]:
    """Sums by weight, chunks read, and tokens in a chunk. Raises UserError where the text is too short."""
    squares: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}

    def observe(name: str, x: Any) -> None:
        if name in LEFT_OUT:
            return
        sums = np.einsum("tc,tc->c", x, x, dtype=np.float64)
        squares[name] = squares[name] + sums if name in squares else sums
        counts[name] = counts.get(name, 0) + len(x)

    with open_gguf(path) as gguf:
        config = architecture(gguf).read_config(gguf)
        context = min(context or config.context, config.context)
        host, _ = registry.host_device(registry.probe_all(gpus=False))
        plan = plan_layers(model_sizes(gguf, config, "f16"), 0, context, [], host=host)
        with Model(gguf, plan, threads=threads, open_device=observing(observe)) as model:
            tokens, done = model.tokenizer.encode(text), 0
            for score in perplexity(model, tokens, context=context, chunks=chunks):
                done = score.chunks
                progress(done, score.total)
    for name, sums in squares.items():
        if not np.isfinite(sums).all():
            raise GGUFError(f"{path}: the inputs of {name} are not finite")
    made = {
        name: Sums(sums[None].astype(np.float32), np.array([counts[name]], np.float32))
        for name, sums in sorted(squares.items())
    }
    return made, done, context
