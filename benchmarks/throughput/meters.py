"""Clocks and memory: what an interval took, the most memory a block held, and where an iteration's time goes."""

import contextlib
import functools
import inspect
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import psutil
import torch

from algorithms import DiffusionAlgorithm

_MEGABYTE = 1e6
_MEMORY_POLL_SECONDS = 0.002


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Seconds:
    """A moment, or what lies between two: on the clock, and of this process's own processor time (all threads).

    Processor time does not count what other programs took away from this one.
    """

    wall: float
    cpu: float

    @classmethod
    def now(cls, device: torch.device) -> "Seconds":
        """The present moment, once the device is idle."""
        synchronize(device)
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, earlier: "Seconds") -> "Seconds":
        return Seconds(self.wall - earlier.wall, self.cpu - earlier.cpu)

    def __truediv__(self, number: float) -> "Seconds":
        return Seconds(self.wall / number, self.cpu / number)


class PeakMemory:
    """The most memory held inside a ``with`` block, in ``megabytes`` (10^6 bytes).

    On CUDA it is what torch's allocator gave out on the device. Elsewhere it is the resident memory of the whole
    process, read every 2 ms, libraries and what the allocator keeps for later included.
    """

    def __init__(self, device: torch.device) -> None:
        """Args: device: whose memory is meant."""
        self._device, self.megabytes = device, 0.0

    def __enter__(self) -> "PeakMemory":
        synchronize(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._done = threading.Event()
            self._thread = threading.Thread(target=self._poll, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        synchronize(self._device)
        if self._device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self._device) / _MEGABYTE
        else:
            self._done.set()
            self._thread.join()

    def _poll(self) -> None:
        process = psutil.Process()
        while True:
            self.megabytes = max(self.megabytes, process.memory_info().rss / _MEGABYTE)
            if self._done.wait(_MEMORY_POLL_SECONDS):
                return


class Stopwatch:
    """Exclusive seconds by part: a part inside another is taken off the outer one."""

    def __init__(self, device: torch.device) -> None:
        """Args: device: waited for at each part's start and end."""
        self._device, self.seconds = device, defaultdict[str, float](float)
        self._inner = [0.0]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block."""
        started = Seconds.now(self._device).wall
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = Seconds.now(self._device).wall - started
            self.seconds[name] += took - self._inner.pop()
            self._inner[-1] += took

    def timed(self, name: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed; the name may depend on when it is called."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name if isinstance(name, str) else name()):
                return function(*args, **kwargs)

        return call


@contextlib.contextmanager
def timed_parts(algorithm: DiffusionAlgorithm[Any], watch: Stopwatch) -> Iterator[None]:
    """Time the expensive parts of whatever the algorithm does inside."""

    def forward() -> str:
        return "denoiser: forward, training" if torch.is_grad_enabled() else "denoiser: forward, sampling"

    model, mdp = algorithm.mdp.model, algorithm.rollout_env.mdp
    # A plain function is replaced where it is held; an object stays itself, and its class's call is timed.
    reward = (mdp.shared_reward, "function") if inspect.isroutine(mdp.reward) else (type(mdp.reward), "__call__")
    parts: list[tuple[Any, str, str | Callable[[], str]]] = [
        (algorithm.policy.denoiser, "forward", forward),
        (torch.Tensor, "backward", "denoiser: backward"),
        (model, "encode_prompts", "text encoder"),
        (model, "decode", "VAE: decode"),
        (model, "encode_images", "VAE: encode"),
        (*reward, "reward"),
        (torch.nn.utils, "clip_grad_norm_", "gradient clipping"),
        (torch.optim.AdamW, "step", "optimizer step"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, attribute, name in parts:
            stack.enter_context(mock.patch.object(owner, attribute, watch.timed(name, getattr(owner, attribute))))
        yield


#: Kinds of operations by what their names in torch contain; the first that fits.
_OPERATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention", ("attention",)),
    ("convolutions: backward", ("convolution_backward",)),
    ("convolutions: forward", ("conv",)),
    ("matrix products", ("mm", "linear", "matmul")),
    ("group and layer norm", ("norm",)),
    ("activations", ("silu", "gelu", "sigmoid", "softmax")),
    ("up- and downsampling", ("upsample", "interpolate")),
    ("copies and layout", ("copy", "cat", "fill", "zero", "index", "select", "slice", "to", "empty", "clone")),
    ("elementwise arithmetic", ("add", "mul", "sub", "div", "pow", "sqrt", "sum", "mean", "lerp", "addcmul", "exp")),
)


def seconds_by_operation(kernels: torch.profiler.profile) -> dict[str, float]:
    """Sum a profile's own seconds of each kernel by kind of operation; on a GPU its time, else the processor's."""
    seconds: dict[str, float] = defaultdict(float)
    for event in kernels.key_averages():
        name = event.key.removeprefix("aten::").lower()
        kind = next((kind for kind, parts in _OPERATIONS if any(part in name for part in parts)), "other operations")
        own = event.self_device_time_total or event.self_cpu_time_total
        seconds[kind] += own / 1e6
    return dict(seconds)
