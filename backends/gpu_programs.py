"""Which kernels a GPU backend needs, with which macros, compiled when first asked for. Knows no driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..kernels import sources
from .gpu_repack import FLOATS


@dataclass(frozen=True)
class Tuning:
    """Sizes that follow from the device. A work group never exceeds `group` or the tile's threads."""

    group: int = 64  # threads of most work groups
    lanes: int = 32  # most threads that share a row of a matrix
    tile_tokens: int = 64
    tile_rows: int = 64
    tile_depth: int = 64
    thread_tokens: int = 8
    thread_rows: int = 4
    few: int = 8  # up to so many tokens the products read the weights once for each token
    attend_heads: int = 4  # most heads that share the reading of their keys
    attend_tokens: int = 8  # of a long step that share it too
    attend_queries: int = 24  # most heads times tokens
    split_rows: int = 256  # cache rows that are worth a work group of their own
    compact: bool = False  # short programs, for devices that gain nothing from unrolled loops
    units: int = 64  # work groups that keep the device busy
    halves: int = 0  # optional parts of OpenCL, by the values of their macros in kernels/opencl/prelude.h
    subgroups: int = 0
    dot: int = 0

    def __post_init__(self) -> None:
        per_thread = self.thread_tokens * self.thread_rows
        assert self.tile_tokens * self.tile_rows == self.tile_threads * per_thread, "the threads do not fill the tile"
        assert self.thread_rows % 4 == 0, "rows are added four at a time"
        assert self.group & (self.group - 1) == 0, "groups are halved in sums"
        assert self.lanes <= self.group, "a team lies within a group"

    @property
    def tile_threads(self) -> int:
        return self.tile_rows * self.tile_depth // 32

    def lanes_of(self, columns: int) -> int:
        """Threads of a team: a power of two, with two units of 32 weights or more for each."""
        lanes = 1
        while lanes < self.lanes and 4 * lanes * 32 <= columns:
            lanes *= 2
        return lanes

    def heads_of(self, shared: int, tokens: int, head_dim: int) -> int:
        """Heads that one work group takes, of `shared` with the same keys: the most that divide them."""
        room = min(self.attend_queries, 3072 // head_dim)  # queries of 12 KiB of local memory
        most = min(self.attend_heads, max(1, room // tokens))
        return max(n for n in range(1, most + 1) if shared % n == 0)

    def splits_of(self, seen: int, groups: int) -> int:
        """Parts of a context of `seen` rows, so that `groups` work groups become enough for the device."""
        return max(1, min(seen // self.split_rows, self.units // max(1, groups), 64))


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel; `handle` is the driver's, `threads` the size of a work group.

    `shared`: bytes of local memory that a launch asks for, beside what the text declares.
    """

    name: str
    handle: Any
    threads: int
    shared: int = 0


Program = dict[str, Kernel]
Compile = Callable[[str, dict[str, tuple[str, ...]]], dict[str, Any]]


class Programs:
    """Kernels by what they are for. `compile(text, signatures)` gives the driver's handles by kernel name."""

    def __init__(self, language: str, tuning: Tuning, compile: Compile):
        self._language, self._tuning, self._compile = language, tuning, compile
        self._made: dict[Any, Program] = {}

    def get(self, kind: str, *parameters: Any) -> Program:
        """The program `kind` of TEXTS for these parameters."""
        key = (kind, *parameters)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._build(text_of(self._language, self._tuning, kind, *parameters))
        return found

    def _build(self, text: str) -> Program:
        signatures, tuning = sources.signatures(text), self._tuning
        handles = self._compile(text, signatures)
        return {
            name: Kernel(name, handles[name], tuning.tile_threads if name == "matmul" else tuning.group)
            for name in signatures
        }


def text_of(language: str, tuning: Tuning, kind: str, *parameters: Any) -> str:
    """The source of a program: one of TEXTS."""
    files, macros = TEXTS[kind](tuning, *parameters)
    device = {"GROUP_SIZE": tuning.group, "COMPACT": int(tuning.compact), "SUBGROUPS": tuning.subgroups}
    return sources.program(language, files, {**device, **macros})


TWO_SCALES = ("Q2_K", "Q3_K", "Q6_K")  # for the 32 weights of a unit
Text = tuple[tuple[str, ...], dict[str, int | str]]


def _decoders(ragged: bool, **formats: str) -> dict[str, int | str]:
    """DECODE=… macros by format name, and what they need."""
    used = {f"USE_{fmt}": 1 for fmt in formats.values()}
    return {"RAGGED": int(ragged), **used, **{macro: f"decode_{fmt.lower()}" for macro, fmt in formats.items()}}


def _qkv(_: Tuning, q: str, k: str, v: str, ragged: bool) -> Text:
    return ("decode", "team", "unit", "qkv"), _decoders(ragged, DECODE_Q=q, DECODE_K=k, DECODE_V=v)


def _gated(_: Tuning, gate: str, up: str, ragged: bool) -> Text:
    return ("decode", "team", "unit", "gated"), _decoders(ragged, DECODE_GATE=gate, DECODE_UP=up)


def _product(t: Tuning, fmt: str, ragged: bool) -> Text:
    integers = t.dot and fmt not in FLOATS
    return ("decode", "team", "unit", "product", "matmul_dot" if integers else "matmul"), {
        **_decoders(ragged, DECODE=fmt),
        "CODES": f"codes_{fmt.lower()}",
        "RUN": 16 if fmt in TWO_SCALES else 32,
        "HALVES": t.halves,
        "DOT": t.dot,
        "TILE_TOKENS": t.tile_tokens,
        "TILE_ROWS": t.tile_rows,
        "TILE_DEPTH": t.tile_depth,
        "TILE_THREADS": t.tile_threads,
        "THREAD_TOKENS": t.thread_tokens,
        "THREAD_ROWS": t.thread_rows,
    }


def _attend(_: Tuning, head_dim: int, heads: int, tokens: int, dtype: int) -> Text:
    sizes = {"HEAD_DIM": head_dim, "HEADS": heads, "TOKENS": tokens}
    return ("team", "attend"), {**sizes, "CACHE_DTYPE": dtype, "RAGGED": 0}


TEXTS: dict[str, Callable[..., Text]] = {
    "rows": lambda _: (("team", "rows", "cache"), {"RAGGED": 0}),
    "product": _product,
    "qkv": _qkv,
    "gated": _gated,
    "attend": _attend,
    "top_k": lambda _: (("top_k",), {}),
    "dense": lambda _, fmt: (("decode", "team", "dense"), _decoders(False, DECODE=fmt)),
}
