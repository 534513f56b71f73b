"""Check that a first gradient is that of the expected reward, on the exact Gaussian."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algorithms.base import DiffusionAlgorithm
from algorithms.checked_runs import LEARNING, Subject, learn
from algorithms.policy import Rows
from diffusion_gym.rewards import reward_pixels
from diffusion_gym.rewards.exact import Quadratic

IMAGES = 256  # of a rollout
ROLLOUTS, MOST_ROLLOUTS = 24, 192  # of which the mean gradient is taken: more until it can be told from 0
#: Not far from the exact Gaussian's mean (0.5, -0.5), so that its std counts, too, and each step has its own direction.
NEAR = Quadratic((0.8, -0.4))


def check_gradient(subject: Subject) -> None:
    """Raise AssertionError unless the first gradient is parallel to that of the expected reward, within 5 errors."""
    settings = {"images_per_iteration": IMAGES, "images_per_prompt": IMAGES, "num_envs": IMAGES}
    algorithm = subject.build({**LEARNING, **settings}, "gaussian", NEAR)
    parameters, found = list(algorithm.policy.trainable_parameters().values()), list[Tensor]()
    total = torch.zeros(sum(value.numel() for value in parameters), dtype=torch.float64)

    def hand_out(optimizer: torch.optim.Optimizer) -> Tensor:
        total.sub_(_flat([value.grad for value in parameters], parameters))  # of the loss, which falls
        optimizer.zero_grad(set_to_none=True)
        return torch.zeros(())

    algorithm.step = hand_out  # type: ignore[method-assign]
    exact = _exact_gradient(algorithm)
    while len(found) < MOST_ROLLOUTS:
        for _ in range(ROLLOUTS):
            learn(algorithm, len(found) + 1)
            found.append(total.clone())
            total.zero_()
        estimates, standard = torch.stack(found), math.sqrt(len(found))
        scales = estimates @ exact / exact.square().sum()
        off = estimates - scales[:, None] * exact  # what is not parallel
        scale, error = scales.mean(), scales.std() / standard
        sideways = (off.mean(0).abs() / (off.std(0) / standard).clamp(min=1e-12)).max()
        if scale.abs() > 5 * error or sideways >= 5:
            break
    subject.require(
        bool(scale > 5 * error and sideways < 5),
        "the first gradient must point where that of the expected reward does, but over "
        f"{len(found) * IMAGES} images it is {_text(estimates.mean(0))} where {_text(exact)} times a positive factor "
        f"is exact: the factor is {float(scale):.3g}, with a standard error of {float(error):.2g}, and the rest is "
        f"{float(sideways):.1f} standard errors off; look at which steps, advantages and log-densities the loss takes.",
    )


def _exact_gradient(algorithm: DiffusionAlgorithm[Any], pairs: int = 4096) -> Tensor:
    """Return the gradient of the expected reward, float64: through the sampler itself, with its noise held fixed.

    It passes through the weights at the steps that have a density, which are those that can be trained. Noise comes in
    pairs z and -z, so that what is linear in it, as the means' gradient is here, has no error.
    """
    policy, mdp, n = algorithm.policy, algorithm.mdp, 2 * pairs
    parameters, source = list(policy.trainable_parameters().values()), torch.Generator().manual_seed(0)
    conditioning = {name: value.expand(n, *value.shape[1:]) for name, value in mdp.conditioning_of(mdp.records).items()}
    trained = set(policy.trainable_steps.tolist())

    def noise() -> Tensor:
        z = torch.randn(pairs, *policy.model.latent_shape, generator=source)
        return torch.cat([z, -z])

    x = noise()
    for t in range(policy.num_inference_steps):
        for value in parameters:
            value.requires_grad_(t in trained)
        x = policy.distribution(Rows(x, torch.full((n,), t), conditioning)).sample(noise())
    for value in parameters:
        value.requires_grad_(True)
    reward = reward_pixels(mdp.reward, policy.model.decode_pixels(x), mdp.prompts * n).rewards.mean()
    return _flat(torch.autograd.grad(reward, parameters, allow_unused=True), parameters)


def _flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Return all gradients in a row, float64; of a parameter that has none, zeros."""
    found = [
        torch.zeros_like(value) if grad is None else grad for grad, value in zip(gradients, parameters, strict=True)
    ]
    return torch.cat([grad.flatten().double() for grad in found])


def _text(values: Tensor) -> str:
    return f"({', '.join(f'{value:.3g}' for value in values.tolist())})"
