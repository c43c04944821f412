"""Quantises one model with layerlift and with llama.cpp, and compares types, perplexities and times.

    python -m layerlift.bench.quantize_model --peer PYTHON --model F32.gguf --text FILE [--save NAME] TYPE...

PYTHON has llama-cpp-python. Both files are scored by layerlift's engine. Knows nothing of how weights are quantised.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from ..runtime.gguf import open_gguf
from ..runtime.model import Model
from ..runtime.perplexity import perplexity
from ..runtime.quantize import mix_named, plan, write
from . import machine

PEER = """
import sys, llama_cpp
llama_cpp.llama_backend_init()
p = llama_cpp.llama_model_quantize_default_params()
p.ftype, p.nthread, p.allow_requantize = int(sys.argv[3]), 2, True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))
"""


def score(path: Path, text: str, context: int) -> float:
    with Model.load(path, ngl=0) as model:
        *_, last = perplexity(model, model.tokenizer.encode(text), context=context)
        return last.perplexity


def types_of(path: Path) -> dict[str, str]:
    with open_gguf(path) as gguf:
        return {name: info.fmt for name, info in gguf.tensors.items()}


def compare(source: Path, word: str, peer: str, text: str, context: int) -> dict[str, Any]:
    """One type: perplexities of both files, seconds to make them, and the tensors whose types differ."""
    mix = mix_named(word)
    with tempfile.TemporaryDirectory(prefix="layerlift-") as folder:
        ours, theirs = Path(folder, "ours.gguf"), Path(folder, "peer.gguf")
        start = time.perf_counter()
        with open_gguf(source) as gguf:
            write(plan(gguf, mix), ours, threads=2, progress=lambda done, total: None)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        words = [peer, "-c", PEER, str(source), str(theirs), str(mix.file_type)]
        subprocess.run(words, check=True, capture_output=True)
        peer_seconds = time.perf_counter() - start
        a, b = types_of(ours), types_of(theirs)
        return {
            "type": mix.name,
            "perplexity": score(ours, text, context),
            "peer_perplexity": score(theirs, text, context),
            "seconds": round(seconds, 2),
            "peer_seconds": round(peer_seconds, 2),
            "other_types": sorted(name for name in a if a[name] != b.get(name)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--save")
    parser.add_argument("types", nargs="+")
    args = parser.parse_args()
    text = args.text.read_text()
    rows = [{"type": "source", "perplexity": score(args.model, text, args.context)}]
    print(rows[0], flush=True)
    for word in args.types:
        rows.append(compare(args.model, word, args.peer, text, args.context))
        print(rows[-1], flush=True)
    if args.save:
        print(f"saved in {machine.save(args.save, rows, machine=machine.describe_machine())}")


if __name__ == "__main__":
    main()
