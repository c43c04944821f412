"""Python's share of a generated token: the same steps with every native call replaced by one that does nothing.

python -m layerlift.bench.share MODEL.gguf [-n 64] [-t 2]
"""

from __future__ import annotations

import argparse
import ctypes
from _ctypes import CFuncPtr
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..backends.cpu import CpuBackend
from ..backends.draw import Picked
from ..runtime.engine import Engine
from ..runtime.model import Model
from .measure import Test, measure


class Idle:
    """A library whose functions take the same arguments and return 0."""

    def __init__(self, lib: ctypes.CDLL):
        self._real, self._copy = lib, ctypes.CDLL(lib._name)

    def __getattr__(self, name: str) -> Any:
        function = idle(getattr(self._real, name), self._copy)
        setattr(self, name, function)
        return function


def idle(function: Any, lib: ctypes.CDLL) -> Any:
    """A call that costs Python what `function` costs it: the same conversions, then a function that ignores them."""
    nothing = lib["ll_idle"]  # a new object at each look-up
    nothing.restype, nothing.argtypes = function.restype, function.argtypes
    return nothing


@contextmanager
def idle_backend(backend: CpuBackend) -> Iterator[None]:
    """While this holds, the backend's native calls compute nothing."""
    members: dict[str, Any] = vars(backend)
    kept = {name: value for name, value in members.items() if isinstance(value, CFuncPtr) or name == "_lib"}
    lib: Any = kept["_lib"]
    try:
        for name, value in kept.items():
            setattr(backend, name, Idle(lib) if name == "_lib" else idle(value, lib))
        nothing = Picked(lambda: np.zeros(1, np.int32))  # what was computed is no token
        members["pick"] = lambda logits, draws=(): nothing
        yield
    finally:
        members.pop("pick", None)
        members.update(kept)


def share(engine: Engine, n_gen: int, *, repetitions: int = 5) -> tuple[float, float]:
    """Seconds of a token, and those of them that Python takes, the engine's included."""
    whole = 1 / measure(engine, Test(0, n_gen), repetitions=repetitions).median
    (backend,) = engine.model.backends
    assert isinstance(backend, CpuBackend), "the share is that of the native CPU backend"
    with idle_backend(backend):
        python = 1 / measure(engine, Test(0, n_gen), repetitions=repetitions).median
    return whole, python


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="layerlift.bench.share", description="Python's share of a generated token")
    p.add_argument("model", metavar="GGUF")
    p.add_argument("-n", dest="n_gen", type=int, default=64)
    p.add_argument("-t", dest="threads", type=int)
    a = p.parse_args(argv)
    with Model.load(a.model, ngl=0, gpu="disable", threads=a.threads, context=a.n_gen + 16) as model:
        engine = Engine(model, context=a.n_gen + 16, slots=1)
        whole, python = share(engine, a.n_gen)
        engine.close()
    print(f"token {1e6 * whole:.0f} µs, Python {1e6 * python:.0f} µs: {100 * python / whole:.1f} %")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
