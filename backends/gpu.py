"""Every op of a GPU backend, once, over the hooks of gpu_device.py. Knows no driver.

Kernels come from kernels/shared. A step of a few tokens takes five launches a layer: the products are fused with what
stands before and behind them. Longer steps multiply in tiles. Activations and sums are float32; weights stay
quantised, their values exact. What differs from token to token goes up once per step, in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .base import Activation, BackendError, Draw, KVStore, Linear, Norm, Picked, RopeSpec, Step, Weight
from .gpu_blas import GpuBlas
from .gpu_cache import GpuCache, turn
from .gpu_device import handle_of
from .gpu_kv import GpuKVStore
from .gpu_memory import GpuArray
from .gpu_repack import UNIT

TOP_K_MOST, TOP_K_SEGMENT = 128, 256  # kernels/shared/top_k.h; values that one work group looks through
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_quick": 2, "relu2": 3}  # kernels/shared/team.h


class GpuBackend(GpuBlas, GpuCache):
    # -- primitives --

    def embed(self, table: Weight, tokens: NDArray[np.int32] | GpuArray) -> GpuArray:
        rows, columns = table.shape
        y = self.empty((len(tokens), columns))
        kernel = self.programs.get("product", table.fmt, _ragged(columns))["embed"]
        listed, token = None, 0
        if isinstance(tokens, GpuArray):
            listed = tokens
        elif len(tokens) == 1:
            token = int(tokens[0])
        else:
            listed = self.upload(np.ascontiguousarray(tokens, np.int32))
        groups = self._groups(-(-columns // UNIT))
        self.run_kernel(
            kernel, groups, len(tokens), table.data.handle, handle_of(listed), token, y.handle, columns, rows
        )
        return y

    def rms_norm(self, x: GpuArray, norm: Norm, width: int = 0) -> GpuArray:
        y, width = self.empty(x.shape), width or x.shape[1]
        runs = x.size // width
        self.run_kernel(self._rows("rms_norm"), runs, 1, x.handle, norm.weight.handle, norm.eps, y.handle, width)
        return y

    def matmul(self, x: GpuArray, w: Weight) -> GpuArray:
        return self._product(x, w, None, None, None)

    def linear(self, x: GpuArray, w: Linear) -> GpuArray:
        return self._product(x, w.weight, None, w.bias, None)

    def _product(
        self, x: GpuArray, w: Weight, norm: Norm | None, bias: GpuArray | None, residual: GpuArray | None
    ) -> GpuArray:
        """norm(x) @ w.T + bias + residual; the residual's memory becomes the result's."""
        t, columns = x.shape
        if columns != w.shape[1]:
            raise BackendError(
                f"matmul: weight {w.name} is {w.fmt} {list(w.shape)}, input is {list(x.shape)}; inner sizes differ"
            )
        if t <= self.tuning.few:
            rows = w.shape[0]
            y = residual or self.empty((t, rows))
            lanes = self.tuning.lanes_of(columns)
            kernel = self.programs.get("product", w.fmt, _ragged(columns))["product"]
            weight, eps = (norm.weight.handle, norm.eps) if norm else (None, 0.0)
            groups = -(-(rows + 1) // 2 // (self.tuning.group // lanes))
            self.run_kernel(
                kernel, groups, t, x.handle, weight, eps, w.data.handle, handle_of(bias), handle_of(residual), y.handle,
                columns, rows, lanes,
            )  # fmt: skip
            return y
        if norm:
            x = self.rms_norm(x, norm)
        if blas := self.by_vendor(w):
            return self.vendor_product(blas, x, w, bias, residual)
        return self._tiled_product(x, w, bias, residual)

    def own_product(self, x: GpuArray, w: Weight) -> GpuArray:
        return self._tiled_product(x, w, None, None)

    def _tiled_product(self, x: GpuArray, w: Weight, bias: GpuArray | None, residual: GpuArray | None) -> GpuArray:
        t, (rows, columns) = len(x), w.shape
        y = residual or self.empty((t, rows))
        kernel = self.programs.get("product", w.fmt, _ragged(columns))["matmul"]
        across, down = -(-rows // self.tuning.tile_rows), -(-t // self.tuning.tile_tokens)
        self.run_kernel(
            kernel, across, down, x.handle, w.data.handle, handle_of(bias), handle_of(residual), y.handle, t, columns,
            rows,
        )  # fmt: skip
        return y

    def gate(self, a: GpuArray, b: GpuArray, activation: Activation) -> GpuArray:
        y = self.empty(a.shape)
        code = ACTIVATIONS[activation]
        self.run_kernel(self._rows("gate"), self._groups(a.size), 1, a.handle, b.handle, y.handle, code, a.size)
        return y

    def add(self, a: GpuArray, b: GpuArray) -> GpuArray:
        y = self.empty(a.shape)
        self.run_kernel(self._rows("add"), self._groups(a.size), 1, a.handle, b.handle, y.handle, a.size, b.size)
        return y

    def select(self, x: GpuArray, rows: NDArray[np.int32]) -> GpuArray:
        if len(rows) == len(x) and (len(x) == 1 or np.array_equal(rows, np.arange(len(x)))):
            return x
        y = self.empty((len(rows), x.shape[1]))
        if len(rows):
            chosen = self.upload(np.ascontiguousarray(rows, np.int32))
            self.move_rows(x, chosen, y, None, x.shape[1], len(rows))
        return y

    # -- composites --

    def qkv(
        self,
        x: GpuArray,
        norm: Norm,
        wq: Linear,
        wk: Linear,
        wv: Linear,
        rope: RopeSpec | None,
        kv: KVStore,
        step: Step,
    ) -> GpuArray:
        assert isinstance(kv, GpuKVStore)
        t, columns = x.shape
        if t > self.tuning.few or wq.norm or wk.norm:
            return super().qkv(x, norm, wq, wk, wv, rope, kv, step)
        layout, data = self._layout(step, rope)
        q, k, v = wq.weight, wk.weight, wv.weight
        y, lanes = self.empty((t, q.shape[0])), self.tuning.lanes_of(columns)
        groups = -(-(q.shape[0] // 2 + k.shape[0]) // (self.tuning.group // lanes))
        self.run_kernel(
            self.programs.get("qkv", q.fmt, k.fmt, v.fmt, _ragged(columns))["qkv"], groups, t, x.handle,
            norm.weight.handle, norm.eps, q.data.handle, k.data.handle, v.data.handle, handle_of(wq.bias),
            handle_of(wk.bias), handle_of(wv.bias), y.handle, kv.k.handle, kv.v.handle, kv.code, data, layout.rows_at,
            *turn(layout, rope), kv.head_dim, columns, q.shape[0], k.shape[0], lanes,
        )  # fmt: skip
        return y

    def rope_append(
        self, q: GpuArray, k: GpuArray, v: GpuArray, kv: KVStore, rope: RopeSpec | None, step: Step
    ) -> GpuArray:
        assert isinstance(kv, GpuKVStore)
        self._rope_append(q, q, k, v, kv, kv.head_dim, rope, step)
        return q

    def project_add(self, h: GpuArray, w: Linear, x: GpuArray) -> GpuArray:
        if w.norm:
            return super().project_add(h, w, x)
        return self._product(h, w.weight, None, w.bias, x)

    def gated(self, x: GpuArray, norm: Norm, w_gate: Linear, w_up: Linear, activation: Activation) -> GpuArray:
        t, columns = x.shape
        if t > self.tuning.few:
            return super().gated(x, norm, w_gate, w_up, activation)
        gate, up, lanes = w_gate.weight, w_up.weight, self.tuning.lanes_of(columns)
        rows = gate.shape[0]
        y = self.empty((t, rows))
        self.run_kernel(
            self.programs.get("gated", gate.fmt, up.fmt, _ragged(columns))["gated"],
            -(-rows // (self.tuning.group // lanes)), t, x.handle, norm.weight.handle, norm.eps, gate.data.handle,
            up.data.handle, handle_of(w_gate.bias), handle_of(w_up.bias), y.handle, ACTIVATIONS[activation], columns,
            rows, lanes,
        )  # fmt: skip
        return y

    def head(self, x: GpuArray, norm: Norm, w: Linear) -> GpuArray:
        return self._product(x, w.weight, norm, w.bias, None)

    def pick(self, logits: GpuArray, draws: Sequence[Draw] = ()) -> Picked:
        best = self.empty((len(logits),), np.int32)
        self.run_kernel(self._rows("argmax"), len(logits), 1, logits.handle, best.handle, logits.shape[1])
        return Picked(lambda: self.download(best))

    def topk(self, logits: GpuArray, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        n, width = logits.shape
        if not 0 < k <= min(TOP_K_MOST, width):
            return super().topk(logits, k)
        segments, program = -(-width // TOP_K_SEGMENT), self.programs.get("top_k")
        maxima, out = self.empty((n, segments)), self.empty((n, 2, k), np.int32)
        self.run_kernel(program["segment_maxima"], segments, n, logits.handle, maxima.handle, width, TOP_K_SEGMENT)
        self.run_kernel(program["top_k"], n, 1, logits.handle, maxima.handle, out.handle, width, TOP_K_SEGMENT, k)
        host = self.download(out)
        return host[:, 0], host[:, 1].view(np.float32)


def _ragged(columns: int) -> bool:
    return columns % UNIT != 0
