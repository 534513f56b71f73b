"""An estimate of a run's memory on its device, made before it starts; with several ranks, that of each.

Weights, gradients, moments and the rollout are counted. What forward and backward passes need on top is measured with a
quarter and with half of a chunk of rows, counting every tensor while it lives, and extended in a straight line. On the
CPU the process's own memory is watched meanwhile, which grows by more than the tensors.
"""

import contextlib
import ctypes
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from algorithms import DenoisingPolicy, DiffusionAlgorithm
from algorithms.execution import eager
from algorithms.memory import is_out_of_memory, too_little_memory
from algorithms.parallel.sharding import local
from algorithms.rollouts import Rollout
from benchmarks.throughput.peak_memory import PeakMemory
from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.prompt_records import Prompt

#: Below this size bitsandbytes keeps a tensor's moments in 32 bits.
_SMALLEST_8_BIT = 4096
#: Bytes of two moments of one value: in 32 bits; in 8 bits, with a float32 scale for each 256 values of each.
_ADAM, _ADAM_8_BIT = 8.0, 2 + 2 * 4 / 256


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the model's device, by what takes them; a reward model on the same device is not counted."""

    device: torch.device
    frozen: dict[str, int]
    """dtype -> weights of the networks that are not trained; shared ones once."""
    trained: int
    """Trained weights, float32."""
    gradients: int
    moments: int
    """The optimizer's."""
    kept: int
    """Copies of trained weights: the starting ones, for the KL without adapters, and the moving average."""
    rollout: int
    """One iteration's images, with what is stored of their trajectories."""
    working: int
    """The most that a chunk's forward and backward pass, decoding an image, or the optimizer's step needs."""
    unseen: int
    """On the CPU, by how much more memory grows meanwhile: kernels' own workspace, and gaps between freed tensors."""
    prompts: int
    """The training prompts' encodings, in main memory."""
    chunk_size: int
    """Rows per forward pass."""
    images: int
    """Of the rollout."""

    @property
    def total(self) -> int:
        """Bytes on the device; the CPU's include main memory."""
        counted = self.trained + self.gradients + self.moments + self.kept + self.rollout + self.working + self.unseen
        return sum(self.frozen.values()) + counted + (self.prompts if self.device.type == "cpu" else 0)

    def describe(self) -> str:
        """Return a table for the terminal."""
        lines = [
            *((f"frozen weights, {dtype}", size) for dtype, size in self.frozen.items()),
            ("trained weights, float32", self.trained),
            ("their gradients", self.gradients),
            ("the optimizer's moments", self.moments),
            *([("starting and averaged weights", self.kept)] if self.kept else []),
            (f"rollout of {self.images} images", self.rollout),
            (f"forward and backward of {self.chunk_size} rows", self.working),
        ]
        if self.unseen:
            lines.append(("kernels' workspace and gaps beside", self.unseen))
        beside = [("encoded prompts", self.prompts)]
        if self.device.type == "cpu":
            lines, beside = [*lines, *beside], []
        free = free_bytes(self.device)
        short = "; less is free: rows per forward pass will be halved if it runs out" if self.total > free else ""
        return "\n".join(
            [
                f"memory on {self.device}, estimated: {in_words(self.total)}, of {in_words(free)} free{short}",
                *(f"  {name:<34}{in_words(size):>10}" for name, size in lines),
                *(f"and of main memory {in_words(size)}: {name}" for name, size in beside),
            ]
        )


def estimate_memory(algorithm: DiffusionAlgorithm[Any]) -> MemoryEstimate:
    """Estimate an algorithm's memory, with forward and backward passes of part of a chunk; nothing is changed.

    Raise MemoryError if not even that fits.
    """
    policy, device = algorithm.policy, algorithm.policy.model.device
    trained = list(policy.trainable_parameters().values())
    weights, moments = _bytes(trained), _moment_bytes(trained, algorithm.config.optimizer)
    averages = (0 if algorithm.average is None else weights) + _bytes(algorithm.extra_tensors().values())
    images = algorithm.config.images_per_iteration // algorithm.ranks.size
    records = [Prompt("")] * images
    needs = algorithm.requires(algorithm.config)
    # torch updates many tensors at once on CUDA, with a temporary copy of them all.
    stepping = weights if device.type == "cuda" else 0
    try:
        with eager(policy):  # operations inside a compiled graph are not seen
            passes = [_training_bytes(algorithm, trained), _decoding_bytes(policy), Needed(stepping, 0)]
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise too_little_memory(str(error)) from error
        raise
    working = max(needed.tensors for needed in passes)
    return MemoryEstimate(
        device=device,
        frozen=_frozen_bytes([*policy.model.networks, policy]),
        trained=weights,
        gradients=weights,
        moments=moments,
        kept=averages + (0 if algorithm.reference is None else algorithm.reference.nbytes),
        rollout=Rollout.empty(policy, records, needs.trajectory, "meta", keeps_means=needs.means).nbytes,
        working=working,
        unseen=max(needed.tensors + needed.unseen for needed in passes) - working,
        prompts=_prompt_bytes(algorithm.mdp),
        chunk_size=policy.chunk_size,
        images=images,
    )


class LiveBytes(TorchDispatchMode):
    """Count the bytes of tensors made inside, while they live; ``peak`` is the most at one time.

    Views, and tensors on storage that existed before, cost nothing. What a kernel allocates inside itself is not seen.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        """Args: existing: tensors whose storage is not counted."""
        super().__init__()
        self.now = self.peak = 0
        storages = [tensor.untyped_storage() for tensor in existing]
        self._known: dict[int, Any] = {storage._cdata: storage for storage in storages}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and note the tensors that it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True)
class Needed:
    """Bytes that passes need: of tensors, and beside them."""

    tensors: int
    unseen: int


def _return_freed_memory() -> None:
    """Return freed main memory to the system; glibc keeps gigabytes, in pieces too small for another pass."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _training_bytes(algorithm: DiffusionAlgorithm[Any], trained: list[nn.Parameter]) -> Needed:
    """Return the bytes that forward and backward of a chunk need beside weights and gradients.

    With few rows the peak is where the weights' gradients are made, with many where the activations are: a convex
    curve, which a line through its beginning would miss. If half a chunk does not fit, the line begins earlier.
    """
    rows = algorithm.policy.chunk_size
    while True:
        few, many = max(1, rows // 4), max(1, rows // 2, min(rows, 2))
        try:
            with _gradients(trained):
                peaks = {n: _peak_of_rows(algorithm, n, trained) for n in sorted({few, many})}
            break
        except RuntimeError as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
        rows //= 2

    def extended(least: int, most: int) -> int:
        slope = (most - least) / (many - few) if many > few else most
        return round(most + slope * (algorithm.policy.chunk_size - many))

    unseen = peaks[many].unseen  # of the first pass libraries may be a part, which are loaded only now
    return Needed(extended(peaks[few].tensors, peaks[many].tensors), max(unseen, extended(peaks[few].unseen, unseen)))


def _peak_of_rows(algorithm: DiffusionAlgorithm[Any], n: int, trained: list[nn.Parameter]) -> Needed:
    policy, rows = algorithm.policy, algorithm.policy.blank_rows(n)
    networks = [policy, *policy.model.networks]
    existing = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    existing += [p.grad for p in trained if p.grad is not None]
    existing += [rows.latents, *rows.conditioning.values()]
    with torch.enable_grad():
        return _needed(existing, lambda: algorithm.train_blank(rows), policy.model.device)


def _needed(existing: Iterable[Tensor], run: Callable[[], object], device: torch.device) -> Needed:
    _return_freed_memory()  # which new tensors would take without the process growing
    before = psutil.Process().memory_info().rss
    with PeakMemory(torch.device("cpu")) as resident, LiveBytes(existing) as live:
        run()
    _return_freed_memory()
    grown = round(resident.megabytes * 1e6) - before
    return Needed(live.peak, max(0, grown - live.peak) if device.type == "cpu" else 0)


@contextlib.contextmanager
def _gradients(trained: list[nn.Parameter]) -> Iterator[None]:
    """Give every weight a gradient, so that making it is not counted, and remove it afterwards."""
    before = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for parameter, gradient in zip(trained, before, strict=True):
            parameter.grad = gradient


def _decoding_bytes(policy: DenoisingPolicy) -> Needed:
    latents = torch.zeros(1, *policy.model.latent_shape, device=policy.model.device)
    existing = [tensor for network in policy.model.networks for tensor in (*network.parameters(), *network.buffers())]
    with torch.no_grad():
        return _needed([*existing, latents], lambda: policy.model.decode(latents), latents.device)


def _frozen_bytes(networks: list[nn.Module]) -> dict[str, int]:
    """Return the bytes of weights and buffers that are not trained, by dtype; shared ones once."""
    tensors = {
        local(tensor).untyped_storage()._cdata: local(tensor)
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
        if not tensor.requires_grad and tensor.is_floating_point()
    }
    sizes: dict[str, int] = defaultdict(int)
    for tensor in tensors.values():
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return dict(sizes)


def _prompt_bytes(mdp: DenoisingMDP) -> int:
    """Return the bytes that the cache of encodings holds once every training prompt was drawn."""
    values = sum(math.prod(shape) for shape in mdp.model.conditioning_shapes.values())
    tokens = sum(length for length, _ in mdp.model.token_limits.values()) if mdp.prompt_tokens else 0
    each = values * torch.float32.itemsize + tokens * torch.int64.itemsize
    texts: set[str | None] = set(mdp.prompts)
    if mdp.negative_prompts:
        texts |= {record.negative_prompt for record in mdp.records}
    of_image = sum(math.prod(mdp.model.conditioning_shapes[name]) for name in mdp.model.image_conditioning)
    images = of_image * torch.float32.itemsize * len({record.image_key for record in mdp.records})
    return min(each * len(texts), mdp.prompt_cache.limit) + min(images, mdp.image_cache.limit)


def _moment_bytes(trained: list[nn.Parameter], optimizer: str) -> int:
    sizes = [local(parameter).numel() for parameter in trained]
    in_8_bits = sum(size for size in sizes if optimizer == "adamw8bit" and size >= _SMALLEST_8_BIT)
    return round(in_8_bits * _ADAM_8_BIT + (sum(sizes) - in_8_bits) * _ADAM)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a device's memory, with what this process holds of a GPU's already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def in_words(size: float) -> str:
    """Return bytes as "1.2 GB" (10^9)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"
