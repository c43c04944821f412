"""The composites of a GPU backend by the kernels of kernels/cuda. Knows no driver; what has no kernel there is shared.

Steps of up to FEW tokens take the five launches a layer of matvec.h and attend_few.h, which read weights once for all
tokens. Longer ones multiply on tensor cores, activations rounded to halves (bounds in the kernels' headers). The next
tokens are chosen by sample.h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ..kernels import sources
from .base import Activation, AttnSpec, Draw, KVStore, Linear, Norm, Picked, RopeSpec, Step, Weight
from .cuda_kernels import (
    SLICE,
    AttendFew,
    AttendMany,
    MatmulMma,
    MatmulWgmma,
    Matvec,
    matvec_ready,
    sample_kept_shape,
    sample_text,
    sampling_ready,
)
from .draw import LAYOUT, packed
from .gpu import ACTIVATIONS, GpuBackend
from .gpu_cache import turn
from .gpu_device import handle_of
from .gpu_kv import GpuKVStore
from .gpu_memory import GpuArray
from .gpu_programs import Kernel, Program

FEW = 4  # tokens; from five on, tensor cores need fewer instructions a weight (counted, not measured)
SPAN_FEW = 8  # tokens of a sequence in a step, up to which each reads its rows by itself
PREFETCHED = 8 << 20  # bytes of the next weights that attention, which reads few of its own, brings to the L2 cache


class CudaOps(GpuBackend):
    """A subclass sets `capability`, (major, minor), and `multiprocessors` before this starts."""

    capability: tuple[int, int]
    multiprocessors: int
    warp_groups = False  # whether long steps multiply by wgmma where there is one; on no device measured yet

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._own: dict[Any, Program] = {}
        self._zeros: list[GpuArray] = []  # counters that kernels leave at zero; recorded graphs hold all of them
        self._likeliest: GpuArray | None = None  # draws at temperature 0
        self._after: WeakValueDictionary[str, Weight] = WeakValueDictionary()  # by name: what was used next, last time
        self._last = ""

    def close(self) -> None:
        self._zeros.clear()
        self._likeliest = None
        super().close()

    # -- programs and workspaces --

    def _kernel(
        self, program: Any, name: str, *, threads: int = 0, shared: int = 0, text: Callable[[], str] | None = None
    ) -> Kernel:
        """A kernel of a program of cuda_kernels.py, or of its `text`, built when first asked for."""
        found = self._own.get(program)
        if found is None:
            source = (text or program.text)()
            handles = self._compile(source, sources.signatures(source))
            threads = threads or program.threads
            found = self._own[program] = {n: Kernel(n, handle, threads, shared) for n, handle in handles.items()}
        return found[name]

    def _counters(self, n: int) -> GpuArray:
        """At least n int32 zeros. Kernels run one after the other, so all share them."""
        if not self._zeros or len(self._zeros[-1]) < n:
            self._zeros.append(self.upload(np.zeros(max(4096, 2 * n), np.int32)))
        return self._zeros[-1]

    def _uses(self, *weights: Weight) -> None:
        """Notes the order of weights, which is the same in every step."""
        for w in weights:
            self._after[self._last], self._last = w, w.name

    # -- products --

    def _product(
        self, x: GpuArray, w: Weight, norm: Norm | None, bias: GpuArray | None, residual: GpuArray | None
    ) -> GpuArray:
        t, (rows, columns) = len(x), w.shape
        self._uses(w)
        if x.shape[1] != columns:
            return super()._product(x, w, norm, bias, residual)  # which says what is wrong
        if 0 < t <= FEW and matvec_ready(columns, w.fmt):
            program = Matvec("project", columns, t, (w.fmt,), rows)
            weight, eps = (norm.weight.handle, norm.eps) if norm else (None, 0.0)
            y = residual or self.empty((t, rows))
            self.run_kernel(
                self._kernel(program, "project"), program.blocks(rows), 1, x.handle, weight, eps, w.data.handle,
                handle_of(bias), handle_of(residual), y.handle, rows,
            )  # fmt: skip
            return y
        if self._on_tensor_cores(t, w):
            return self._multiply(self._halves(x, w, norm), w, t, bias, residual)
        return super()._product(x, w, norm, bias, residual)

    def own_product(self, x: GpuArray, w: Weight) -> GpuArray:
        t = len(x)
        if MatmulMma.ready(w.fmt, w.shape[1], self._arch):
            return self._multiply(self._halves(x, w, None), w, t, None, None)
        return super().own_product(x, w)

    @property
    def _arch(self) -> int:
        return 10 * self.capability[0] + self.capability[1]

    def _on_tensor_cores(self, tokens: int, *weights: Weight) -> bool:
        """Whether steps of so many tokens are multiplied by matmul_mma.h, and not by the vendor's library."""
        return tokens > FEW and all(
            MatmulMma.ready(w.fmt, w.shape[1], self._arch) and (tokens <= self.tuning.few or self.by_vendor(w) is None)
            for w in weights
        )

    def _halves(self, x: GpuArray, w: Weight, norm: Norm | None) -> tuple[GpuArray, GpuArray]:
        """x, or its norm, as halves for w's format, and the rows' factors."""
        t, columns = x.shape
        program = MatmulMma(w.fmt, t)
        half, factors = self.empty((t, columns), np.uint16), self.empty((t,))
        kind = "rows_half", program.macros["BRAIN"]
        kernel = self._kernel(kind, "rows_half", threads=program.threads, text=program.rows_half_text)
        weight, eps = (norm.weight.handle, norm.eps) if norm else (None, 0.0)
        self.run_kernel(kernel, t, 1, x.handle, weight, eps, half.handle, factors.handle, columns)
        return half, factors

    def _multiply(
        self,
        halves: tuple[GpuArray, GpuArray],
        w: Weight,
        t: int,
        bias: GpuArray | None,
        residual: GpuArray | None,
    ) -> GpuArray:
        rows, columns = w.shape
        grouped = self.warp_groups and t > 64 and MatmulWgmma.ready(w.fmt, columns, self._arch)
        program = (MatmulWgmma if grouped else MatmulMma)(w.fmt, t)
        key = grouped, w.fmt, program.tile_tokens
        kernel = self._kernel(
            key, "matmul_mma", threads=program.threads, shared=program.shared_nbytes, text=program.text
        )
        splits = program.splits(t, columns, rows, self.multiprocessors)
        parts = self.empty(program.parts_shape(t, rows, splits)) if splits > 1 else None
        counters = self._counters(program.counters_shape(t, rows)[0]) if splits > 1 else None
        y, (half, factors) = residual or self.empty((t, rows)), halves
        self.run_kernel(
            kernel, program.blocks(t, rows), splits, half.handle, factors.handle, w.data.handle, handle_of(bias),
            handle_of(residual), y.handle, handle_of(parts), handle_of(counters), t, columns, rows, splits,
        )  # fmt: skip
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
        (t, columns), weights = x.shape, (wq.weight, wk.weight, wv.weight)
        q, k, v = weights
        if self._on_tensor_cores(t, *weights) and len({w.fmt == "BF16" for w in weights}) == 1:
            self._uses(*weights)
            halves = self._halves(x, q, norm)
            q_out, k_out, v_out = (self._multiply(halves, w.weight, t, w.bias, None) for w in (wq, wk, wv))
            if wq.norm:
                q_out = self.rms_norm(q_out, wq.norm, kv.head_dim)
            if wk.norm:
                k_out = self.rms_norm(k_out, wk.norm, kv.head_dim)
            return self.rope_append(q_out, k_out, v_out, kv, rope, step)
        formats = q.fmt, k.fmt, v.fmt
        if t > FEW or wq.norm or wk.norm or kv.head_dim % 4 or not matvec_ready(columns, *formats):
            return super().qkv(x, norm, wq, wk, wv, rope, kv, step)
        self._uses(*weights)
        layout, data = self._layout(step, rope)
        program, y = Matvec("qkv", columns, t, formats, q.shape[0]), self.empty((t, q.shape[0]))
        self.run_kernel(
            self._kernel(program, "qkv"), program.blocks(q.shape[0], k.shape[0], v.shape[0]), 1, x.handle,
            norm.weight.handle, norm.eps, q.data.handle, k.data.handle, v.data.handle, handle_of(wq.bias),
            handle_of(wk.bias), handle_of(wv.bias), y.handle, kv.k.handle, kv.v.handle, kv.code, data, layout.rows_at,
            *turn(layout, rope), kv.head_dim, q.shape[0], k.shape[0],
        )  # fmt: skip
        return y

    def gated(self, x: GpuArray, norm: Norm, w_gate: Linear, w_up: Linear, activation: Activation) -> GpuArray:
        (t, columns), gate, up = x.shape, w_gate.weight, w_up.weight
        if self._on_tensor_cores(t, gate, up) and (gate.fmt == "BF16") == (up.fmt == "BF16"):
            self._uses(gate, up)
            halves = self._halves(x, gate, norm)
            a, b = (self._multiply(halves, w.weight, t, w.bias, None) for w in (w_gate, w_up))
            return self.gate(a, b, activation)
        if t > FEW or gate.fmt != up.fmt or not matvec_ready(columns, gate.fmt):
            return super().gated(x, norm, w_gate, w_up, activation)
        self._uses(gate, up)
        rows = gate.shape[0]
        program, y = Matvec("gated", columns, t, (gate.fmt,), rows), self.empty((t, rows))
        self.run_kernel(
            self._kernel(program, "gated"), program.blocks(rows), 1, x.handle, norm.weight.handle, norm.eps,
            gate.data.handle, up.data.handle, handle_of(w_gate.bias), handle_of(w_up.bias), y.handle,
            ACTIVATIONS[activation], rows,
        )  # fmt: skip
        return y

    def attend(self, q: GpuArray, kv: KVStore, step: Step, spec: AttnSpec) -> GpuArray:
        assert isinstance(kv, GpuKVStore)
        layout, data = self._layout(step)
        o, t, longest = self.empty(q.shape), layout.n_tokens, max(span.length for span in step.spans)
        if longest > SPAN_FEW and AttendMany.ready(kv.head_dim, kv.code, self._arch):
            many = AttendMany(kv.head_dim)
            self.run_kernel(
                self._kernel(many, "attend_many", shared=many.shared_nbytes), *many.grid(t, spec.n_heads), q.handle,
                kv.k.handle, kv.v.handle, o.handle, data, layout.first_at, layout.seen_at, t, spec.n_heads,
                kv.n_kv_heads, spec.scale, spec.window, spec.softcap,
            )  # fmt: skip
            return o
        if longest > SPAN_FEW or not AttendFew.ready(kv.head_dim):
            return super().attend(q, kv, step, spec)
        few = AttendFew(kv.head_dim, spec.n_heads, kv.n_kv_heads, kv.code)
        seen = min(layout.longest, spec.window) if spec.window else layout.longest
        splits = few.splits(seen, t, self.multiprocessors)
        parts = self.empty(few.parts_shape(t, splits)) if splits > 1 else None
        counters = self._counters(t * spec.n_heads) if splits > 1 else None
        after = self._after.get(self._last)
        next_handle, next_nbytes = (after.data.handle, min(after.nbytes, PREFETCHED)) if after else (None, 0)
        self.run_kernel(
            self._kernel((few.head_dim, few.queries, few.dtype), "attend_few", threads=few.threads, text=few.text),
            *few.grid(t, splits), q.handle, kv.k.handle, kv.v.handle, o.handle, handle_of(parts), handle_of(counters),
            data, layout.first_at, layout.seen_at, spec.n_heads, kv.n_kv_heads, spec.scale, spec.window, spec.softcap,
            splits, next_handle, next_nbytes,
        )  # fmt: skip
        return o

    # -- the next token --

    def can_draw(self, draw: Draw) -> bool:
        return sampling_ready(draw)

    def pick(self, logits: GpuArray, draws: Sequence[Draw] = ()) -> Picked:
        n = len(logits)
        if not draws and (self._likeliest is None or len(self._likeliest) < n):
            self._likeliest = self.upload(packed([Draw()] * max(n, 64)).reshape(-1, LAYOUT.itemsize))
        settings = self.upload(packed(draws)) if draws else self._likeliest
        picked = self.empty((n,), np.int32)
        self.draw_tokens(logits, settings, picked)
        return Picked(self.fetch(picked), picked)

    def draw_tokens(self, logits: GpuArray, settings: GpuArray | None, picked: GpuArray) -> None:
        """The tokens of logits [n, vocab] by n packed draws, into `picked` [n] int32."""
        n, vocabulary = logits.shape
        shape = sample_kept_shape(n, vocabulary)
        kept = self.empty(shape, np.int64)
        slices, choose = (
            self._kernel("sample", name, threads=SLICE // 2, text=sample_text)
            for name in ("sample_slices", "sample_pick")
        )
        self.run_kernel(slices, shape[1], n, logits.handle, handle_of(settings), kept.handle, vocabulary)
        self.run_kernel(choose, n, 1, kept.handle, handle_of(settings), picked.handle, shape[1])

    def fetch(self, x: GpuArray) -> Callable[[], NDArray[Any]]:
        """Starts to bring a small array to the host; what it returns gives it, and is called once."""
        return lambda: self.download(x)
