"""Rope, the key and value cache, and attention over it, on a GPU. Knows no driver and no weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import AttnSpec, BackendError, KVDtype, KVStore, RopeSpec, Step
from .gpu_device import ROWS_AT_ONCE, GpuDevice, handle_of
from .gpu_kv import GpuKVStore
from .gpu_memory import GpuArray, Handle
from .gpu_step import StepLayout

ROPES_KEPT = 4  # ropes whose tables go up with every step; a model has one or two


class GpuCache(GpuDevice):
    _ropes: tuple[RopeSpec, ...] = ()

    def _layout(self, step: Step, rope: RopeSpec | None = None) -> tuple[StepLayout, Handle]:
        """The step's data on the device. A rope that no step before used makes it go up again, once."""
        found = step.scratch.get(self)
        if found is not None and (rope is None or id(rope) in found[0].ropes):
            return found[0], found[1].handle
        if rope is not None and all(rope is not known for known in self._ropes):
            self._ropes = (*self._ropes, rope)[-ROPES_KEPT:]
        layout = StepLayout(step, self._ropes, self.tuning.attend_tokens)
        array = self.upload(layout.words)
        step.scratch[self] = (layout, array)
        return layout, array.handle

    def kv_alloc(self, capacity: int, n_kv_heads: int, head_dim: int, dtype: KVDtype = "f16") -> KVStore:
        if head_dim % 2:
            raise BackendError(f"{self.device}: heads of {head_dim} dimensions are not supported; an even number is")
        return GpuKVStore(self, capacity, n_kv_heads, head_dim, dtype)

    def rope(self, x: GpuArray, head_dim: int, rope: RopeSpec, step: Step) -> GpuArray:
        y = self.empty(x.shape)
        self._rope_append(x, y, None, None, None, head_dim, rope, step)
        return y

    def kv_append(self, kv: KVStore, k: GpuArray, v: GpuArray, step: Step) -> None:
        self._rope_append(None, None, k, v, kv, kv.head_dim, None, step)

    def _rope_append(
        self,
        q: GpuArray | None,
        q_out: GpuArray | None,
        k: GpuArray | None,
        v: GpuArray | None,
        kv: Any,
        head_dim: int,
        rope: RopeSpec | None,
        step: Step,
    ) -> None:
        layout, data = self._layout(step, rope)
        heads_q = q.shape[1] // head_dim if q else 0
        heads_kv = k.shape[1] // head_dim if k else 0
        keys, values, dtype = (kv.k.handle, kv.v.handle, kv.code) if kv else (None, None, 0)
        groups = self._groups((heads_q + 2 * heads_kv) * head_dim // 2)
        self.run_kernel(
            self._rows("rope_append"), groups, layout.n_tokens, handle_of(q), handle_of(q_out), handle_of(k),
            handle_of(v), keys, values, dtype, data, layout.rows_at, *turn(layout, rope), head_dim, heads_q, heads_kv,
        )  # fmt: skip

    def attend(self, q: GpuArray, kv: KVStore, step: Step, spec: AttnSpec) -> GpuArray:
        assert isinstance(kv, GpuKVStore)
        layout, data = self._layout(step)
        o, t = self.empty(q.shape), self.tuning
        tokens, tiles = (t.attend_tokens, layout.n_tiles) if layout.n_tiles else (1, layout.n_tokens)
        heads = t.heads_of(spec.n_heads // kv.n_kv_heads, tokens, kv.head_dim)
        groups = spec.n_heads // heads
        seen = min(layout.longest, spec.window) if spec.window else layout.longest
        splits = t.splits_of(seen, groups * tiles)
        program = self.programs.get("attend", kv.head_dim, heads, tokens, kv.code)
        parts = self.empty((layout.n_tokens, spec.n_heads, splits, kv.head_dim + 2)) if splits > 1 else None
        self.run_kernel(
            program["attend"], groups * splits, tiles, q.handle, kv.k.handle, kv.v.handle, o.handle,
            handle_of(parts), data, layout.first_at, layout.seen_at, layout.tiles_at, spec.n_heads, kv.n_kv_heads,
            spec.scale, spec.window, spec.softcap, splits,
        )  # fmt: skip
        if parts:
            self.run_kernel(
                program["attend_join"], spec.n_heads, layout.n_tokens, parts.handle, o.handle, spec.n_heads, splits
            )
        return o

    def kv_shift(self, kv: KVStore, rows: NDArray[np.int32], delta: NDArray[np.int32], rope: RopeSpec) -> None:
        assert isinstance(kv, GpuKVStore)
        plain = RopeSpec(rope.n_dims, rope.style, rope.inv_freq)  # the magnitude is in the stored keys already
        groups, neox = self._groups(rope.n_dims // 2 * kv.n_kv_heads), int(rope.style == "neox")
        for first in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            table = self.upload(np.stack(plain.table(delta[part])))  # [2, n, n_dims/2]
            chosen = self.upload(np.ascontiguousarray(rows[part], np.int32))
            self.run_kernel(
                self._rows("kv_shift"), groups, len(chosen), kv.k.handle, kv.code, chosen.handle, table.handle,
                len(chosen), rope.n_dims, neox, kv.head_dim, kv.n_kv_heads,
            )  # fmt: skip

    def kv_copy(self, kv: KVStore, source: NDArray[np.int32], target: NDArray[np.int32]) -> None:
        assert isinstance(kv, GpuKVStore)
        for first in range(0, len(source), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            chosen = self.upload(np.ascontiguousarray(source[part], np.int32))
            kv.copy(chosen, self.upload(np.ascontiguousarray(target[part], np.int32)))


def turn(layout: StepLayout, rope: RopeSpec | None) -> tuple[int, int, int, int]:
    """cos_at, sin_at, n_dims, neox of a rope in the step's data; a rope of no dimensions where there is none."""
    if rope is None:
        return 0, 0, 0, 0
    return *layout.ropes[id(rope)], rope.n_dims, int(rope.style == "neox")
