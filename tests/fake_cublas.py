"""A cuBLAS without a GPU, on the memory of tests/fake_cuda.py: what CuPy's module does, and what it refuses."""

from __future__ import annotations

import ctypes
from collections import Counter
from contextlib import contextmanager

import numpy as np

FLOAT, BRAIN_FLOAT = 0, 14


class FakeCublas:
    """`products` holds (tokens, rows, columns, type) of each product."""

    def __init__(self, cuda):
        self.cuda, self.products, self.calls = cuda, [], Counter()
        self.stream = None
        self.fails = 0  # a status for the next product

    def create(self):
        self.calls["create"] += 1
        return 77

    def destroy(self, handle):
        assert handle == 77
        self.calls["destroy"] += 1

    def external_stream(self, stream):
        @contextmanager
        def current():
            self.stream = stream
            yield
            self.stream = None

        class Reusable:
            def __enter__(self):
                self.once = current()
                self.once.__enter__()

            def __exit__(self, *exception):
                self.once.__exit__(*exception)

        return Reusable()

    def gemmEx(self, handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, sums, algo):
        for number in (handle, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
            assert type(number) is int, f"CuPy takes integers, not {number!r}"
        assert self.stream, "the product would run in the default stream"
        assert self.cuda.recording is None, "CuPy refuses cuBLAS while a stream is captured"
        assert (handle, ta, tb, c_type, sums, algo) == (77, 1, 0, FLOAT, 68, -1)
        assert (a_type, lda, ldb) == (b_type, k, k)
        assert ldc >= m
        if self.fails:
            status, self.fails = self.fails, 0
            raise type("CUBLASError", (RuntimeError,), {"status": status})(f"CUBLAS_STATUS_{status}")
        self.products.append((n, m, k, a_type))
        one, old = (ctypes.c_float.from_address(at).value for at in (alpha, beta))
        self.cuda._enqueue(lambda: self._multiply(m, n, k, one, a, b, a_type, old, c, ldc))

    def _multiply(self, m, n, k, one, a, b, code, old, c, ldc):
        w, x = self._values(a, m * k, code).reshape(m, k), self._values(b, n * k, code).reshape(n, k)
        held = self.cuda.bytes(c, 4 * (ldc * (n - 1) + m)).view(np.float32)
        y = np.lib.stride_tricks.as_strided(held, (n, m), (4 * ldc, 4))
        y[:] = one * (x @ w.T) + (old * y if old else 0)

    def _values(self, address, count, code):
        if code == FLOAT:
            return self.cuda.bytes(address, 4 * count).view(np.float32)
        return (self.cuda.bytes(address, 2 * count).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
