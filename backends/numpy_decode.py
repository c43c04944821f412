"""Decodes rows of GGUF blocks to float32, through the `gguf` package where a format is packed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import FORMATS

PLAIN = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
# Formats that only ever hold activations or integers, and one that the `gguf` package does not decode.
NOT_DECODED = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "Q1_0"}
DECODABLE = tuple(f.name for f in FORMATS if f.name not in NOT_DECODED)


def decode_rows(raw: NDArray[np.uint8], fmt: str, columns: int) -> NDArray[np.float32]:
    """raw [rows, row_nbytes] uint8 to [rows, columns] float32."""
    if fmt in PLAIN:
        return np.ascontiguousarray(raw).view(PLAIN[fmt]).astype(np.float32).reshape(len(raw), columns)
    if fmt == "BF16":
        bits = np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32)
        return (bits << 16).view(np.float32).reshape(len(raw), columns)
    quants: Any = _gguf_quants()
    return quants.dequantize(raw, getattr(quants.GGMLQuantizationType, fmt)).reshape(len(raw), columns)


def _gguf_quants() -> Any:
    import gguf.quants

    return gguf.quants
