"""What a vendor's BLAS is to a GPU backend: found or not, and one product on device memory. Knows no driver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from .base import KVDtype
from .gpu_memory import Handle


@dataclass(frozen=True)
class BlasProbe:
    """A library that was found, or the reason there is none."""

    name: str  # "CLBlast"
    version: str = ""  # "" also where the library does not tell
    reason: str = ""  # why it cannot be used; "" when it can

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


class VendorBlas(ABC):
    """An open library that works in its backend's queue.

    `dtype` is what it takes x and w as; sums and y are float32. `compiles` says that it builds kernels in each
    process anew, which --nocompile rules out.
    """

    dtype: KVDtype = "f32"
    compiles: bool = False

    def __init__(self, found: BlasProbe):
        self.found = found

    @abstractmethod
    def gemm(
        self,
        x: Handle,
        w: Handle,
        y: Handle,
        *,
        tokens: int,
        rows: int,
        columns: int,
        first: int,
        stride: int,
        accumulate: bool,
    ) -> None:
        """Queues y[:, first : first + rows] = x @ w.T, or += with `accumulate`.

        x [tokens, columns] and w [rows, columns] are `dtype`, y [tokens, stride] float32, all C order without gaps.
        Raises DeviceOutOfMemory, BackendError.
        """
