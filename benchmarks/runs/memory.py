"""What a run will take of the device's memory, estimated before it starts; of several ranks, what each will.

Weights, gradients, moments and the rollout are counted. What forward and backward passes hold on top is measured on a
quarter and on half of a chunk of rows, counting every tensor while it lives, and extended in a straight line.
"""

import contextlib
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
from algorithms.memory import is_out_of_memory, too_little_memory
from algorithms.parallel.sharding import local
from algorithms.rollouts import Rollout
from diffusion_gym.envs.mdp import DenoisingMDP

#: Below this size bitsandbytes keeps a tensor's moments in 32 bits.
_SMALLEST_8_BIT = 4096
#: Bytes of two moments of one value: in 32 bits; in 8 bits, with a float32 scale for each 256 values of each.
_ADAM, _ADAM_8_BIT = 8.0, 2 + 2 * 4 / 256


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the model's device, by what takes them; a reward model on the same device is not counted.

    Attributes:
        device: the device.
        frozen: dtype -> weights of the networks that are not trained, each counted once where networks share it.
        trained: trained weights, float32.
        gradients: of the trained weights, float32.
        moments: the optimizer's.
        kept: copies of the trained weights: the starting ones, for the KL where there are no adapters to switch off,
            and the moving average's.
        rollout: one iteration's images with what is stored of their trajectories.
        working: the most that a forward and backward pass of a chunk, decoding an image, or the optimizer's step
            holds for a moment.
        prompts: the training prompts' encodings, which stay in main memory up to ``PROMPT_CACHE_BYTES``.
        chunk_size: rows of a forward pass.
        images: of the rollout.
    """

    device: torch.device
    frozen: dict[str, int]
    trained: int
    gradients: int
    moments: int
    kept: int
    rollout: int
    working: int
    prompts: int
    chunk_size: int
    images: int

    @property
    def total(self) -> int:
        """Bytes on the device in all; where it is the CPU, main memory is the device's."""
        counted = self.trained + self.gradients + self.moments + self.kept + self.rollout + self.working
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
        beside = [("encoded prompts", self.prompts)]
        if self.device.type == "cpu":
            lines, beside = [*lines, *beside], []
        free = free_bytes(self.device)
        short = "; less is free: rows per forward pass will be halved where it runs out" if self.total > free else ""
        return "\n".join(
            [
                f"memory on {self.device}, estimated: {_size(self.total)}, of {_size(free)} free{short}",
                *(f"  {name:<34}{_size(size):>10}" for name, size in lines),
                *(f"and of main memory {_size(size)}: {name}" for name, size in beside),
            ]
        )


def estimate_memory(algorithm: DiffusionAlgorithm[Any]) -> MemoryEstimate:
    """Estimate an algorithm's memory; takes forward and backward passes of part of a chunk, and changes nothing.

    Raises:
        MemoryError: not even that fits.
    """
    policy, config = algorithm.policy, algorithm.config
    trained = list(policy.trainable_parameters().values())
    networks = [*policy.model.networks, policy]
    weights = _bytes(trained)
    moments = _moment_bytes(trained, config.optimizer)
    averages = 0 if algorithm.average is None else weights
    images = config.images_per_iteration // algorithm.ranks.size
    meta = Rollout.empty(policy, [""] * images, algorithm.requires(config).trajectory, "meta")
    device = policy.model.device
    # torch updates many tensors at once on CUDA, with a temporary copy of them all.
    stepping = weights if device.type == "cuda" else 0
    try:
        working = max(_training_bytes(policy, trained), _decoding_bytes(policy), stepping)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise too_little_memory(str(error)) from error
        raise
    return MemoryEstimate(
        device=device,
        frozen=_frozen_bytes(networks),
        trained=weights,
        gradients=weights,
        moments=moments,
        kept=averages + (0 if algorithm.reference is None else algorithm.reference.nbytes),
        rollout=meta.nbytes,
        working=working,
        prompts=_prompt_bytes(algorithm.mdp),
        chunk_size=policy.chunk_size,
        images=images,
    )


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside, while they live; ``peak`` is the most at one time.

    Views, and tensors on storage that was there before, cost nothing. What a kernel allocates inside itself is not
    seen.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        """Args: existing: tensors whose storage is not counted."""
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}
        for tensor in existing:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = storage

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and note what it made."""
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


def _training_bytes(policy: DenoisingPolicy, trained: list[nn.Parameter]) -> int:
    """Bytes that forward and backward of a chunk hold beside weights and gradients.

    On few rows the peak is where the weights' gradients are made, on many where the activations are: a convex curve,
    which a line through its beginning would miss. Where half a chunk does not fit, the line begins earlier.
    """
    rows = policy.chunk_size
    while True:
        few, many = max(1, rows // 4), max(1, rows // 2, min(rows, 2))
        try:
            with _gradients(trained):
                least, most = (_peak_of_rows(policy, n, trained) for n in (few, many))
            break
        except RuntimeError as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
        rows //= 2
    slope = (most - least) / (many - few) if many > few else most
    return round(most + slope * (policy.chunk_size - many))


def _peak_of_rows(policy: DenoisingPolicy, n: int, trained: list[nn.Parameter]) -> int:
    rows = policy.blank_rows(n)
    existing = [*policy.parameters(), *policy.buffers(), *(p.grad for p in trained if p.grad is not None)]
    with torch.enable_grad(), LiveBytes([*existing, rows.latents, *rows.conditioning.values()]) as live:
        policy.distribution(rows).mean.sum().backward()
    return live.peak


@contextlib.contextmanager
def _gradients(trained: list[nn.Parameter]) -> Iterator[None]:
    """Give every weight a gradient, so that making it is not counted, and take it away afterwards."""
    before = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for parameter, gradient in zip(trained, before, strict=True):
            parameter.grad = gradient


def _decoding_bytes(policy: DenoisingPolicy) -> int:
    latents = torch.zeros(1, *policy.model.latent_shape, device=policy.model.device)
    existing = [tensor for network in policy.model.networks for tensor in (*network.parameters(), *network.buffers())]
    with torch.no_grad(), LiveBytes([*existing, latents]) as live:
        policy.model.decode(latents)
    return live.peak


def _frozen_bytes(networks: list[nn.Module]) -> dict[str, int]:
    """Bytes of weights and buffers that are not trained, by dtype; shared ones once."""
    seen: set[int] = set()
    sizes: dict[str, int] = defaultdict(int)
    for network in networks:
        for whole in (*network.parameters(), *network.buffers()):
            if whole.requires_grad or not whole.is_floating_point():
                continue
            tensor = local(whole)
            if tensor.untyped_storage().data_ptr() in seen:
                continue
            seen.add(tensor.untyped_storage().data_ptr())
            sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return dict(sizes)


def _prompt_bytes(mdp: DenoisingMDP) -> int:
    """Bytes of what the cache keeps once every training prompt was drawn."""
    values = sum(math.prod(shape) for shape in mdp.model.conditioning_shapes.values())
    tokens = sum(length for length, _ in mdp.model.token_limits.values()) if mdp.prompt_tokens else 0
    each = values * torch.float32.itemsize + tokens * torch.int64.itemsize
    return min(each * len(set(mdp.prompts)), mdp.prompt_cache.limit)


def _moment_bytes(trained: list[nn.Parameter], optimizer: str) -> int:
    def each(parameter: nn.Parameter) -> float:
        values = local(parameter).numel()
        in_8_bits = optimizer == "adamw8bit" and values >= _SMALLEST_8_BIT
        return values * (_ADAM_8_BIT if in_8_bits else _ADAM)

    return round(sum(each(parameter) for parameter in trained))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a run can have of a device's memory, with what this process has of a GPU's already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def _size(size: float) -> str:
    """Write bytes as "1.2 GB" (10^9)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"
