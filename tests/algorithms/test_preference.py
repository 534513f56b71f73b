"""Online preference: its loss by hand, which images are compared, and what is left out. See also test_check.py."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import OnlinePreference, OnlinePreferenceConfig
from algorithms.losses import preference_loss
from algorithms.rollouts import Rollout

SMALL: dict[str, Any] = {"trainable": "full", "images_per_iteration": 8, "images_per_prompt": 4, "num_envs": 8}


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 4)])
def test_the_loss_and_its_gradient_by_hand(reduction: Any, divisor: int) -> None:
    """Differences of 0 and 6 nats, beta 0.5: log 2, and log(1 + exp(-3)) or, of 4 dimensions, log(1 + exp(-0.75))."""
    best = torch.tensor([1.0, 4.0], requires_grad=True)
    worst = torch.tensor([1.0, -2.0], requires_grad=True)
    loss = preference_loss(best, worst, 0.5, 4, reduction)
    d = 3 / divisor
    assert loss.tolist() == pytest.approx([math.log(2), math.log1p(math.exp(-d))])
    loss.sum().backward()
    slopes = [-0.25 / divisor, -0.5 / divisor / (1 + math.exp(d))]
    assert best.grad is not None
    assert worst.grad is not None
    assert best.grad.tolist() == pytest.approx(slopes)
    assert worst.grad.tolist() == pytest.approx([-slope for slope in slopes])


def test_the_first_update_pushes_best_from_worst_at_every_step(make_env: Callable, sample: Callable) -> None:
    """At the start the gradient is beta / 2 times that of log p of the worst less that of the best, averaged.

    Two groups of four, in one forward pass or one pair at a time; the rewards of a third of them tie.
    """
    gradients = []

    class Gradients(OnlinePreference):
        def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
            gradients.append(self.policy.denoiser.means.grad.clone())
            optimizer.zero_grad()
            return torch.zeros(())

    options = {**SMALL, "images_per_iteration": 12, "num_envs": 12, "beta": 0.3}
    for size in (16, 2):
        algorithm = Gradients(make_env(), chunk_size=size, **options)
        rollout: Rollout = sample(algorithm, 12)
        rollout.rewards[:] = torch.tensor([0.0, 3.0, 3.0, 1.0, 5.0, 5.0, 5.0, 5.0, 1.0, -1.0, 0.0, 0.5])
        assert algorithm.pairs(rollout).tolist() == [[1, 0], [4, 4], [8, 9]]
        metrics = algorithm.update(rollout)
        assert metrics["train/groups_without_spread"] == pytest.approx(1 / 3)
        assert metrics["train/loss"] == pytest.approx(math.log(2))
        assert metrics["train/log_ratio_abs"] == metrics["train/margin"] == metrics["train/kl_to_start"] == 0.0
    signed = torch.zeros(())
    for step in range(5):
        for image, sign in ((1, -1.0), (0, 1.0), (8, -1.0), (9, 1.0)):
            part = slice(image, image + 1)
            log_prob, _ = algorithm.policy.log_prob(rollout.rows(part, step), rollout.latents[step + 1, part])
            signed = signed + sign * log_prob.sum()
    expected = torch.autograd.grad(0.3 / 2 * signed / (2 * 5), algorithm.policy.denoiser.means)[0]
    assert expected.abs().max() > 1e-3
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_without_a_difference_nothing_is_learnt(make_env: Callable) -> None:
    """All rewards tie: no update, and no forward is paid."""
    env = make_env(reward=lambda images, prompts: torch.ones(len(images)))
    algorithm = OnlinePreference(env, **SMALL)
    before = algorithm.policy.denoiser.means.detach().clone()
    with pytest.warns(UserWarning, match="there is nothing to learn from it"):
        algorithm.learn(8 * 5)
    assert torch.equal(algorithm.policy.denoiser.means.detach(), before)
    assert algorithm.costs["forward_equivalents"] == 8 * 5


def test_a_pair_costs_two_trained_rows_and_two_of_the_start_at_each_step(make_env: Callable) -> None:
    algorithm = OnlinePreference(make_env(), **SMALL).learn(8 * 5)
    assert algorithm.costs["forward_equivalents"] == 8 * 5 + 2 * 2 * 5 * (3 + 1)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "groups of one": ({"images_per_prompt": 1}, "images_per_prompt must be at least 2.*got 1"),
    "no beta": ({"beta": 0.0}, "beta must be positive, got 0.0"),
    "a pair that is torn apart": ({"chunk_size": 1}, "chunk_size must be at least 2, because a pair is scored in one"),
    "shares of broken groups": ({"updates_per_iteration": 3}, "divide the 8 groups .*2 would"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(make_env: Callable, case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        OnlinePreference(make_env(), OnlinePreferenceConfig(), trainable="full", **changes)
