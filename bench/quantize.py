"""Measures the errors of quantised weights beside llama.cpp's on the same numbers, block by block, and the time.

    python -m layerlift.bench.quantize --ggml DIR [--save NAME]

DIR holds llama.cpp's libggml-base shared library (in a llama-cpp-python: llama_cpp/lib). Knows nothing of models.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.formats import BY_NAME
from ..backends.numpy_decode import decode_rows
from ..backends.quantize import Quantizer
from ..backends.quantize_formats import SCHEMES
from . import machine

ROWS, COLUMNS = 64, 1024
SPEED_ROWS = 512
REPEATS = 3


def sample() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights with long tails [ROWS, COLUMNS], and the importance of their columns; the tests use the same."""
    rng = np.random.default_rng(7)
    x = (rng.standard_t(4, (ROWS, COLUMNS)) * 0.02).astype(np.float32)
    return x, rng.gamma(1.0, 1.0, COLUMNS).astype(np.float32)


def errors(
    raw: NDArray[np.uint8], fmt: str, x: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """The weighted square error of each block."""
    off = (decode_rows(raw, fmt, x.shape[1]).astype(np.float64) - x) ** 2
    if importance is not None:
        off = off * (importance / importance.mean())
    return off.reshape(-1, BY_NAME[fmt].block).sum(1)


def compare(ours: NDArray[np.float64], theirs: NDArray[np.float64], x: NDArray[np.float32]) -> dict[str, float]:
    """Root mean square errors in units of the deviation of x, the share of blocks that are worse here, and by how much
    the worst of them."""
    return {
        "ggml": float(np.sqrt(theirs.sum() / x.size) / x.std()),
        "ours": float(np.sqrt(ours.sum() / x.size) / x.std()),
        "worse": float((ours > theirs * (1 + 1e-6)).mean()),
        "worst": float(np.sqrt((ours / theirs).max())),
    }


def nanoseconds(call: Callable[[NDArray[np.float32]], Any], x: NDArray[np.float32]) -> float:
    """Processor time a weight, the best of REPEATS."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        call(x)
        times.append(time.process_time() - start)
    return min(times) / x.size * 1e9


class Ggml:
    """ggml_quantize_chunk of a libggml-base."""

    def __init__(self, folder: Path):
        self._quantize = ctypes.CDLL(str(folder / "libggml-base.so")).ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]

    def rows(self, x: NDArray[np.float32], fmt: str, importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        out = np.zeros((len(x), BY_NAME[fmt].row_nbytes(x.shape[1])), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._quantize(BY_NAME[fmt].id, x.ctypes.data, out.ctypes.data, 0, len(x), x.shape[1], weights)
        return out


def measure(ggml: Ggml) -> list[dict[str, Any]]:
    """A row for each format: errors of both without and with importance, and the times of one core."""
    x, importance = sample()
    large = np.tile(x, (SPEED_ROWS // ROWS, 2))
    rows = []
    with Quantizer(1) as quantizer:
        for fmt in SCHEMES:
            row: dict[str, Any] = {"format": fmt}
            for name, weights in (("plain", None), ("weighed", importance)):

                def ours(x: NDArray[np.float32], fmt=fmt, weights=weights) -> NDArray[np.uint8]:
                    repeated = None if weights is None else np.resize(weights, x.shape[1])
                    return quantizer.rows(x.view(np.uint8), "F32", x.shape[1], fmt, repeated)

                def theirs(x: NDArray[np.float32], fmt=fmt, weights=weights) -> NDArray[np.uint8]:
                    repeated = None if weights is None else np.resize(weights, x.shape[1])
                    return ggml.rows(x, fmt, repeated)

                made, other = (errors(call(x), fmt, x, weights) for call in (ours, theirs))
                row[name] = compare(made, other, x)
                row[name] |= {"ns": nanoseconds(ours, large), "ggml_ns": nanoseconds(theirs, large)}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ggml", type=Path, required=True)
    parser.add_argument("--save")
    args = parser.parse_args()
    rows = measure(Ggml(args.ggml))
    print("\n".join(json.dumps(row) for row in rows))
    if args.save:
        print(f"saved in {machine.save(args.save, rows, machine=machine.describe_machine())}")


if __name__ == "__main__":
    main()
