"""The table of cases that every backend must answer alike, and how one case is run and judged.

One table serves four uses: the tests, the op benchmark, the support table of the docs and `layerlift devices --check`
on a user's machine. Every case is compared with float64 NumPy; its outputs are poisoned with NaN first where the
backend lets them be. The error of a case is its normalised mean square error: sum((y - e)²) / sum(e²).

The bounds are for float32 activations and float32 accumulation. A backend that rounds activations to 8 bits has an
NMSE near 4e-5 in a product, one that rounds them to bfloat16 near 6e-6; `relaxed` is the bound of such a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import AttnSpec, Backend, KVDtype, Linear, Norm, RopeSpec, Span, Step
from .numpy_decode import decode_rows
from .oracle import exact_activation, exact_attention, exact_norm, exact_rope
from .random_blocks import FORMATS, random_rows

EXACT = 1e-10  # float32 against float64, with room for long sums
RELAXED = 1e-4  # activations rounded to 8 bits in blocks
HALF = 1e-6  # a value stored as f16 on the way
BRAIN = 1e-4  # a value stored as bf16 on the way


@dataclass(frozen=True)
class OpCase:
    """`run(backend)` gives the op's result on the host, `expect()` the same in float64."""

    op: str
    label: str
    run: Callable[[Backend], NDArray[Any]]
    expect: Callable[[], NDArray[Any]]
    nmse: float = EXACT
    relaxed: float = EXACT  # for backends that round activations (see the module's text)
    fmt: str = ""
    nbytes: int = 0  # weight or cache bytes that must be read
    flops: int = 0

    def __str__(self) -> str:
        return f"{self.op}[{self.label}]"


@dataclass(frozen=True)
class Verdict:
    """How far a backend is from float64 in one case."""

    case: OpCase
    nmse: float
    max_error: float
    ok: bool
    bound: float = 0.0  # the NMSE that is still right


def judge(case: OpCase, backend: Backend, *, relaxed: bool = False) -> Verdict:
    """Runs one case. NaN anywhere in the result is a failure. Raises what the backend raises, UnsupportedFormat too."""
    got, want = np.asarray(case.run(backend), np.float64), case.expect()
    if got.shape != want.shape:
        return Verdict(case, np.inf, np.inf, False)
    error = got - want
    nmse = float((error**2).sum() / max((want**2).sum(), 1e-30))
    bound = max(case.relaxed, case.nmse) if relaxed else case.nmse
    return Verdict(case, nmse, float(np.abs(error).max(initial=0.0)), bool(nmse <= bound), bound)


def all_cases() -> Iterator[OpCase]:
    """Every case, cheap ones first."""
    yield from _elementwise()
    yield from _norms()
    yield from _ropes()
    yield from _embeds()
    yield from _matmuls()
    yield from _attention()
    yield from _cache_moves()
    yield from _composites()


# ---------------------------------------------------------------------------------------------------------------
# Inputs


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def matrix(fmt: str, rows: int, columns: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A random weight: its GGUF bytes, flat, and its values in float64."""
    raw = random_rows(fmt, rows, columns, columns**-0.5, np.random.default_rng([seed, rows, columns]))
    return raw.reshape(-1), decode_rows(raw, fmt, columns).astype(np.float64)


def one_step(lengths: list[tuple[int, int]], capacity: int, kv: Any = (), *, gaps: bool = True) -> Step:
    """A step of spans (rows before it, tokens in it); with `gaps` their rows lie scattered over the cache."""
    order = np.random.default_rng(capacity).permutation(capacity) if gaps else np.arange(capacity)
    spans, rows, positions, start, taken = [], [], [], 0, 0
    for before, length in lengths:
        own = order[taken : taken + before + length].astype(np.int32)
        taken += before + length
        spans.append(Span(start, length, own))
        rows.append(own[before:])
        positions.append(np.arange(before, before + length, dtype=np.int32))
        start += length
    return Step(
        tokens=np.arange(start, dtype=np.int32),
        positions=np.concatenate(positions),
        rows=np.concatenate(rows),
        spans=tuple(spans),
        outputs=np.array([start - 1], np.int32),
        kv=kv,
    )


def rope_spec(n_dims: int, style: Any, magnitude: float = 1.0) -> RopeSpec:
    return RopeSpec(n_dims, style, 10000.0 ** (-np.arange(0, n_dims, 2) / n_dims), magnitude)


# ---------------------------------------------------------------------------------------------------------------
# The cases


def _elementwise() -> Iterator[OpCase]:
    a, b = normal(3, 1023), normal(3, 1023, seed=1)
    a[0, :4] = 0.0, 90.0, -90.0, 1e-8  # where an exponential over- or underflows
    for activation in ("silu", "gelu", "gelu_quick", "relu2"):
        yield OpCase(
            "gate",
            activation,
            lambda be, act=activation: be.download(be.gate(be.upload(a), be.upload(b), act)),
            lambda act=activation: exact_activation(a.astype(np.float64), act) * b,
        )
    yield OpCase("add", "rows", lambda be: be.download(be.add(be.upload(a), be.upload(b))), lambda: a.astype(float) + b)
    yield OpCase(
        "add", "bias", lambda be: be.download(be.add(be.upload(a), be.upload(b[0]))), lambda: a.astype(float) + b[0]
    )
    rows = np.array([2, 0, 2], np.int32)
    yield OpCase("select", "rows", lambda be: be.download(be.select(be.upload(a), rows)), lambda: a[rows].astype(float))
    logits = normal(5, 4099)
    logits[1, [7, 4000]] = 50.0  # a tie: the lower id wins
    yield OpCase("pick", "ties", lambda be: be.pick(be.upload(logits)).wait(), lambda: logits.argmax(-1).astype(float))
    for k in (1, 40, 128, 200):
        yield OpCase(
            "topk", f"{k} ties", lambda be, k=k: be.topk(be.upload(logits), k)[0], lambda k=k: _best(logits, k)
        )


def _best(logits: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    return np.argsort(-logits, axis=-1, kind="stable")[:, :k].astype(float)


def _norms() -> Iterator[OpCase]:
    for t, n, width in ((1, 576, 0), (3, 2048, 0), (2, 1000, 0), (5, 384, 64), (1, 128, 128)):
        x, w = normal(t, n) * 3, normal(width or n, seed=1)
        yield OpCase(
            "rms_norm",
            f"{t}x{n}/{width or n}",
            lambda be, x=x, w=w, width=width: be.download(be.rms_norm(be.upload(x), Norm(be.upload(w), 1e-5), width)),
            lambda x=x, w=w, width=width: exact_norm(x, w, 1e-5, width),
        )


def _ropes() -> Iterator[OpCase]:
    for style, heads, head_dim, n_dims, far in (
        ("norm", 9, 64, 64, 0),
        ("neox", 2, 128, 128, 0),
        ("norm", 3, 64, 32, 0),
        ("neox", 1, 80, 20, 0),
        ("norm", 4, 64, 64, 100_000),
    ):
        rope, x = rope_spec(n_dims, style, 1.25 if far else 1.0), normal(5, heads * head_dim)
        step = one_step([(0, 3), (7, 2)], 16)
        step.positions[:] += far
        yield OpCase(
            "rope",
            f"{style} {heads}x{head_dim} dims={n_dims} from={far}",
            lambda be, x=x, d=head_dim, r=rope, s=step: be.download(be.rope(be.upload(x), d, r, _fresh(s))),
            lambda x=x, d=head_dim, r=rope, s=step: exact_rope(x, d, r, s.positions),
        )


def _embeds() -> Iterator[OpCase]:
    tokens = np.array([0, 36, 5, 5], np.int32)
    for fmt in FORMATS:
        raw, values = matrix(fmt, 37, 512)
        yield OpCase(
            "embed",
            fmt,
            lambda be, raw=raw, fmt=fmt: be.download(be.embed(be.load(raw, fmt, (37, 512), "table"), tokens)),
            lambda values=values: values[tokens],
            fmt=fmt,
        )


def _matmuls() -> Iterator[OpCase]:
    for fmt in FORMATS:
        for t, rows, columns in ((1, 37, 512), (2, 19, 768), (7, 64, 256), (33, 50, 512)):
            raw, values = matrix(fmt, rows, columns)
            x = normal(t, columns)
            yield OpCase(
                "matmul",
                f"{fmt} {t}x{columns}x{rows}",
                lambda be, raw=raw, fmt=fmt, shape=(rows, columns), x=x: be.download(
                    be.matmul(be.upload(x), be.load(raw, fmt, shape, "w"))
                ),
                lambda x=x, values=values: x.astype(np.float64) @ values.T,
                relaxed=RELAXED,
                fmt=fmt,
                nbytes=raw.nbytes,
                flops=2 * t * rows * columns,
            )
    # Rows that no block of 256 divides: SmolLM2's width is 576.
    for fmt in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"):
        for t in (1, 5):
            raw, values = matrix(fmt, 23, 576)
            x = normal(t, 576) * np.where(np.arange(576) % 97 == 3, np.float32(40), np.float32(1))  # with outliers
            yield OpCase(
                "matmul",
                f"{fmt} {t}x576x23 outliers",
                lambda be, raw=raw, fmt=fmt, x=x: be.download(
                    be.matmul(be.upload(x), be.load(raw, fmt, (23, 576), "w"))
                ),
                lambda x=x, values=values: x.astype(np.float64) @ values.T,
                relaxed=5 * RELAXED,
                fmt=fmt,
                nbytes=raw.nbytes,
                flops=2 * t * 23 * 576,
            )


@dataclass(frozen=True)
class AttentionShape:
    """One case of attention: spans of (rows before, tokens)."""

    label: str
    heads: int
    kv_heads: int
    head_dim: int
    lengths: list[tuple[int, int]]
    dtype: KVDtype = "f16"
    window: int = 0
    softcap: float = 0.0
    gaps: bool = True


def _attention() -> Iterator[OpCase]:
    for shape in (
        AttentionShape("decode", 9, 3, 64, [(300, 1)]),
        AttentionShape("prefill", 8, 2, 64, [(0, 37)]),
        AttentionShape("chunk", 4, 4, 128, [(65, 17)]),
        AttentionShape("ragged", 6, 2, 64, [(0, 5), (130, 1), (17, 3), (0, 1)]),
        AttentionShape("window", 4, 2, 64, [(50, 20), (200, 1)], window=24),
        AttentionShape("softcap", 4, 2, 96, [(9, 7)], "f32", softcap=5.0),
        AttentionShape("bf16 cache", 4, 1, 64, [(40, 2)], "bf16"),
        AttentionShape("f32 cache", 2, 2, 40, [(3, 3)], "f32"),
        AttentionShape("contiguous", 8, 8, 64, [(500, 1)], gaps=False),
    ):
        yield _attention_case(shape)


def _attention_case(a: AttentionShape) -> OpCase:
    total = sum(sum(pair) for pair in a.lengths) + 3
    spec = AttnSpec(a.heads, a.head_dim**-0.5, a.window, a.softcap)
    step = one_step(a.lengths, total, gaps=a.gaps)
    q = normal(len(step.tokens), a.heads * a.head_dim) * 2
    k, v = (_rounded(normal(total, a.kv_heads, a.head_dim, seed=seed), a.dtype) for seed in (1, 2))
    return OpCase(
        "attend",
        f"{a.label} {a.heads}/{a.kv_heads}x{a.head_dim}",
        lambda be: be.download(be.attend(be.upload(q), _filled(be, k, v, a.dtype), _fresh(step), spec)),
        lambda: exact_attention(q, k, v, step, spec),
        nmse=1e-9,
        relaxed=HALF,
        nbytes=2 * total * a.kv_heads * a.head_dim * 2,
        flops=4 * len(q) * total * a.heads * a.head_dim,
    )


def _cache_moves() -> Iterator[OpCase]:
    yield from _moves_of("f32", EXACT)
    yield from _moves_of("f16", HALF)
    yield from _moves_of("bf16", BRAIN)


def _moves_of(dtype: KVDtype, bound: float) -> Iterator[OpCase]:
    k, v = normal(11, 2, 64), normal(11, 2, 64, seed=1)
    rows, target = np.array([3, 9, 4], np.int32), np.array([0, 10, 7], np.int32)
    delta, rope = np.array([-5, 2, -700], np.int32), rope_spec(64, "norm", 1.25)

    def append(be: Backend) -> NDArray[Any]:
        kv, step = be.kv_alloc(20, 2, 64, dtype), one_step([(0, 11)], 20)
        be.kv_append(kv, be.upload(k.reshape(11, -1)), be.upload(v.reshape(11, -1)), step)
        return _stored(np.stack(kv.read(step.rows)), dtype)

    def copy(be: Backend, k: Any = k, v: Any = v, dtype: Any = dtype, rows: Any = rows, target: Any = target) -> Any:
        kv = _filled(be, k, v, dtype)
        be.kv_copy(kv, rows, target)
        return _stored(np.stack(kv.read(target)), dtype)

    def shift(be: Backend) -> NDArray[Any]:
        kv = _filled(be, k, v, dtype)
        be.kv_shift(kv, rows, delta, rope)
        return _stored(np.stack(kv.read(np.arange(11, dtype=np.int32))), dtype)

    def shifted() -> NDArray[np.float64]:
        want = np.stack([k, v]).astype(np.float64)
        plain = RopeSpec(64, "norm", rope.inv_freq)  # the magnitude is in the stored keys already
        want[0, rows] = exact_rope(k[rows].reshape(3, -1), 64, plain, delta).reshape(3, 2, 64)
        return want

    both = np.stack([k, v]).astype(np.float64)
    yield OpCase("kv_append", dtype, append, lambda: both, nmse=bound)
    yield OpCase("kv_copy", dtype, copy, lambda: both[:, rows], nmse=bound)
    yield OpCase("kv_shift", dtype, shift, shifted, nmse=bound)


def _composites() -> Iterator[OpCase]:
    """The five composites of a layer, with and without what only some architectures have."""
    heads, kv_heads, head_dim, d, d_ff, t = 6, 2, 64, 512, 768, 5
    x, w_norm = normal(t, d), 1 + 0.1 * normal(d, seed=1)
    for fmt in ("F32", "Q8_0", "Q4_1", "Q6_K"):
        for bias in (False, True):
            yield from _layer_cases(fmt, bias, x, w_norm, (heads, kv_heads, head_dim, d, d_ff))


def _layer_cases(
    fmt: str, bias: bool, x: NDArray[np.float32], w_norm: NDArray[np.float32], sizes: tuple[int, int, int, int, int]
) -> Iterator[OpCase]:
    heads, kv_heads, head_dim, d, d_ff = sizes
    shapes = {
        "q": (heads * head_dim, d),
        "k": (kv_heads * head_dim, d),
        "v": (kv_heads * head_dim, d),
        "gate": (d_ff, d),
        "up": (d_ff, d),
        "down": (d, d_ff),
    }
    weights = {name: matrix(fmt, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    biases = {name: normal(shape[0], seed=9) for name, shape in shapes.items()}
    step, rope = one_step([(0, 3), (4, 2)], 16), rope_spec(head_dim, "neox" if bias else "norm")
    label = f"{fmt}{' bias' if bias else ''}"
    normed = exact_norm(x, w_norm, 1e-5)

    def linear(be: Backend, name: str) -> Linear:
        loaded = be.load(weights[name][0], fmt, shapes[name], name)
        return Linear(loaded, be.upload(biases[name]) if bias else None)

    def exact(name: str, h: NDArray[np.float64]) -> NDArray[np.float64]:
        return h @ weights[name][1].T + (biases[name] if bias else 0.0)

    def qkv(be: Backend) -> NDArray[Any]:
        kv = be.kv_alloc(16, kv_heads, head_dim, "f32")
        norm = Norm(be.upload(w_norm), 1e-5)
        q = be.qkv(be.upload(x), norm, linear(be, "q"), linear(be, "k"), linear(be, "v"), rope, kv, _fresh(step))
        k, v = kv.read(step.rows)
        return np.concatenate([be.download(q), k.reshape(len(x), -1), v.reshape(len(x), -1)], axis=1)

    def exact_qkv() -> NDArray[np.float64]:
        q, k = (exact_rope(exact(name, normed), head_dim, rope, step.positions) for name in "qk")
        return np.concatenate([q, k, exact("v", normed)], axis=1)

    h = normal(len(x), d_ff, seed=4)
    relaxed = RELAXED
    yield OpCase("qkv", label, qkv, exact_qkv, relaxed=relaxed, fmt=fmt)
    yield OpCase(
        "gated",
        label,
        lambda be: be.download(
            be.gated(be.upload(x), Norm(be.upload(w_norm), 1e-5), linear(be, "gate"), linear(be, "up"), "silu")
        ),
        lambda: exact_activation(exact("gate", normed), "silu") * exact("up", normed),
        relaxed=2 * relaxed,
        fmt=fmt,
    )
    yield OpCase(
        "project_add",
        label,
        lambda be: be.download(be.project_add(be.upload(h), linear(be, "down"), be.upload(x.copy()))),
        lambda: x + exact("down", h.astype(np.float64)),
        relaxed=relaxed,
        fmt=fmt,
    )


# ---------------------------------------------------------------------------------------------------------------
# Small pieces


def _fresh(step: Step) -> Step:
    """The step without what another backend left in its scratch."""
    return Step(step.tokens, step.positions, step.rows, step.spans, step.outputs, step.kv)


def _rounded(x: NDArray[np.float32], dtype: KVDtype) -> NDArray[np.float32]:
    """x as the cache will hold it, so that rounding on the way in is no error of attention."""
    if dtype == "bf16":
        return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return x.astype(np.float16).astype(np.float32) if dtype == "f16" else x


def _to_cache(x: NDArray[np.float32], dtype: KVDtype) -> NDArray[Any]:
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16 if dtype == "f16" else np.float32)


def _stored(x: NDArray[Any], dtype: KVDtype) -> NDArray[np.float64]:
    if dtype == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def _filled(be: Backend, k: NDArray[np.float32], v: NDArray[np.float32], dtype: KVDtype) -> Any:
    kv = be.kv_alloc(len(k), k.shape[1], k.shape[2], dtype)
    kv.write(np.arange(len(k), dtype=np.int32), _to_cache(k, dtype), _to_cache(v, dtype))
    return kv
