"""Gradient checkpointing: fewer saved activations and recomputed forwards, the same gradient, ratio exactly 1."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from algorithms import DDPO


def forward_and_backward(algorithm: DDPO, rollout: Any) -> tuple[torch.Tensor, int, int, float]:
    """One update's gradient; bytes saved for the backward pass; forwards of an inner layer; largest |log-ratio|."""
    saved = 0
    calls = 0
    seen: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def step(optimizer: torch.optim.Optimizer) -> torch.Tensor:
        named = algorithm.policy.trainable_parameters().values()
        seen.append(torch.cat([value.grad.flatten() for value in named if value.grad is not None]))
        return torch.zeros(())

    algorithm.step = step
    conv = next(m for n, m in algorithm.policy.denoiser.named_modules() if n.endswith("up_blocks.1.resnets.0.conv1"))
    conv.register_forward_hook(count)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        metrics = algorithm.update(rollout)
    return seen[0], saved, calls, metrics["train/log_ratio_abs_max"]


@pytest.mark.parametrize(("trainable", "autocast"), [("lora", "none"), ("full", "none"), ("lora", "bfloat16")])
def test_same_gradient_from_recomputed_activations(
    small_run: Callable, disturb: Callable, sample: Callable, trainable: str, autocast: str
) -> None:
    """Bit for bit on the CPU: the same kernels on the same shapes. 3 steps of 6 images in rounds of 3: 6 forwards."""
    results = []
    for checkpointing in (False, True):
        algorithm = small_run(trainable=trainable, autocast=autocast, gradient_checkpointing=checkpointing)
        disturb(algorithm)
        rollout = sample(algorithm)
        results.append(forward_and_backward(algorithm, rollout))
    plain, checkpointed = results
    assert torch.equal(plain[0], checkpointed[0])
    assert checkpointed[0].norm() > 0
    assert (plain[2], checkpointed[2]) == (6, 12)
    assert checkpointed[1] < 0.5 * plain[1]
    assert plain[3] == checkpointed[3] == 0.0


def test_networks_stay_in_evaluation_mode(small_run: Callable) -> None:
    """Dropout must not begin with checkpointing, or the first ratios would not be 1."""
    denoiser = small_run(gradient_checkpointing=True).policy.denoiser
    blocks = [module for module in denoiser.modules() if module.training]
    assert blocks
    assert all(module.gradient_checkpointing for module in blocks)
    assert not any(isinstance(module, torch.nn.Dropout) for module in blocks)


def test_a_model_without_networks_is_refused(small_run: Callable) -> None:
    with pytest.raises(ValueError, match="gradient checkpointing needs networks of diffusers"):
        small_run(
            make={"model": "exact-gaussian", "reward": "exact-linear", "prompts": None},
            trainable="full", gradient_checkpointing=True,
        )  # fmt: skip
