"""Orders and selects among many values, faster than a sort of them all. Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ascending(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The places of the values, smallest first; equal values in the order they came."""
    if values.size <= 4096:
        return np.argsort(values, kind="stable")
    # A whole vocabulary: sorting integers of (value, place) takes a tenth of the time of a stable argsort.
    bits = (values + np.float32(0)).view(np.int32)  # + 0 makes -0.0 equal to 0.0
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)  # IEEE floats order as integers once the negative ones are turned
    keys = bits.astype(np.int64) << 32
    keys |= np.arange(values.size)
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def highest(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The places of the k highest values, highest first, the lower place first among equals; those at -inf left out."""
    n = values.size
    if k < n:
        # The k-th largest of the column maxima is a bound that at least k values reach, and few more do: two passes
        # over the vocabulary instead of a selection or a sort.
        columns = n // 64
        maxima = values[: columns * 64].reshape(64, columns).max(axis=0) if columns >= k else values
        bound = np.partition(maxima, maxima.size - k)[maxima.size - k]
        keep = np.flatnonzero(values >= bound if bound > -np.inf else values > -np.inf)
    else:
        keep = np.flatnonzero(values > -np.inf)
    return keep[ascending(-values[keep])][:k]
