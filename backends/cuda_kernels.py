"""The programs of kernels/cuda: their text, grids, workspaces, and what they can do. Pure Python; knows no driver.

A program is what one compilation builds. Its kernels' arguments stand in their own files; `signatures` of
kernels/sources.py reads them. Everything here depends on shapes and formats only, so a backend can ask before it loads.
Compile with neither --use_fast_math nor -ftz=true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..kernels import sources
from .draw import Draw

MATVEC_FORMATS = {  # weights that one 16-byte load brings
    "F32": 4, "F16": 8, "BF16": 8, "Q8_0": 16, "Q4_0": 32, "Q4_1": 32, "Q5_0": 32, "Q5_1": 32, "Q4_K": 32, "Q5_K": 32,
    "Q6_K": 32, "IQ4_NL": 32,
}  # fmt: skip
MATVEC_TOKENS = 8  # tokens of one launch, at most
ROWS_AT_ONCE = 4  # rows of a warp, kernels/cuda/matvec.h
STATIC_SHARED = 48 << 10  # bytes of shared memory that a block has without asking

Macros = Mapping[str, int | str]


def text_of(
    files: Iterable[str], macros: Macros, *, prelude: str | None = None, instructions: Iterable[str] = ("cuda/ptx",)
) -> str:
    """Macros, prelude, and files of kernels/ ("cuda/matvec").

    `prelude` replaces that of CUDA and the files of `instructions`, for other compilers.
    """
    defines = [f"#define {name} {value}" for name, value in sorted(macros.items())]
    start = [prelude] if prelude is not None else [sources.read(f"{f}.h") for f in ("cuda/prelude", *instructions)]
    return "\n".join([*defines, *start, *(sources.read(f"{file}.h") for file in files)])


def matvec_ready(columns: int, *formats: str) -> bool:
    """Whether products of few tokens with such matrices have a kernel here."""
    return columns % 32 == 0 and all(fmt in MATVEC_FORMATS for fmt in formats)


@dataclass(frozen=True)
class Matvec:
    """A program of matvec.h for `tokens` tokens: "project", "gated" or "qkv", over `formats`.

    `rows` is the size of the larger matrix; qkv has three formats, the others one.
    """

    kind: str
    columns: int
    tokens: int
    formats: tuple[str, ...]
    rows: int = 0

    def __post_init__(self) -> None:
        assert 1 <= self.tokens <= MATVEC_TOKENS, self.tokens
        assert matvec_ready(self.columns, *self.formats), self
        assert len(self.formats) == (3 if self.kind == "qkv" else 1), self.formats

    @property
    def warps(self) -> int:
        """Warps of a block: few where there are few rows, so that the blocks spread evenly."""
        return 8 if self.rows >= 8192 or self.columns > 4096 else 4

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def tile(self) -> int:
        """Columns of x in shared memory at a time."""
        return self._tile(self.most_split)

    def _tile(self, most_split: int) -> int:
        strides = [_ahead(f) * 32 * self.split(f, most_split) * MATVEC_FORMATS[f] for f in self.formats]
        stride = max(strides)  # of powers of two, so each divides the largest
        room = (STATIC_SHARED - 4096) // (self.tokens * 4) * 16 // 17 - 288
        whole = -(-self.columns // 32) * 32
        return whole if whole <= room else room // stride * stride

    @property
    def most_split(self) -> int:
        """Warps that share a row, at most."""
        for most in (4, 2):
            if self._tile(most):
                return most
        return 1

    def split(self, fmt: str, most: int = 0) -> int:
        """Warps that share a row of a matrix of this format."""
        chunks, split = self.columns // MATVEC_FORMATS[fmt], 1
        while 2 * split <= (most or self.most_split) and chunks >= 64 * split:
            split *= 2
        return split

    def block_rows(self, fmt: str) -> int:
        """Rows that one block makes."""
        return ROWS_AT_ONCE * self.warps // self.split(fmt)

    @property
    def registers(self) -> int:
        """Of a thread, at most, so that nothing is spilled: IQ4_NL's look-ups need more than others' codes."""
        if self.tokens == 1:
            return 80
        return 168 if self.tokens > 4 or "IQ4_NL" in self.formats else 128

    def blocks(self, *rows: int) -> int:
        """The grid, for matrices of so many rows: one for each format, one for gate and up together."""
        each = 2 if self.kind == "gated" else 1
        return sum(-(-n * each // self.block_rows(fmt)) for n, fmt in zip(rows, self.formats, strict=True))

    @property
    def macros(self) -> dict[str, int | str]:
        names = "QKV" if self.kind == "qkv" else "W"
        found: dict[str, int | str] = {"COLUMNS": self.columns, "TOKENS": self.tokens, "WARPS": self.warps}
        for name, fmt in zip(names, self.formats, strict=True):
            found[f"FORMAT_{name}"], found[f"SPLIT_{name}"] = fmt, self.split(fmt)
        found["BLOCKS_AT_ONCE"] = 65536 // (self.registers * self.threads)
        return {**found, "TILE": self.tile, "GROUP_SIZE": self.threads, "RAGGED": 0, "COMPACT": 0}

    @property
    def files(self) -> tuple[str, ...]:
        return ("shared/team", "cuda/loads", "cuda/weights", "cuda/matvec", f"cuda/{self.kind}")

    def text(self, *, prelude: str | None = None) -> str:
        return text_of(self.files, self.macros, prelude=prelude)


@dataclass(frozen=True)
class AttendFew:
    """attend_few.h: attention of a few tokens, each over many rows. `dtype` is the cache's, 0 f16, 1 bf16, 2 f32."""

    head_dim: int
    heads: int
    heads_kv: int
    dtype: int = 0
    warps: int = 4
    split_rows: int = 64  # rows that are worth a part of their own

    @property
    def blocks_at_once(self) -> int:
        """Blocks on one multiprocessor: 48 KB of keys and values under way."""
        return 2 if self.dtype == 2 else 3

    @staticmethod
    def ready(head_dim: int) -> bool:
        return head_dim % 8 == 0 and 16 <= head_dim <= 256

    @property
    def queries(self) -> int:
        """Heads of a block: the most up to 4 that divide those that share keys."""
        return max(n for n in (1, 2, 3, 4) if self.heads // self.heads_kv % n == 0)

    @property
    def threads(self) -> int:
        return 32 * self.warps

    def splits(self, most_rows: int, tokens: int, units: int) -> int:
        """Parts for tokens that see up to `most_rows` rows: what keeps `units` multiprocessors busy.

        The grid and the workspace are sized by it; a launch uses fewer where fewer rows are seen.
        """
        groups = self.heads // self.queries * tokens
        return max(1, min(-(-most_rows // self.split_rows), -(-self.blocks_at_once * units // groups)))

    def grid(self, tokens: int, splits: int) -> tuple[int, int]:
        return self.heads // self.queries * splits, tokens

    def parts_shape(self, tokens: int, splits: int) -> tuple[int, ...]:
        """float32 workspace; its values do not matter."""
        return tokens, self.heads, splits, self.head_dim + 2

    def counters_shape(self, tokens: int) -> tuple[int, ...]:
        """int32 workspace of zeros, which every launch leaves as zeros."""
        return tokens, self.heads // self.queries

    @property
    def macros(self) -> dict[str, int | str]:
        return {
            "HEAD_DIM": self.head_dim, "QUERIES": self.queries, "CACHE_DTYPE": self.dtype, "WARPS": self.warps,
            "SPLIT_ROWS": self.split_rows, "BLOCKS_AT_ONCE": self.blocks_at_once,
        }  # fmt: skip

    def text(self, *, prelude: str | None = None) -> str:
        return text_of(("cuda/loads", "cuda/attend_few"), self.macros, prelude=prelude)


@dataclass(frozen=True)
class AttendMany:
    """attend_many.h: attention of spans of many tokens on tensor cores, over an f16 cache."""

    head_dim: int
    warps: int = 4

    @staticmethod
    def ready(head_dim: int, dtype: int, arch: int) -> bool:
        """`dtype` is the cache's, 0 f16; `arch` the compute capability times ten."""
        return head_dim % 16 == 0 and 16 <= head_dim <= 128 and dtype == 0 and arch >= 75

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared_nbytes(self) -> int:
        """Dynamic shared memory; above 48 KB it must be asked for."""
        return 4 * 64 * (64 if self.head_dim <= 32 else (128 if self.head_dim <= 64 else 256))

    def grid(self, tokens: int, heads: int) -> tuple[int, int]:
        return -(-tokens // (16 * self.warps)), heads

    @property
    def macros(self) -> dict[str, int | str]:
        return {"HEAD_DIM": self.head_dim, "WARPS": self.warps, "BLOCKS_AT_ONCE": 2}

    def text(self, *, prelude: str | None = None) -> str:
        return text_of(("cuda/attend_many",), self.macros, prelude=prelude)


MMA_FORMATS = tuple(fmt for fmt in MATVEC_FORMATS if fmt != "F32")  # F32 has the tiles of kernels/shared/matmul.h


@dataclass(frozen=True)
class MatmulMma:
    """matmul_mma.h, and rows_half.h which prepares its activations, for about `tokens` tokens."""

    fmt: str
    tokens: int

    @staticmethod
    def ready(fmt: str, columns: int, arch: int) -> bool:
        """`arch` is the compute capability times ten: 75, 80, 90."""
        return fmt in MMA_FORMATS and columns % 32 == 0 and arch >= (80 if fmt == "BF16" else 75)

    @property
    def tile_tokens(self) -> int:
        """Tokens of a block. Weights are read once for so many."""
        return next((n for n in (16, 32, 64) if self.tokens <= n), 128)

    @property
    def tile_rows(self) -> int:
        return 128

    @property
    def warps(self) -> int:
        return 8

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared_nbytes(self) -> int:
        """Dynamic shared memory; more than a block has without asking, so it must be asked for."""
        return 2 * 128 * (self.tile_tokens + self.tile_rows)

    def blocks(self, tokens: int, rows: int) -> int:
        return -(-tokens // self.tile_tokens) * -(-rows // self.tile_rows)

    def splits(self, tokens: int, columns: int, rows: int, units: int) -> int:
        """Parts of the columns, so that small products have two blocks for each of `units` multiprocessors."""
        stages, blocks = -(-columns // 64), self.blocks(tokens, rows)
        wanted = max(1, min(2 * units // blocks, stages // 4))
        each = -(-stages // wanted)
        return -(-stages // each)  # none is empty

    def parts_shape(self, tokens: int, rows: int, splits: int) -> tuple[int, ...]:
        """float32 workspace; its values do not matter. None is needed without splits."""
        return splits, tokens, rows

    def counters_shape(self, tokens: int, rows: int) -> tuple[int, ...]:
        """int32 workspace of zeros, which every launch leaves as zeros."""
        return (self.blocks(tokens, rows),)

    @property
    def macros(self) -> dict[str, int | str]:
        return {
            "FORMAT": self.fmt, "TILE_TOKENS": self.tile_tokens, "TILE_ROWS": self.tile_rows, "WARPS": self.warps,
            "AHEAD": 1 if self.tile_tokens == 128 else 2, "BRAIN": int(self.fmt == "BF16"),
            "BLOCKS_AT_ONCE": 1 if self.tile_tokens == 128 else 2,
        }  # fmt: skip

    def text(self, *, prelude: str | None = None) -> str:
        files = "cuda/loads", "cuda/weights", "cuda/tile", "cuda/tile_mma", "cuda/matmul_mma"
        return text_of(files, self.macros, prelude=prelude)

    def rows_half_text(self, *, prelude: str | None = None) -> str:
        """The program of rows_half for this format, also of 32 · warps threads."""
        macros = {"WARPS": self.warps, "BRAIN": int(self.fmt == "BF16")}
        return text_of(("cuda/rows_half",), macros, prelude=prelude)


@dataclass(frozen=True)
class MatmulWgmma(MatmulMma):
    """matmul_mma.h over tile_wgmma.h, for more than 64 tokens: only code for sm_90a has its instructions."""

    @staticmethod
    def ready(fmt: str, columns: int, arch: int) -> bool:
        return arch == 90 and MatmulMma.ready(fmt, columns, arch)

    @property
    def tile_tokens(self) -> int:
        return 128

    @property
    def macros(self) -> dict[str, int | str]:
        return {**super().macros, "BLOCKS_AT_ONCE": 2}

    def text(self, *, prelude: str | None = None) -> str:
        files = "cuda/loads", "cuda/weights", "cuda/tile", "cuda/tile_wgmma", "cuda/matmul_mma"
        return text_of(files, self.macros, prelude=prelude, instructions=("cuda/ptx", "cuda/wgmma"))


SLICE = 1024  # logits that a block of sample_slices sorts
MOST_KEPT = 64  # the largest top_k of sample.h


def sampling_ready(draw: Draw) -> bool:
    """Whether sample.h draws by these settings."""
    if draw.temperature <= 0 or 1 <= draw.top_k <= MOST_KEPT:
        return True
    # From all tokens: a logit over a very small temperature is no number in f32.
    return draw.top_k <= 0 and draw.top_p >= 1 and draw.min_p <= 0 and draw.temperature >= 1e-3


def sample_text(slice_size: int = SLICE, *, prelude: str | None = None) -> str:
    """sample_slices and sample_pick, of slice_size / 2 threads."""
    return text_of(("cuda/sample",), {"SLICE": slice_size, "MOST": MOST_KEPT}, prelude=prelude)


def sample_kept_shape(tokens: int, vocabulary: int, slice_size: int = SLICE) -> tuple[int, int, int]:
    """int64 workspace between the two; its second size is sample_slices' grid."""
    return tokens, -(-vocabulary // slice_size), MOST_KEPT


def _ahead(fmt: str) -> int:
    """Flow::AHEAD of kernels/cuda/matvec.h."""
    return 1 if MATVEC_FORMATS[fmt] == 32 else 2
