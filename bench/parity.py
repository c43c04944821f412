"""Compares logits with llama.cpp's, teacher-forced: the same tokens, the same positions, every position's logits.

    python -m layerlift.bench.parity MODEL.gguf --peer-python PYTHON [--text FILE] [--start 0] [--exact]

PYTHON is an interpreter that has llama-cpp-python; it runs in its own process. Prints one Markdown row a text.

llama.cpp rounds activations to 8 bits before it multiplies quantised weights, which alone moves a few top-1 in a
hundred. With `--exact` it gets the same weights decoded to F32, multiplies them in float, and what is left is the
difference between the two programs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Span, Step
from ..runtime.model import Model

# Runs in the peer's interpreter: tokens in, logits out, through files.
PEER = """
import ctypes, sys, numpy as np, llama_cpp as L
model_path, start, inp, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
L.llama_backend_init()
quiet = L.llama_log_callback(lambda *a: None)
L.llama_log_set(quiet, None)
mp = L.llama_model_default_params(); mp.n_gpu_layers = 0
model = L.llama_model_load_from_file(model_path.encode(), mp)
vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
texts = np.load(inp)
cp = L.llama_context_default_params()
cp.n_ctx = cp.n_batch = cp.n_ubatch = texts.shape[1] + 8
cp.n_threads = cp.n_threads_batch = 2
ctx = L.llama_init_from_model(model, cp)
result = []
for tokens in texts:
    L.llama_memory_clear(L.llama_get_memory(ctx), True)
    batch = L.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), start + i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert L.llama_decode(ctx, batch) == 0
    rows = np.ctypeslib.as_array(L.llama_get_logits(ctx), (len(tokens), vocab))
    result.append(rows.copy())
    L.llama_batch_free(batch)
np.save(out, np.stack(result))
"""


@dataclass(frozen=True)
class Parity:
    """How two sets of logits [T, vocab] agree."""

    same_top: float  # share of positions with the same most likely token
    divergence: float  # mean KL(peer || ours) in nats
    nmse: float

    @classmethod
    def of(cls, ours: NDArray[np.float32], peer: NDArray[np.float32]) -> Parity:
        p, q = (_log_softmax(x.astype(np.float64)) for x in (peer, ours))
        error = ours.astype(np.float64) - peer
        return cls(
            float((ours.argmax(-1) == peer.argmax(-1)).mean()),
            float((np.exp(p) * (p - q)).sum(-1).mean()),
            float((error**2).sum() / (peer.astype(np.float64) ** 2).sum()),
        )


def our_logits(model: Model, tokens: NDArray[np.int32], start: int = 0) -> NDArray[np.float32]:
    """Logits [T, vocab] of one text whose first token stands at position `start`."""
    cache = model.new_cache(len(tokens))
    sequence = cache.open()
    rows = cache.reserve(sequence, len(tokens))
    every = np.arange(len(tokens), dtype=np.int32)
    step = Step(tokens, start + every, rows, (Span(0, len(tokens), sequence.rows),), every, cache.stores)
    backend, logits = model.logits(*model.forward(step))
    return np.array(backend.download(logits))


def peer_logits(python: str, model: Path, texts: NDArray[np.int32], start: int = 0) -> NDArray[np.float32]:
    """The same by llama.cpp: [texts, T, vocab]."""
    with tempfile.TemporaryDirectory() as folder:
        inp, out = Path(folder) / "tokens.npy", Path(folder) / "logits.npy"
        np.save(inp, texts)
        subprocess.run([python, "-c", PEER, str(model), str(start), str(inp), str(out)], check=True)
        return np.load(out)


def write_decoded(source: Path, target: Path) -> None:
    """Writes a copy of a GGUF with every matrix decoded to F32; the values are the same."""
    import gguf

    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, arch)
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = entry.types[0]
            inner = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, entry.contents(), kind, inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(
    model_path: Path, python: str, texts: NDArray[np.int32], start: int = 0, *, exact: bool = False
) -> list[Parity]:
    """One Parity a text; with `exact` the peer multiplies in float."""
    with tempfile.TemporaryDirectory() as folder:
        peer_path = model_path
        if exact:
            peer_path = Path(folder) / "decoded.gguf"
            write_decoded(model_path, peer_path)
        theirs = peer_logits(python, peer_path, texts, start)
    with Model.load(model_path, ngl=0) as model:
        return [Parity.of(our_logits(model, t, start), p) for t, p in zip(texts, theirs, strict=True)]


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m layerlift.bench.parity", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--text", type=Path, help="a text to cut; without one, random tokens")
    parser.add_argument("--texts", type=int, default=5)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="position of the first token")
    parser.add_argument("--exact", action="store_true", help="the peer gets the weights decoded to F32")
    args = parser.parse_args(argv)
    with Model.load(args.model, ngl=0) as model:
        if args.text:
            tokens = np.array(model.tokenizer.encode(args.text.read_text(), add_special=False), np.int32)
        else:
            size = args.texts * args.length
            tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, size, np.int32)
    texts = tokens[: args.texts * args.length].reshape(-1, args.length)
    print("| text | same top-1 | KL, nats | NMSE |\n|---|---|---|---|")
    for i, parity in enumerate(compare(args.model, args.peer_python, texts, args.start, exact=args.exact)):
        print(f"| {i} | {parity.same_top:.2%} | {parity.divergence:.2e} | {parity.nmse:.2e} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
