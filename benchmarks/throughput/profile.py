"""Where an iteration's time goes, by torch's profiler: by part of the program, and by kind of operation."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import record_function

from algorithms import DiffusionAlgorithm
from benchmarks.runs.clock import synchronize

_LABELS = {"denoiser: forward, training", "denoiser: forward, sampling", "text encoder", "VAE: encode", "VAE: decode"}
_LABELS |= {"reward"}  # as evaluate_reward records it
#: The profiler's own time, about 3 % on the embedded model, is mostly in this row.
_PROGRAM = "the program: environment, noise, transitions, losses, storage, log"
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


def profile(algorithm: DiffusionAlgorithm[Any], iterate: Callable[[], float]) -> dict[str, dict[str, float]]:
    """Return the shares of an iteration's seconds by ``parts`` and by ``operations``, largest first.

    ``iterate`` makes one iteration, and returns its seconds.
    """
    with _networks_labelled(algorithm), torch.profiler.profile() as profiler:
        seconds = iterate()
    parts: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    for event in (event for event in profiler.events() or () if event.device_type.name == "CPU"):
        part = _part_of(event)
        if part is None:
            operations[_kind_of(event)] += (event.self_device_time_total or event.self_cpu_time_total) / 1e6
        elif not _is_inside_a_part(event):
            # On a GPU the backward pass takes as long as its kernels or, if they are small, as their launches.
            parts[part] += max(event.cpu_time_total, event.device_time_total) / 1e6
    parts[_PROGRAM] = seconds - sum(parts.values())
    return {"parts": _shares(parts), "operations": _shares(operations)}


@contextlib.contextmanager
def _networks_labelled(algorithm: DiffusionAlgorithm[Any]) -> Iterator[None]:
    """Label the networks' calls in a profile; the device is waited for, so that no part's time falls into the next."""
    modules: list[tuple[torch.nn.Module, str]] = [(algorithm.policy.denoiser, "denoiser: forward, ")]
    for network in algorithm.mdp.model.networks:
        is_vae = hasattr(network, "encoder") and hasattr(network, "decoder")
        halves: list[Any] = [(network.encoder, "VAE: encode"), (network.decoder, "VAE: decode")] if is_vae else []
        modules += halves or [(network, "text encoder")]
    calls: list[record_function] = []
    device = algorithm.mdp.model.device

    def begin(label: str) -> None:
        synchronize(device)
        if label not in _LABELS:
            label += "training" if torch.is_grad_enabled() else "sampling"
        calls.append(record_function(label).__enter__())

    def end() -> None:
        synchronize(device)
        calls.pop().__exit__(None, None, None)

    with contextlib.ExitStack() as stack:
        for module, label in modules:
            stack.callback(module.register_forward_pre_hook(lambda *_, label=label: begin(label)).remove)
            stack.callback(module.register_forward_hook(lambda *_: end()).remove)
        yield


def _part_of(event: FunctionEvent) -> str | None:
    """Return the part of the program that an event is as a whole, or None."""
    if event.name.startswith("autograd::engine::evaluate_function"):
        return "denoiser: backward"
    if event.name.startswith("Optimizer.step"):
        return "optimizer step"
    return event.name if event.name in _LABELS else None


def _is_inside_a_part(event: FunctionEvent) -> bool:
    outer = event.cpu_parent
    return outer is not None and (_part_of(outer) is not None or _is_inside_a_part(outer))


def _kind_of(event: FunctionEvent) -> str:
    name = event.name.removeprefix("aten::").lower()
    return next((kind for kind, parts in _OPERATIONS if any(part in name for part in parts)), "other operations")


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {name: value / total for name, value in sorted(seconds.items(), key=lambda item: -item[1])}
