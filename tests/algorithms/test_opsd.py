"""OPSD: its gradients against autograd through the Gaussian's closed form, its fixed point, draws, costs, refusals.

On the exact Gaussian of mean m and std s the predicted x_0 is the posterior's mean, ``m + k (x_t - b m)`` with
``k = b s^2 / (b^2 s^2 + n^2)``, where x_t is b times x_0 plus n times noise.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import ALGORITHMS, OPSD, OPSDConfig
from algorithms.opsd import direction
from algorithms.rollouts import Rollout

STEPS, N = 5, 16
SMALL: dict[str, Any] = {
    "images_per_iteration": N, "num_envs": N, "chunk_size": 6, "trainable": "full", "weight_decay": 0.0,
}  # fmt: skip


class Recording(OPSD):
    """Keeps what each update trained on, the weights before it, and its gradient; by update."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.images, self.steps = list[Tensor](), list[Tensor]()
        self.weights, self.gradients = list[Tensor](), list[Tensor]()

    def _train_on(self, rollout: Rollout, images: Tensor, *rest: Any) -> None:
        self.images.append(images)
        self.weights.append(self._flat([value.detach() for value in self.policy.trainable_parameters().values()]))
        super()._train_on(rollout, images, *rest)

    def _draw_steps(self, *arguments: Any) -> Tensor:
        self.steps.append(super()._draw_steps(*arguments))
        return self.steps[-1]

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        grads = [value.grad for value in self.policy.trainable_parameters().values()]
        self.gradients.append(self._flat([grad for grad in grads if grad is not None]))
        return super().step(optimizer)

    @staticmethod
    def _flat(values: list[Tensor]) -> Tensor:
        """Mean and log-std, (3,)."""
        return torch.cat([value.flatten() for value in values])[:3].double().clone()


def factors(model: str, steps: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of x_0 and of noise in x_t, each (n, 1)."""
    if model == "exact-flow-gaussian":
        t = (1 - steps.double() / STEPS)[:, None]
        return 1 - t, t
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)  # scaled_linear
    a = (1 - root**2).cumprod(0)[999 - 200 * steps][:, None]
    return a.sqrt(), (1 - a).sqrt()


def predicted(theta: Tensor, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    variance = (2 * theta[2]).exp()
    return theta[:2] + signal * variance / (signal**2 * variance + noise**2) * (x - signal * theta[:2])


@pytest.mark.parametrize("model", ["exact-gaussian", "exact-flow-gaussian"])
def test_each_updates_gradient_is_that_of_the_pair_of_targets(
    make_env: Callable, sample: Callable[..., Rollout], model: str
) -> None:
    """Of the first update, where old and present weights are equal, and of the others, where they are not."""
    options = {"passes": 2, "updates_per_iteration": 2, "states_per_image": 2, "step_size": 0.3, "learning_rate": 0.05}
    algorithm = Recording(make_env(model, STEPS), OPSDConfig(), **SMALL, **options)
    rollout = sample(algorithm, N)
    logged = algorithm.update(rollout)
    target, losses = torch.tensor([1.0, 1.0]).double(), []  # of exact-quadratic
    for i in range(4):
        images, steps = algorithm.images[i].repeat_interleave(2), algorithm.steps[i]
        x, (signal, noise) = rollout.latents[steps, images].flatten(1).double(), factors(model, steps)
        y = predicted(algorithm.weights[0], x, signal, noise)
        g = 2 * (target - y)
        move = 0.3 * 2**0.5 * g / g.norm(dim=1, keepdim=True)
        theta = algorithm.weights[i].requires_grad_()
        better, worse = predicted(theta, x, signal, noise), 2 * y - predicted(theta, x, signal, noise)
        loss = ((better - (y + move)).square().mean() + (worse - (y - move)).square().mean()) / 2
        expected = torch.autograd.grad(loss, theta)[0]
        print(algorithm.gradients[i].tolist(), expected.tolist())
        torch.testing.assert_close(algorithm.gradients[i], expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.3**2)
    assert logged["train/loss"] == pytest.approx(sum(losses) / 4, rel=1e-3)


def test_the_fixed_point_is_the_better_target(make_env: Callable, sample: Callable[..., Rollout]) -> None:
    """Toward the first coordinate, with one state: the mean moves until each prediction is h |1| further, std stays."""
    options = {"passes": 120, "visited_steps": 1, "step_size": 0.05, "learning_rate": 0.05, "chunk_size": N}
    algorithm = Recording(make_env(steps=STEPS, reward="exact-linear"), OPSDConfig(), **{**SMALL, **options})
    algorithm.update(sample(algorithm, N))
    signal, noise = factors("exact-gaussian", torch.tensor([STEPS - 1]))
    variance = 0.25
    moved = 0.05 * 2**0.5 * float((signal**2 * variance + noise**2) / noise**2)  # d x_0 / d mean is n^2 / (...)
    mean, log_std = algorithm.policy.denoiser.means.flatten().tolist(), algorithm.policy.denoiser.log_stds.item()
    print(mean, moved, log_std)
    assert mean == pytest.approx([0.5 + moved, -0.5], abs=1e-3)
    assert log_std == pytest.approx(torch.tensor(0.5).log().item(), abs=1e-3)


def test_directions_have_one_length_whatever_the_rewards_scale() -> None:
    rows = torch.tensor([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]]).reshape(4, 2, 1, 1)
    expected = torch.tensor([[0.6, 0.8]] * 3 + [[0.0, 0.0]]) * 2**0.5
    torch.testing.assert_close(direction(rows).flatten(1), expected)


def test_an_images_states_differ_and_all_late_steps_are_drawn(make_env: Callable) -> None:
    algorithm = OPSD(make_env(), OPSDConfig(states_per_image=2), **SMALL)
    drawn = algorithm._draw_steps(3000, torch.Generator().manual_seed(0)).reshape(-1, 2)
    assert bool((drawn[:, 0] != drawn[:, 1]).all())
    share = drawn.flatten().bincount(minlength=STEPS) / drawn.numel()
    torch.testing.assert_close(share, torch.tensor([0, 0, 1, 1, 1]) / 3, atol=0.03, rtol=0)  # 6,000 draws: 5 std


@pytest.mark.parametrize(("passes", "per_image"), [(1, 5 + 2 * 3), (3, 5 + 3 * 2 * (3 + 1))])
def test_what_is_billed_is_what_the_page_says(make_env: Callable, passes: int, per_image: int) -> None:
    algorithm = OPSD(make_env(), OPSDConfig(passes=passes, states_per_image=2), **SMALL).learn(1)
    assert algorithm.costs["forward_equivalents"] == N * per_image
    assert algorithm.costs["reward_queries"] == N


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more steps than there are": ({"visited_steps": 6}, "visited_steps is 6, but sampling takes 5 steps; set visited"),
    "no passes": ({"passes": 0}, "passes must be at least 1, got 0"),
    "one state twice": ({"states_per_image": 4}, r"states_per_image \(4\) must be at most visited_steps \(3\)"),
    "no step": ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
    "unequal updates": ({"updates_per_iteration": 3}, r"updates_per_iteration \(3\) must divide .*; 2 would"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_fail_is_refused(make_env: Callable, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        OPSD(make_env(), **SMALL, **options)


def test_a_reward_without_a_gradient_is_refused_by_name(make_env: Callable) -> None:
    with pytest.raises(ValueError, match="the reward 'compressibility' has no gradient with respect to the images"):
        OPSD(make_env(reward="compressibility"), **SMALL)
    assert OPSDConfig() == ALGORITHMS["opsd"].config
