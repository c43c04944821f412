"""Quantises rows of weights on all cores: native where the library is there, else NumPy. Knows nothing of files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels.cpu import native
from .cpu_memory import address
from .cpu_threads import default_threads, most_threads
from .errors import BackendError, DeviceOutOfMemory
from .formats import BY_NAME
from .numpy_decode import DECODABLE, decode_rows
from .numpy_quantize import quantize_rows
from .quantize_formats import SCHEMES

PLAIN = ("F32", "F16", "BF16")
TARGETS = (*PLAIN, *SCHEMES)
SOURCES = DECODABLE
MOST_HALF = 65504.0


class WrongNumber(BackendError):
    """A weight that is no number, or too large for the format; `row` says where."""

    def __init__(self, row: int):
        super().__init__(f"row {row} holds a number that is not finite or too large")
        self.row = row


class Quantizer:
    """Native threads, or NumPy; a context manager."""

    def __init__(self, threads: int | None = None):
        lib, isa = native.library(), native.forced_isa()
        self._lib = lib if isa != "numpy" else None
        self._ctx: int = 0
        if self._lib:
            self._ctx = self._lib.ll_open(min(threads or default_threads(), most_threads()), isa.encode()) or 0
            if not self._ctx:
                raise BackendError(f"cpu: cannot open {isa or 'any'} instruction set")

    @property
    def is_native(self) -> bool:
        return bool(self._ctx)

    def close(self) -> None:
        if self._ctx and self._lib:
            self._lib.ll_close(self._ctx)
            self._ctx = 0

    def __enter__(self) -> Quantizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(
        self,
        raw: NDArray[np.uint8],
        source: str,
        columns: int,
        target: str,
        importance: NDArray[np.float32] | None = None,
    ) -> NDArray[np.uint8]:
        """raw [rows, row_nbytes] of format `source` to [rows, row_nbytes] of format `target`.

        `importance` [columns] weighs squared errors. Raises WrongNumber, DeviceOutOfMemory.
        """
        assert columns % BY_NAME[target].block == 0, f"{columns} columns are no blocks of {target}"
        if source not in PLAIN:
            raw, source = decode_rows(raw, source, columns).view(np.uint8).reshape(len(raw), -1), "F32"
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        if not self._ctx:
            return _in_numpy(decode_rows(raw, source, columns), target, importance)
        out = np.empty((len(raw), BY_NAME[target].row_nbytes(columns)), np.uint8)
        raw, weights = np.ascontiguousarray(raw), None if importance is None else address(importance)
        assert self._lib is not None
        done = self._lib.ll_quantize(
            *(self._ctx, BY_NAME[source].id, address(raw), len(raw), columns),
            *(BY_NAME[target].id, weights, address(out)),
        )
        if done == -2:
            raise DeviceOutOfMemory(f"cpu: no memory to quantise rows of {columns}", nbytes=4 * columns)
        assert done != -3, f"the library cannot turn {source} into {target}"
        if done >= 0:
            raise WrongNumber(done)
        return out


def _in_numpy(x: NDArray[np.float32], target: str, importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    most = MOST_HALF if target not in ("F32", "BF16") else float(np.finfo(np.float32).max)
    sound = (np.abs(x) <= most).all(axis=1)
    if not sound.all():
        raise WrongNumber(int(np.argmin(sound)))
    if target in SCHEMES:
        return quantize_rows(x, target, importance)
    if target == "BF16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").view(np.uint8)  # to nearest even
    return x.astype("<f2" if target == "F16" else "<f4").view(np.uint8)
