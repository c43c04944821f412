"""A GPU's long products through its vendor's BLAS: weights decoded piece by piece, then multiplied. Knows no driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ..kernels import sources
from .base import Weight
from .blas import BlasProbe, VendorBlas
from .blas_choice import BlasRecord, Timing, refused, shape_of, summary, takes_vendor
from .gpu_device import ROWS_AT_ONCE, GpuDevice
from .gpu_kv import DTYPES, STORAGE
from .gpu_memory import GpuArray
from .gpu_repack import UNIT
from .program_cache import ProgramCache

SCRATCH = 16 << 20  # bytes of decoded weights at a time
ENOUGH = 0.3  # seconds of measuring one product with one engine


class GpuBlas(GpuDevice):
    """The part of a GPU backend that knows there may be a vendor's BLAS.

    A subclass supplies `find_blas` and `open_blas`.
    """

    _blas: VendorBlas | None = None
    _record: BlasRecord | None = None
    _looked = False
    _refusal = ""

    # -- for the driver --

    def find_blas(self) -> BlasProbe:
        """The vendor's library, or why there is none. Opens nothing on the device."""
        return BlasProbe("vendor BLAS", reason="none for this device")

    def open_blas(self, found: BlasProbe) -> VendorBlas:
        """Opens what `find_blas` found. Raises BackendError."""
        raise NotImplementedError

    blas_compiles = False  # VendorBlas.compiles of the library, known before it is opened

    # -- choosing --

    def blas(self) -> VendorBlas | None:
        """The library where it may be used, opened at the first call."""
        if not self._looked:
            self._looked = True
            found = self.find_blas()
            self._refusal = refused(found, self.kernels, compiles=self.blas_compiles)
            if not self._refusal:
                self._blas = self.open_blas(found)
                self._record = record(self.cache, self.identity, found)
        return self._blas

    def by_vendor(self, w: Weight) -> VendorBlas | None:
        """The library, if it is to multiply a long step by w."""
        if w.shape[1] % UNIT:
            return None
        blas = self.blas()
        if blas is None or self._record is None or not takes_vendor(w, self._record.times):
            return None
        return blas

    # -- multiplying --

    def vendor_product(
        self, blas: VendorBlas, x: GpuArray, w: Weight, bias: GpuArray | None, residual: GpuArray | None
    ) -> GpuArray:
        """x @ w.T + bias + residual; the residual's memory becomes the result's."""
        t, (rows, columns) = len(x), w.shape
        y = residual or self.empty((t, rows))
        if blas.dtype != "f32":
            x = self._decoded("F32", x, 0, t, columns, t, blas)
        plain_already = w.fmt.lower() == blas.dtype
        fitting = max(1, SCRATCH // (columns * np.dtype(STORAGE[blas.dtype]).itemsize))
        piece = rows if plain_already else min(ROWS_AT_ONCE, fitting)
        for first in range(0, rows, piece):
            n = min(piece, rows - first)
            plain = w.data if plain_already else self._decoded(w.fmt, w.data, first, n, columns, rows, blas)
            blas.gemm(
                x.handle,
                plain.handle,
                y.handle,
                tokens=t,
                rows=n,
                columns=columns,
                first=first,
                stride=rows,
                accumulate=residual is not None,
            )
        if bias:
            self.run_kernel(self._rows("add"), self._groups(y.size), 1, y.handle, bias.handle, y.handle, y.size, rows)
        return y

    def _decoded(
        self, fmt: str, data: GpuArray, first: int, n: int, columns: int, rows: int, blas: VendorBlas
    ) -> GpuArray:
        """Rows first … first + n of a matrix, in the type the library takes."""
        plain, row_units = self.empty((n, columns), STORAGE[blas.dtype]), columns // UNIT
        self.run_kernel(
            self.programs.get("dense", fmt)["dense"], self._groups(row_units), n, data.handle,
            row_units * rows, first, plain.handle, row_units, DTYPES[blas.dtype],
        )  # fmt: skip
        return plain

    # -- measuring --

    def own_product(self, x: GpuArray, w: Weight) -> GpuArray:
        """x @ w.T by our own kernels."""
        raise NotImplementedError

    def tune(self, weights: Sequence[Weight], tokens: int) -> str:
        blas = self.blas()
        shapes = {shape_of(w): w for w in weights if w.shape[1] % UNIT == 0}
        if blas is None or self._record is None or not shapes:
            return f"{self.device}: kernels built; prompt products by our own ({self._refusal or 'nothing to measure'})"
        times = {}
        for shape, w in shapes.items():
            x = self.upload(np.random.default_rng(0).standard_normal((tokens, w.shape[1]), np.float32))
            times[shape] = Timing(
                self._milliseconds(lambda x=x, w=w: self.own_product(x, w)),
                self._milliseconds(lambda x=x, w=w: self.vendor_product(blas, x, w, None, None)),
            )
        self._record.add(times)
        return f"{self.device}: kernels built; prompt products by {summary(blas.found, times)} of {tokens} tokens"

    def _milliseconds(self, call: Callable[[], object]) -> float:
        """The shortest of up to five runs behind a first one, which may build kernels."""
        call()
        self.synchronize()
        runs: list[float] = []
        while len(runs) < 5 and sum(runs) < ENOUGH:
            start = time.perf_counter()
            call()
            self.synchronize()
            runs.append(time.perf_counter() - start)
        return 1e3 * min(runs)


def record(cache: ProgramCache, identity: tuple[str, ...], found: BlasProbe) -> BlasRecord:
    """The record of a device with a library; our own products count by their text."""
    return BlasRecord(cache, (*identity, sources.read("shared/matmul.h")), found)
