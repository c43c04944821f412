"""Measures the error of quantised weights beside llama.cpp's on the same numbers, and how fast they are made.

    python -m layerlift.bench.quantize --ggml DIR [--save NAME]

DIR holds llama.cpp's libggml-base shared library (in a llama-cpp-python: llama_cpp/lib). Knows nothing of models.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
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
SPEED_ROWS = 4096


def sample() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights with long tails [ROWS, COLUMNS], and the importance of their columns; the tests use the same."""
    rng = np.random.default_rng(7)
    x = (rng.standard_t(4, (ROWS, COLUMNS)) * 0.02).astype(np.float32)
    return x, rng.gamma(1.0, 1.0, COLUMNS).astype(np.float32)


def error(raw: NDArray[np.uint8], fmt: str, x: NDArray[np.float32], importance: NDArray[np.float32] | None) -> float:
    """The root of the weighted mean square error, in units of the deviation of x."""
    off = (decode_rows(raw, fmt, x.shape[1]).astype(np.float64) - x) ** 2
    if importance is not None:
        off = off * (importance / importance.mean())
    return float(np.sqrt(off.mean()) / x.std())


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
    """A row for each format: errors of both without and with importance, and weights a second of ours."""
    x, importance = sample()
    large = np.tile(x, (SPEED_ROWS // ROWS, 2))
    rows = []
    with Quantizer() as ours:
        for fmt in SCHEMES:
            row: dict[str, Any] = {"format": fmt}
            for name, weights in (("plain", None), ("weighed", importance)):
                row[f"{name}_ggml"] = error(ggml.rows(x, fmt, weights), fmt, x, weights)
                row[f"{name}_ours"] = error(ours.rows(x.view(np.uint8), "F32", COLUMNS, fmt, weights), fmt, x, weights)
            start = time.perf_counter()
            ours.rows(large.view(np.uint8), "F32", large.shape[1], fmt)
            row["weights_per_second"] = large.size / (time.perf_counter() - start)
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
