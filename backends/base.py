"""The contract between the engine and a backend: arrays, weights, cache rows and one ragged forward step.

Knows nothing of text, files, sampling or sequences' histories. Arrays are opaque to callers: whatever a backend
returns may be passed back to that backend, and only `download` gives NumPy arrays (and may block). Activations
are [T, n] float32 in value, whatever their storage; T is the number of tokens in the step.

A backend supplies the primitives. A transformer layer is written with the five composites (`qkv`, `attend`,
`project_add`, `gated`, `project_add`), whose defaults compose primitives and which a backend overrides where it has
measured a gain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .draw import Draw, Picked
from .errors import BackendError, BackendUnavailable, DeviceOutOfMemory, LayerliftError, UnsupportedFormat
from .selection import highest

__all__ = [
    "Array",
    "AttnSpec",
    "Backend",
    "BackendError",
    "BackendUnavailable",
    "DeviceInfo",
    "DeviceOutOfMemory",
    "Draw",
    "KVStore",
    "LayerliftError",
    "Linear",
    "Norm",
    "Picked",
    "Probe",
    "RopeSpec",
    "Span",
    "Stage",
    "Step",
    "UnsupportedFormat",
    "Weight",
    "Whole",
]

Array = Any  # a backend's own array type
KVDtype = Literal["f16", "bf16", "f32"]
Activation = Literal["silu", "gelu", "gelu_quick", "relu2"]


# ---------------------------------------------------------------------------------------------------------------
# Facts


@dataclass(frozen=True)
class DeviceInfo:
    """One place where layers can live. `free` and `total` are bytes; 0 means unknown (plain host memory)."""

    backend: str  # registry name: "cuda", "opencl", "cpu", "numpy"
    index: int
    name: str  # as the driver calls it
    vendor: str  # "nvidia", "amd", "intel", "apple", "cpu", or "" when unknown
    is_gpu: bool
    total: int = 0
    free: int = 0
    detail: str = ""  # instruction set, compute capability, driver

    def __str__(self) -> str:
        return f"{self.backend}:{self.index}"


@dataclass(frozen=True)
class Probe:
    """What a backend found on this machine: devices, or the reason there are none.

    `closed` has a line for each device that is there and cannot be used: which, why, and what to do about it.
    """

    backend: str
    devices: tuple[DeviceInfo, ...] = ()
    reason: str = ""
    closed: tuple[str, ...] = ()


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding of the first `n_dims` of each head (Su et al. 2021, arXiv:2104.09864).

    "norm" rotates neighbouring pairs (2i, 2i+1), as GGUF stores llama's q and k; "neox" rotates (i, i + n_dims/2).
    `inv_freq` [n_dims/2] float64 has every scaling folded in; `magnitude` multiplies cos and sin (YaRN).
    """

    n_dims: int
    style: Literal["norm", "neox"]
    inv_freq: NDArray[np.float64] = field(repr=False, compare=False)
    magnitude: float = 1.0

    def table(self, positions: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin [T, n_dims/2] float32; the angles are taken in float64, exact to position 2**31."""
        angles = positions.astype(np.float64)[:, None] * self.inv_freq  # [T, n_dims/2]
        cos, sin = np.cos(angles) * self.magnitude, np.sin(angles) * self.magnitude
        return cos.astype(np.float32), sin.astype(np.float32)


@dataclass(frozen=True)
class AttnSpec:
    """What differs between architectures in attention. `scale` multiplies q·k before the softmax."""

    n_heads: int
    scale: float
    window: int = 0  # a token sees itself and `window - 1` rows before it; 0 is no limit
    softcap: float = 0.0  # logits become softcap * tanh(logits / softcap); 0 is none


@dataclass(frozen=True)
class Weight:
    """A matrix [rows, columns] as a backend keeps it; `data` belongs to the backend."""

    name: str
    fmt: str  # a name of formats.py
    shape: tuple[int, int]
    nbytes: int  # on the device
    data: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class Norm:
    """RMS norm: x / sqrt(mean(x²) + eps) * weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    weight: Array  # [n] f32
    eps: float


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias, then `norm` of the output: per head in `qkv`, of the whole row elsewhere."""

    weight: Weight
    bias: Array | None = None  # [rows] f32
    norm: Norm | None = None


# ---------------------------------------------------------------------------------------------------------------
# One forward pass


@dataclass(frozen=True)
class Span:
    """One sequence's part of a step: tokens [start, start + length), attending over `rows` of the cache.

    `rows` [n] int32 are the sequence's rows in position order and end with the rows this step writes, so that
    token j of the span (counted from 0) sees rows[: n - length + j + 1].
    """

    start: int
    length: int
    rows: NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    """One ragged forward pass over the tokens of any number of sequences."""

    tokens: NDArray[np.int32] | Array  # [T], or `Picked.ids` of the step before
    positions: NDArray[np.int32]  # [T]
    rows: NDArray[np.int32]  # [T]: the cache row each token's key and value are written to
    spans: tuple[Span, ...]  # in order, covering [0, T)
    outputs: NDArray[np.int32]  # [n_out]: the tokens (indices into T, ascending) whose logits are wanted
    kv: Sequence[KVStore]  # one per layer
    # What a backend derives once per step and uses in every layer (rope tables, uploaded indices), by its own key.
    scratch: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value made once for this step under `key`."""
        if key not in self.scratch:
            self.scratch[key] = make()
        return self.scratch[key]


# One transformer layer: x [T, d] -> x [T, d]; the model's last one returns the rows of `step.outputs` only.
Block = Callable[["Backend", Array, Step], Array]


@dataclass(frozen=True)
class Stage:
    """Consecutive layers that live on one backend."""

    backend: Backend
    blocks: Sequence[Block]
    first_layer: int


@dataclass(frozen=True)
class Whole:
    """A model that is whole on one backend: its embedding, all its layers and its head."""

    table: Weight
    stage: Stage
    norm: Norm
    output: Linear


class KVStore(ABC):
    """One layer's keys and values on that layer's device, [capacity, n_kv_heads, head_dim] each."""

    capacity: int
    n_kv_heads: int
    head_dim: int
    dtype: KVDtype

    @property
    def row_nbytes(self) -> int:
        """Bytes of one token's key and value."""
        return 2 * self.n_kv_heads * self.head_dim * (4 if self.dtype == "f32" else 2)

    @abstractmethod
    def read(self, rows: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Host copies of keys and values, each [n, n_kv_heads, head_dim]: float16, uint16 (bf16's bits) or float32."""

    @abstractmethod
    def write(self, rows: NDArray[np.int32], k: NDArray[Any], v: NDArray[Any]) -> None:
        """The inverse of `read`."""


# ---------------------------------------------------------------------------------------------------------------
# The backend


class Backend(ABC):
    """A device that holds weights and runs layers. Open one with `registry.open_device`."""

    name: str
    device: DeviceInfo

    # -- finding and opening --

    @classmethod
    @abstractmethod
    def probe(cls) -> Probe:
        """The devices found, or the reason there are none. Never raises, allocates nothing on a device."""

    @classmethod
    @abstractmethod
    def open(cls, device: DeviceInfo, **options: Any) -> Backend:
        """Opens a device that `probe` found; raises BackendUnavailable.

        Options: `threads` (CPU), `kernels` (a KernelSettings). A backend passes over those it does not know.
        """

    @classmethod
    def choices(cls, device: DeviceInfo) -> tuple[str, ...]:
        """One line each: what else was found for a device that can be done in two ways, which one is used, and why.

        Never raises, leaves nothing allocated on the device.
        """
        return ()

    def close(self) -> None:  # noqa: B027  (NumPy holds nothing)
        """Gives back threads and device memory. Arrays and weights of this backend are dead afterwards."""

    # -- memory --

    def reserve(self, nbytes: int) -> None:  # noqa: B027  (host memory is there when it is needed)
        """Takes device memory for so many bytes, of which later allocations come. Raises DeviceOutOfMemory."""

    @abstractmethod
    def load(self, raw: NDArray[np.uint8], fmt: str, shape: tuple[int, int], name: str) -> Weight:
        """Takes a matrix [rows, columns] from its GGUF bytes; it stays quantised and may be repacked.

        `raw` is a read-only view of the mapped file. Raises UnsupportedFormat or DeviceOutOfMemory.
        """

    @abstractmethod
    def upload(self, host: NDArray[Any]) -> Array:
        """A host array on the device."""

    @abstractmethod
    def download(self, x: Array) -> NDArray[Any]:
        """A device array on the host. The only call that waits for the device."""

    def enter(self, x: Array, origin: Backend) -> Array:
        """Takes over an activation that `origin` computed: itself if that is this backend, else one copy."""
        return x if origin is self else self.upload(origin.download(x))

    def synchronize(self) -> None:  # noqa: B027  (a backend without a queue has nothing to wait for)
        """Waits until everything queued is done."""

    @abstractmethod
    def kv_alloc(self, capacity: int, n_kv_heads: int, head_dim: int, dtype: KVDtype = "f16") -> KVStore:
        """One layer's cache. Memory is committed as rows are written, where the system allows it."""

    # -- primitives --

    @abstractmethod
    def embed(self, table: Weight, tokens: NDArray[np.int32] | Array) -> Array:
        """Rows `tokens` [T] (or `Picked.ids`) of `table` [vocab, d], dequantised: [T, d]."""

    @abstractmethod
    def rms_norm(self, x: Array, norm: Norm, width: int = 0) -> Array:
        """RMS norm of each run of `width` values (default: the whole row)."""

    @abstractmethod
    def matmul(self, x: Array, w: Weight) -> Array:
        """x [T, columns] @ w [rows, columns].T: [T, rows]. Raises BackendError when the inner sizes differ."""

    @abstractmethod
    def rope(self, x: Array, head_dim: int, rope: RopeSpec, step: Step) -> Array:
        """Rotates every head of x [T, heads * head_dim] to its token's position."""

    @abstractmethod
    def kv_append(self, kv: KVStore, k: Array, v: Array, step: Step) -> None:
        """Writes k and v [T, n_kv_heads * head_dim] to rows `step.rows`."""

    @abstractmethod
    def attend(self, q: Array, kv: KVStore, step: Step, spec: AttnSpec) -> Array:
        """Causal softmax attention of q [T, n_heads * head_dim] over each span's rows: same shape as q."""

    @abstractmethod
    def gate(self, a: Array, b: Array, activation: Activation) -> Array:
        """activation(a) * b, element by element."""

    @abstractmethod
    def add(self, a: Array, b: Array) -> Array:
        """a + b; b may be one row [n] added to each."""

    @abstractmethod
    def kv_shift(self, kv: KVStore, rows: NDArray[np.int32], delta: NDArray[np.int32], rope: RopeSpec) -> None:
        """Rotates the keys of `rows` [n] from position p to p + delta[i]."""

    @abstractmethod
    def kv_copy(self, kv: KVStore, source: NDArray[np.int32], target: NDArray[np.int32]) -> None:
        """Copies keys and values of rows `source` [n] to rows `target` [n]; the two do not overlap."""

    @abstractmethod
    def select(self, x: Array, rows: NDArray[np.int32]) -> Array:
        """Rows of x: [len(rows), n]."""

    # -- composites --

    def linear(self, x: Array, w: Linear) -> Array:
        """x @ weight.T + bias: [T, rows]."""
        y = self.matmul(x, w.weight)
        return y if w.bias is None else self.add(y, w.bias)

    def qkv(
        self, x: Array, norm: Norm, wq: Linear, wk: Linear, wv: Linear, rope: RopeSpec | None, kv: KVStore, step: Step
    ) -> Array:
        """Norm, the three products, rope, append to the cache; q [T, n_heads * head_dim]."""
        h = self.rms_norm(x, norm)  # [T, d]
        q, k, v = self.linear(h, wq), self.linear(h, wk), self.linear(h, wv)
        if wq.norm:
            q = self.rms_norm(q, wq.norm, kv.head_dim)
        if wk.norm:
            k = self.rms_norm(k, wk.norm, kv.head_dim)
        return self.rope_append(q, k, v, kv, rope, step)

    def rope_append(self, q: Array, k: Array, v: Array, kv: KVStore, rope: RopeSpec | None, step: Step) -> Array:
        """Rotates q and k where there is a rope, writes k and v to the cache; the rotated q. May reuse their memory."""
        if rope:
            q = self.rope(q, kv.head_dim, rope, step)
            k = self.rope(k, kv.head_dim, rope, step)
        self.kv_append(kv, k, v, step)
        return q

    def project_add(self, h: Array, w: Linear, x: Array) -> Array:
        """x + h @ w.T, the product normed first where `w.norm` is set: [T, d]. May reuse x's memory."""
        y = self.linear(h, w)
        if w.norm:
            y = self.rms_norm(y, w.norm)
        return self.add(x, y)

    def gated(self, x: Array, norm: Norm, w_gate: Linear, w_up: Linear, activation: Activation) -> Array:
        """activation(n(x) @ w_gate.T) * (n(x) @ w_up.T): [T, d_ff]."""
        h = self.rms_norm(x, norm)
        return self.gate(self.linear(h, w_gate), self.linear(h, w_up), activation)

    def head(self, x: Array, norm: Norm, w: Linear) -> Array:
        """Logits [n_out, vocab] of the last layer's output x [n_out, d]."""
        return self.linear(self.rms_norm(x, norm), w)

    def can_draw(self, draw: Draw) -> bool:
        """Whether `pick` takes tokens by these settings."""
        return draw.temperature <= 0

    def pick(self, logits: Array, draws: Sequence[Draw] = ()) -> Picked:
        """A token of each row of logits [n, vocab] by `draws` [n], or the likeliest; of equals the one of lower id."""
        ids = self.download(logits).argmax(axis=-1).astype(np.int32)
        return Picked(lambda: ids)

    def topk(self, logits: Array, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The k most likely tokens of each row of logits [n, vocab] and their logits, both [n, k], likeliest first.

        Ties go to the lower id, and a NaN counts as the highest. Where fewer than k tokens are above -inf, others at
        -inf fill up.
        """
        rows = self.download(logits)
        k = min(k, rows.shape[1])
        ids, values = np.zeros((len(rows), k), np.int32), np.full((len(rows), k), -np.inf, np.float32)
        for i, row in enumerate(rows):
            plain = row if row.max() == row.max() else np.where(np.isnan(row), np.float32(np.inf), row)
            best = highest(plain, k)
            ids[i, : len(best)], values[i, : len(best)] = best, row[best]
        return ids, values

    def tune(self, weights: Sequence[Weight], tokens: int) -> str:
        """Measures what can be done in two ways on a model's matrices, records the winner; one line that says so.

        `tokens` is the length of a long step. "" where there is nothing to choose.
        """
        return ""

    def run(self, stage: Stage, x: Array, step: Step) -> Array:
        """All layers of a stage. A backend may record and replay them."""
        for block in stage.blocks:
            x = block(self, x, step)
        return x

    def answer(self, whole: Whole, step: Step, draws: Sequence[Draw] | None) -> tuple[Array, Picked | None]:
        """A step from its tokens to its logits [n_out, vocab], and what `pick` takes of them (None: nothing).

        The logits are there until the next step; `Picked.ids` may be the tokens of that one.
        """
        logits = self.head(self.run(whole.stage, self.embed(whole.table, step.tokens), step), whole.norm, whole.output)
        return logits, None if draws is None else self.pick(logits, draws)
