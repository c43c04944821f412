"""A model in memory: its layers on the devices of a plan, and the forward pass over them.

Knows nothing of sequences, sampling or text; the tokenizer and the template are only kept beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from os import PathLike
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..backends import registry
from ..backends.base import (
    Array,
    Backend,
    DeviceInfo,
    Draw,
    KVDtype,
    Linear,
    Norm,
    Picked,
    Probe,
    Span,
    Stage,
    Step,
    Weight,
    Whole,
)
from ..backends.errors import BackendUnavailable, DeviceOutOfMemory
from ..backends.formats import BY_NAME
from ..backends.kernel_settings import KernelSettings
from .devices import choose_devices, takes_any, wants_gpu, without
from .gguf import GGUF, open_gguf
from .kv import KVCache
from .models import architecture
from .models.config import Config
from .scheduler import ModelSizes, Plan, plan_layers
from .template import ChatTemplate
from .tensors import Tensors
from .tokenizer import Tokenizer

Progress = Callable[[int, int], None]  # bytes done, bytes in all
MAX_STEP = 512  # tokens of a step for which work buffers are planned
WARM_UP = 16  # tokens of a step that counts as a long one everywhere


class Model:
    """Weights on their devices. `forward` is the only way through them."""

    def __init__(
        self,
        gguf: GGUF,
        plan: Plan,
        *,
        threads: int | None = None,
        kernels: KernelSettings = KernelSettings(),  # noqa: B008  (frozen)
        progress: Progress | None = None,
        open_device: Callable[..., Backend] = registry.open_device,
    ):
        self.gguf, self.plan = gguf, plan
        self._open_device = open_device
        self.arch = architecture(gguf)
        self.config: Config = self.arch.read_config(gguf)
        self._backends: dict[str, Backend] = {}
        self._options = {"threads": threads, "kernels": kernels}
        self._matrices: dict[Backend, list[Weight]] = {}  # of the layers
        self._progress = progress or (lambda done, total: None)
        self._loaded = 0
        self._loading_on: DeviceInfo | None = None
        self._spare: tuple[int, KVDtype, KVCache] | None = None
        try:
            self._load_layers()
        except BaseException as error:
            self._close_backends()  # the file stays open: the caller may try another plan
            if isinstance(error, DeviceOutOfMemory):
                error.device = error.device or self._loading_on
            raise

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        ngl: int | Literal["auto", "all"] = "auto",
        gpu: str = "auto",
        context: int = 8192,
        kv_dtype: KVDtype = "f16",
        threads: int | None = None,
        tensor_split: Sequence[float] | None = None,
        main_gpu: int | None = None,
        kernels: KernelSettings = KernelSettings(),  # noqa: B008  (frozen)
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Model:
        """Opens a GGUF, plans its layers over the devices and loads them.

        `notify` gets one-line notices (what was placed where, what was not found). When a device runs out of memory
        although the plan said otherwise, the plan is made again with fewer layers there; when one cannot be opened
        that was not asked for by name, without it.
        """
        notify = notify or (lambda line: None)
        gguf = open_gguf(path)
        try:
            config = architecture(gguf).read_config(gguf)
            gpu = "disable" if ngl == 0 else gpu
            probes = registry.probe_all(gpus=wants_gpu(gpu))
            host, notice = registry.host_device(probes)
            if notice:
                notify(notice)
            sizes, rows = model_sizes(gguf, config, kv_dtype), context or config.context

            def planned(probes: Sequence[Probe]) -> Plan:
                devices, notice = choose_devices(gpu, probes)
                if notice:
                    notify(notice)
                return plan_layers(sizes, ngl, rows, devices, host=host, tensor_split=tensor_split, main_gpu=main_gpu)

            plan = planned(probes)
            while True:
                try:
                    model = cls(gguf, plan, threads=threads, kernels=kernels, progress=progress)
                    model.reserve_cache(context, kv_dtype)
                    break
                except DeviceOutOfMemory as error:
                    plan = plan.fewer(error, error.device)
                    notify(f"{error}; trying again: {plan.describe()}")
                except BackendUnavailable as error:
                    if error.device not in plan.inputs.devices or not takes_any(gpu):
                        raise
                    probes = without(probes, error.device, str(error))
                    plan = planned(probes)
        except BaseException:
            gguf.close()
            raise
        if plan.inputs.devices:
            notify(plan.describe())
        if kernels.recompile:
            for line in model.recompile() or ["--recompile has no effect without a GPU"]:
                notify(line)
        return model

    def _load_layers(self) -> None:
        c, gguf = self.config, self.gguf
        self._total = gguf.nbytes
        self.stages: list[Stage] = []
        embed_on, head_on = self._backend(self.plan.embed_on), self._backend(self.plan.head_on)
        tensors = self._tensors(embed_on)
        table = tensors.weight("token_embd.weight", c.vocab_size, c.d_model)
        self.embedding = (embed_on, table)
        for planned in self.plan.stages:
            backend = self._backend(planned.device)
            tensors = self._tensors(backend)
            blocks = []
            for layer in range(planned.first, planned.last):
                blocks.append(self.arch.Block.load(tensors, c, layer))
                self._report(f"blk.{layer}.")
            self.stages.append(Stage(backend, tuple(blocks), planned.first))
            self._matrices.setdefault(backend, []).extend(tensors.matrices)
        tensors = self._tensors(head_on)
        if "output.weight" in gguf.tensors:
            output = tensors.linear("output", c.vocab_size, c.d_model)
        else:  # tied: the head is the embedding table
            shared = table if head_on is embed_on else tensors.weight("token_embd.weight", c.vocab_size, c.d_model)
            output = Linear(shared)
        self.head: tuple[Backend, Norm, Linear] = (head_on, tensors.norm("output_norm", c.d_model, c.norm_eps), output)
        (first, *others) = self.stages
        together = not others and embed_on is first.backend is head_on
        self._whole = Whole(table, first, self.head[1], output) if together else None
        self._progress(self._total, self._total)

    def _tensors(self, backend: Backend) -> Tensors:
        self._loading_on = backend.device
        return Tensors(self.gguf, backend)

    def _backend(self, device: DeviceInfo) -> Backend:
        if str(device) not in self._backends:
            try:
                opened = self._backends[str(device)] = self._open_device(device, **self._options)
            except BackendUnavailable as error:
                error.device = device
                raise
            self._loading_on = device
            opened.reserve(self.plan.nbytes(device))
        return self._backends[str(device)]

    def _report(self, prefix: str) -> None:
        self._loaded += sum(t.nbytes for name, t in self.gguf.tensors.items() if name.startswith(prefix))
        self._progress(self._loaded, self._total)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The devices in use."""
        return tuple(self._backends.values())

    @property
    def head_backend(self) -> Backend:
        """Where logits are."""
        return self.head[0]

    # -- beside the weights --

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self.gguf)

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate.from_gguf(self.gguf, self.tokenizer)

    @property
    def name(self) -> str:
        """The model's own name, or its file's."""
        return self.gguf.metadata.text("general.name", "") or self.gguf.path

    # -- forward --

    def reserve_cache(self, context: int, dtype: KVDtype) -> None:
        """Allocates the cache of the first engine while another plan can still be made. Raises DeviceOutOfMemory."""
        if not self.plan.layers_gpu:
            return
        trained = self.config.context
        capacity = min(context, trained) if context > 0 else trained
        try:
            self._spare = (capacity, dtype, self.new_cache(capacity, dtype))
        except DeviceOutOfMemory:
            self._close_backends()
            raise

    def new_cache(self, capacity: int, dtype: KVDtype = "f16") -> KVCache:
        """A cache of `capacity` tokens, each layer's part on that layer's device."""
        spare, self._spare = self._spare, None
        if spare is not None and spare[:2] == (capacity, dtype):
            return spare[2]
        c, layers = self.config, []
        for stage in self.stages:
            for _ in stage.blocks:
                try:
                    store = stage.backend.kv_alloc(capacity, c.n_kv_heads, c.head_dim, dtype)
                except DeviceOutOfMemory as error:
                    error.device = error.device or stage.backend.device
                    raise
                layers.append((stage.backend, store))
        return KVCache(capacity, layers, c.rope, self.gguf.fingerprint)

    def forward(self, step: Step) -> tuple[Backend, Array]:
        """Runs all layers over a step: the last one's output for the tokens of `step.outputs`, [n_out, d]."""
        origin, table = self.embedding
        x = origin.embed(table, step.tokens)  # [T, d]
        for stage in self.stages:
            x = stage.backend.enter(x, origin)
            origin = stage.backend
            x = origin.run(stage, x, step)
        return origin, x

    def logits(self, origin: Backend, x: Array) -> tuple[Backend, Array]:
        """Logits [n_out, vocab] of what `forward` returned, on the head's backend."""
        backend, norm, output = self.head
        return backend, backend.head(backend.enter(x, origin), norm, output)

    def answer(self, step: Step, draws: Sequence[Draw] | None) -> tuple[Array, Picked | None]:
        """Logits [n_out, vocab] of a step on the head's backend, and the tokens that `draws` choose (None: none).

        See `Backend.answer`: the logits are there until the next step.
        """
        if self._whole:
            return self._whole.stage.backend.answer(self._whole, step, draws)
        return self.choose(*self.forward(step), draws)

    def choose(self, origin: Backend, x: Array, draws: Sequence[Draw] | None) -> tuple[Array, Picked | None]:
        """What `answer` gives, of what `forward` returned."""
        backend, logits = self.logits(origin, x)
        return logits, None if draws is None else backend.pick(logits, draws)

    def states(self, origin: Backend, x: Array) -> NDArray[np.float32]:
        """Normed hidden states [n_out, d] of what `forward` returned, on the host: what embeddings are made of."""
        backend, norm, _ = self.head
        return backend.download(backend.rms_norm(backend.enter(x, origin), norm))

    def recompile(self) -> list[str]:
        """Runs a long and a short step, for which kernels get built, and lets every device measure what it can choose.

        One line for each device that had something to do.
        """
        c, before = self.config, 0
        layers = [stage.backend for stage in self.stages for _ in stage.blocks]
        stores = [backend.kv_alloc(WARM_UP + 1, c.n_kv_heads, c.head_dim) for backend in layers]
        for count in (WARM_UP, 1):
            rows = np.arange(before + count, dtype=np.int32)
            own, tokens = rows[before:], np.zeros(count, np.int32)
            step = Step(tokens, own, own, (Span(0, count, rows),), np.array([count - 1], np.int32), stores)
            _, picked = self.answer(step, ())
            assert picked
            picked.wait()
            before += count
        lines = [backend.tune(matrices, MAX_STEP) for backend, matrices in self._matrices.items()]
        return [line for line in lines if line]

    def close(self) -> None:
        """Gives back devices, threads and the mapped file."""
        self._close_backends()
        self.gguf.close()

    def _close_backends(self) -> None:
        for backend in self._backends.values():
            with suppress(Exception):
                backend.close()
        self._backends.clear()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def model_sizes(gguf: GGUF, c: Config, kv_dtype: KVDtype) -> ModelSizes:
    """Bytes of a model's parts, from the tensor table alone."""

    def nbytes(prefix: str) -> int:
        return sum(t.nbytes for name, t in gguf.tensors.items() if name.startswith(prefix))

    kv_row = 2 * c.n_kv_heads * c.head_dim * BY_NAME["F32" if kv_dtype == "f32" else "F16"].nbytes
    widest = c.d_model + 2 * c.d_ff + (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    return ModelSizes(
        blocks=tuple(nbytes(f"blk.{layer}.") for layer in range(c.n_layers)),
        embedding=nbytes("token_embd."),
        head=nbytes("output.") or nbytes("token_embd."),
        tied="output.weight" not in gguf.tensors,
        kv_per_token=(kv_row,) * c.n_layers,
        work=4 * (MAX_STEP * widest + c.vocab_size),
    )
