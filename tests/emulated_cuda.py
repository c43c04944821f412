"""CudaOps without a device: memory is NumPy's, and every launch runs in tests/cuda_emulator.py."""

from __future__ import annotations

import numpy as np
from cuda_emulator import Emulator, prelude, read_only
from layerlift.backends.base import DeviceInfo, Probe
from layerlift.backends.cuda_ops import CudaOps
from layerlift.backends.gpu_programs import Tuning
from layerlift.kernels import sources


class EmulatedCuda(CudaOps):
    """Use as a context: a program's process lives in between."""

    name = language = "cuda"
    multiprocessors = 3

    def __init__(self, *, capability=(9, 0), few=8):
        self.capability, self.emulators, self.seed = capability, [], 0
        self.ran: list[str] = []  # kernels, in order
        super().__init__(DeviceInfo("cuda", 0, "emulated", "nvidia", True), Tuning(few=few))

    @classmethod
    def probe(cls):
        return Probe("cuda", reason="for tests")

    @classmethod
    def open(cls, device, **options):
        return cls(**options)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for emulator in self.emulators:
            emulator.__exit__(*exception)

    def _alloc(self, nbytes):
        return np.full(nbytes, 0xFF, np.uint8)  # NaN

    def _copy_in(self, handle, host):
        handle[: host.nbytes] = host.reshape(-1).view(np.uint8)

    def _copy_out(self, handle, host):
        host.reshape(-1).view(np.uint8)[:] = handle[: host.nbytes]

    def _sync(self):
        pass

    def _compile(self, text, signatures):
        plain = text.replace(sources.read("cuda/prelude.h"), prelude()).replace(sources.read("cuda/ptx.h"), "")
        self.emulators.append(emulator := Emulator(plain).__enter__())
        return dict.fromkeys(signatures, emulator)

    def _launch(self, kernel, x, y, arguments):
        self.seed += 1
        self.ran.append(kernel.name)
        given = list(arguments)
        for i, value in enumerate(given):
            # A process of its own gets copies: of memory named twice, the last name is the one that is written.
            if isinstance(value, np.ndarray) and any(value is other for other in given[i + 1 :]):
                given[i] = read_only(value)
        kernel.handle.launch(kernel.name, (x, y), kernel.threads, *given, shared=kernel.shared, seed=self.seed)
