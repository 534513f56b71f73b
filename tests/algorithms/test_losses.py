"""Each loss by hand on numbers small enough to check with a pencil, with its gradient."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.losses import (
    importance_sampling_loss,
    log_ratio_bound,
    ratio_statistics,
    score_function_loss,
    weighted_denoising_loss,
)


def leaf(*values: float) -> Tensor:
    """A (m,) float64 tensor with gradients."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def with_statistics(new: Tensor, old: Tensor, advantages: Tensor, dimensions: int, reduction: Any, clip: float) -> Any:
    """The loss, and what is logged of its ratios."""
    loss = importance_sampling_loss(new, old, advantages, dimensions, reduction, clip)
    return loss, ratio_statistics(new, old, advantages, clip)


@pytest.mark.parametrize(("reduction", "scale"), [("sum", 1.0), ("mean", 1 / 4)])
def test_score_function_loss_by_hand(reduction: str, scale: float) -> None:
    """-A log p, and its gradient -A; the mean divides both by D = 4."""
    log_prob = leaf(-2.0, 3.0, 0.5)
    loss = score_function_loss(log_prob, torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64), 4, reduction)
    assert loss.tolist() == [2.0 * scale, 6.0 * scale, 0.0]
    loss.sum().backward()
    assert log_prob.grad.tolist() == [-1.0 * scale, 2.0 * scale, 0.0]


def test_importance_sampling_clips_only_what_the_advantage_already_overdid() -> None:
    """Bound 0.1 on the log-ratio; rows: ratio below, inside, above, for A = +1 and for A = -1.

    A > 0 gains from a larger ratio, so the gradient dies above the bound; A < 0 from a smaller one, so below.
    """
    ratios = [math.exp(-0.5), math.exp(0.05), math.exp(0.5)]
    log_prob = leaf(-0.5, 0.05, 0.5, -0.5, 0.05, 0.5)
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    loss, statistics = with_statistics(log_prob, torch.zeros(6).double(), advantages, 1, "sum", 0.1)
    low, high = math.exp(-0.1), math.exp(0.1)
    assert loss.tolist() == pytest.approx([-ratios[0], -ratios[1], -high, low, ratios[1], ratios[2]], rel=1e-12)
    assert statistics.clipped.tolist() == [0, 0, 1, 1, 0, 0]
    loss.sum().backward()
    # d ratio / d log p = ratio, and nothing where clipped.
    assert log_prob.grad.tolist() == pytest.approx([-ratios[0], -ratios[1], 0, 0, ratios[1], ratios[2]], rel=1e-12)


def test_mean_takes_the_root_of_the_ratio_and_divides_the_bound() -> None:
    """D = 8, joint log-ratio 0.8: the mean's ratio is e^0.1; the clip sits at the same joint 1.64 either way."""
    old = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    joint = torch.tensor([0.8, 1.63, 1.65], dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    mean, in_mean = with_statistics(old + joint, old, ones, 8, "mean", 1.64)
    total, in_sum = with_statistics(old + joint, old, ones, 8, "sum", 1.64)
    assert mean.tolist() == pytest.approx([-math.exp(0.1), -math.exp(1.63 / 8), -math.exp(1.64 / 8)], rel=1e-12)
    assert total.tolist() == pytest.approx([-math.exp(0.8), -math.exp(1.63), -math.exp(1.64)], rel=1e-12)
    assert in_mean.clipped.tolist() == in_sum.clipped.tolist() == [0, 0, 1]
    assert in_mean.log_ratio.tolist() == pytest.approx(joint.tolist(), abs=1e-12)  # joint units, whatever the reduction


def test_default_bound_is_the_papers_clip_range() -> None:
    """1e-4 on the mean log-ratio of 64 x 64 x 4 = 16,384 dimensions, and 4e-4 for 4 x 32 x 32."""
    assert log_ratio_bound(1.64, 16_384, "mean") == pytest.approx(1e-4, rel=2e-3)
    assert log_ratio_bound(1.64, 4 * 32 * 32, "mean") == pytest.approx(4e-4, rel=2e-3)
    assert log_ratio_bound(1.64, 16_384, "sum") == 1.64


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_importance_sampling_gradient_at_ratio_one_is_the_score_functions(reduction: str) -> None:
    """Equation 4 is equation 3 where the sampling policy is the present one; also at the kink of max() and clip()."""
    advantages = torch.tensor([1.5, -0.5, 0.0, 3.0])
    first, second = (torch.randn(4, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    loss, statistics = with_statistics(first, first.detach().clone(), advantages, 256, reduction, 1.64)
    loss.sum().backward()
    score_function_loss(second, advantages, 256, reduction).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=0, atol=0)
    assert statistics.log_ratio.tolist() == statistics.approx_kl.tolist() == statistics.clipped.tolist() == [0.0] * 4


def test_approximate_kl_is_schulmans() -> None:
    """r - 1 - log r, never negative, near (log r)^2 / 2 for small ratios."""
    log_prob = torch.tensor([-0.2, 0.0, 0.01], dtype=torch.float64)
    _, statistics = with_statistics(log_prob, torch.zeros(3).double(), torch.ones(3).double(), 1, "sum", 1.0)
    expected = [math.exp(-0.2) - 0.8, 0.0, 0.01**2 / 2 + 0.01**3 / 6]
    assert statistics.approx_kl.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dimensions", [16_384, 262_144])
@pytest.mark.parametrize("joint", [-0.5, 1e-3, 0.5, 1.64])
def test_approximate_kl_keeps_its_digits_at_real_sizes(dimensions: int, joint: float) -> None:
    """In float32 and joint nats, whatever the reduction: e^r - 1 - r; the mean's ratio - 1 would be rounding alone."""
    old = torch.tensor([0.0, 100.0])
    for reduction in ("mean", "sum"):
        _, statistics = with_statistics(old + joint, old, torch.ones(2), dimensions, reduction, 1.64)
        expected = math.expm1(joint) - joint
        assert statistics.approx_kl.dtype == torch.float32
        assert statistics.approx_kl[0].item() == pytest.approx(expected, rel=1e-3)
        assert (statistics.approx_kl >= 0).all()


def test_weighted_denoising_loss_by_hand() -> None:
    """w mean((target - output)^2): row 1 errs by 1 and 3, row 2 weighs nothing; gradient 2 w (out - target) / D."""
    output = torch.tensor([[1.0, 3.0], [5.0, 5.0]])[..., None, None].requires_grad_()
    loss = weighted_denoising_loss(output, torch.zeros(2, 2, 1, 1), torch.tensor([0.5, 0.0]))
    assert loss.tolist() == [0.5 * (1 + 9) / 2, 0.0]
    loss.sum().backward()
    assert output.grad.flatten().tolist() == [0.5, 1.5, 0.0, 0.0]
