"""Advantages and weights by hand: what each reward counts against the others of its prompt."""

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch

from algorithms import DDPO
from algorithms.advantages import PerPromptStatistics, effective_sample_size, softmax_weights, top_fraction_weights


def test_each_prompt_has_its_own_statistics() -> None:
    """cat: mean 2, std 1; dog: mean 100, std 10. Rewards of different prompts are never compared."""
    statistics = PerPromptStatistics(buffer_size=4, min_count=2)
    advantages = statistics.update(["cat", "dog", "cat", "dog"], torch.tensor([1.0, 110.0, 3.0, 90.0]))
    assert advantages.tolist() == pytest.approx([-1.0, 1.0, 1.0, -1.0], rel=2e-6)  # 1e-6 is added to the std
    assert advantages.dtype == torch.float32


def test_statistics_run_over_the_last_rewards() -> None:
    """A buffer of 4: after 0, 0 | 4, 4 | 8, 8 it holds 4, 4, 8, 8 (mean 6, std 2)."""
    statistics = PerPromptStatistics(buffer_size=4, min_count=2)
    statistics.update(["cat"] * 2, torch.tensor([0.0, 0.0]))
    second = statistics.update(["cat"] * 2, torch.tensor([4.0, 4.0]))
    assert second.tolist() == pytest.approx([1.0, 1.0], rel=2e-6)  # against 0, 0, 4, 4: mean 2, std 2
    third = statistics.update(["cat"] * 2, torch.tensor([8.0, 8.0]))
    assert third.tolist() == pytest.approx([1.0, 1.0], rel=2e-6)


def test_one_prompt_uses_its_whole_batch() -> None:
    """64 images of one prompt with a buffer of 16: a buffer that forgot 48 of them would give a mean other than 0."""
    rewards = torch.arange(64.0)
    advantages = PerPromptStatistics(buffer_size=16, min_count=16).update(["wolf"] * 64, rewards)
    std = math.sqrt((64**2 - 1) / 12)  # of 0, 1, ..., 63
    torch.testing.assert_close(advantages, (rewards - 31.5) / std)


def test_many_prompts_fall_back_to_the_statistics_of_all() -> None:
    """398 prompts, 256 images: no prompt has 16, so all share a mean and std, and none gets 0 for being alone."""
    rewards = torch.arange(256.0)
    statistics = PerPromptStatistics()
    advantages = statistics.update([f"animal {i % 398}" for i in range(256)], rewards)
    torch.testing.assert_close(advantages, (rewards - 127.5) / math.sqrt((256**2 - 1) / 12))


def test_a_prompt_leaves_the_common_statistics_at_min_count() -> None:
    """After its third reward cat (1, 2, 3) stands alone; dog (100) still uses 1, 2, 3, 100: mean 26.5."""
    statistics = PerPromptStatistics(buffer_size=8, min_count=3)
    statistics.update(["cat", "cat"], torch.tensor([1.0, 2.0]))
    advantages = statistics.update(["cat", "dog"], torch.tensor([3.0, 100.0]))
    everything = math.sqrt(sum((v - 26.5) ** 2 for v in (1, 2, 3, 100)) / 4)
    assert advantages.tolist() == pytest.approx([1 / math.sqrt(2 / 3), 73.5 / everything], rel=2e-6)


def test_the_log_says_which_way_rewards_go(make_env: Callable, sample: Callable) -> None:
    """Against their prompt's last four, images that all earn more have advantages above 0, all less below 0."""
    algorithm = DDPO(
        make_env(), trainable="full", num_envs=4, images_per_iteration=4, statistics_buffer=8, statistics_min_count=4
    )
    rollout = sample(algorithm, 4)
    said = []
    for reward in (0.0, 1.0, 0.0):
        logged = algorithm.update(dataclasses.replace(rollout, rewards=torch.full((4,), reward)))
        said.append((logged["train/advantage_mean"], logged["train/advantage_abs_mean"]))
    torch.testing.assert_close(torch.tensor(said), torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float16, torch.float64])
def test_integer_rewards_give_fractional_advantages(dtype: torch.dtype) -> None:
    """An ``empty_like`` of integer rewards truncates every advantage, as in ddpo-pytorch; here +-0.447 and +-1.34."""
    advantages = PerPromptStatistics(4, 4).update(["cat"] * 4, torch.tensor([0, 1, 2, 3], dtype=dtype))
    assert advantages.tolist() == pytest.approx([z / math.sqrt(1.25) for z in (-1.5, -0.5, 0.5, 1.5)], rel=2e-6)
    assert advantages.dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, -2.7182817, 123456.789])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_constant_rewards_have_no_advantage(value: float, count: int) -> None:
    """Exactly 0, neither NaN (0 / 0) nor rounding blown up by the tiny std."""
    advantages = PerPromptStatistics().update(["cat"] * count, torch.full((count,), value))
    assert advantages.tolist() == [0.0] * count


def test_statistics_survive_json() -> None:
    """The checkpoint keeps them as JSON; what follows must be equal bit for bit."""
    prompts = ["cat", 'a "quoted" é prompt', "cat"]
    statistics = PerPromptStatistics(4, 2)
    statistics.update(prompts, torch.tensor([0.1, 1 / 3, -7.7]))
    restored = PerPromptStatistics(4, 2)
    restored.load_state_dict(json.loads(json.dumps(statistics.state_dict())))
    rewards = torch.tensor([0.3, 2.2, 9.1])
    assert restored.update(prompts, rewards).tolist() == statistics.update(prompts, rewards).tolist()


@pytest.mark.parametrize(("buffer_size", "min_count"), [(4, 5), (4, 0), (0, 0)])
def test_impossible_buffers_are_refused(buffer_size: int, min_count: int) -> None:
    with pytest.raises(ValueError, match="min_count"):
        PerPromptStatistics(buffer_size, min_count)


def test_softmax_weights_by_hand() -> None:
    """cat standardises to -1 and 1; at beta 0.5 that is softmax(-2, 2), times 2 images; dog is on another scale."""
    weights = softmax_weights(["cat", "dog", "cat", "dog"], torch.tensor([1.0, 5e4, 3.0, 7e4]), beta=0.5)
    high = 2 / (1 + math.exp(-4))
    assert weights.tolist() == pytest.approx([2 - high, 2 - high, high, high], rel=1e-5)


def test_softmax_weights_survive_a_tiny_temperature() -> None:
    """exp(z / 1e-3) overflows float64 from z = 0.71 on; the best image then takes everything, without inf or NaN."""
    weights = softmax_weights(["cat"] * 4, torch.tensor([1.0, 2.0, 3.0, 4.0]), beta=1e-3)
    assert weights.tolist() == pytest.approx([0, 0, 0, 4], abs=1e-6)


@pytest.mark.parametrize("rewards", [[5.0], [2.0, 2.0, 2.0]])
def test_weights_without_comparison_are_one(rewards: list[float]) -> None:
    """One image a prompt, or equal rewards: nothing is known, so every image weighs the same."""
    prompts = ["cat"] * len(rewards)
    assert softmax_weights(prompts, torch.tensor(rewards), 0.2).tolist() == [1.0] * len(rewards)
    assert top_fraction_weights(["cat"], torch.tensor([5.0]), 0.1).tolist() == [1.0]


def test_top_fraction_weights_by_hand() -> None:
    """10 % of 20 cats are 2, of 5 dogs 1 (rounded up); the kept weigh count / kept, so each prompt averages 1."""
    rewards = torch.cat([torch.arange(20.0), torch.tensor([3.0, 9.0, 1.0, 2.0, 8.0])])
    weights = top_fraction_weights(["cat"] * 20 + ["dog"] * 5, rewards, 0.1)
    assert weights[:20].tolist() == [0.0] * 18 + [10.0, 10.0]
    assert weights[20:].tolist() == [0, 5.0, 0, 0, 0]


def test_top_fraction_is_not_fooled_by_rounding() -> None:
    """0.1 * 30 is 3.0000000000000004 in floating point; 3 are kept, not 4."""
    assert int((top_fraction_weights(["cat"] * 30, torch.arange(30.0), 0.1) > 0).sum()) == 3


def test_ties_with_the_threshold_are_kept() -> None:
    """1[r >= C]: of rewards that are nearly all equal, as prompt alignment's are, no order decides which are fitted."""
    assert top_fraction_weights(["cat"] * 10, torch.zeros(10), 0.2).tolist() == [1.0] * 10
    mostly_right = torch.tensor([1.0, 0.3, 1.0, 1.0, 0.9])
    assert top_fraction_weights(["cat"] * 5, mostly_right, 0.2).tolist() == pytest.approx([5 / 3, 0, 5 / 3, 5 / 3, 0])
    # Two of five are kept: C is 3, which a third image reaches too.
    below_the_best = torch.tensor([4.0, 3.0, 1.0, 3.0, 2.0])
    assert top_fraction_weights(["cat"] * 5, below_the_best, 0.4).tolist() == pytest.approx([5 / 3, 5 / 3, 0, 5 / 3, 0])


def test_raw_rewards_are_weighed_as_in_the_paper() -> None:
    """exp(0.2 r), the paper's beta, on each prompt's rewards as they are: their spread decides how greedy it is."""
    rewards = torch.tensor([90.0, 100.0, 110.0, 4.9, 5.0, 5.4])
    prompts = ["cat"] * 3 + ["dog"] * 3
    weights = softmax_weights(prompts, rewards, beta=5.0, standardise=False)
    expected = torch.cat([3 * torch.softmax(0.2 * rewards[part].double(), 0) for part in (slice(3), slice(3, 6))])
    assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert weights[2] > 2.5
    assert (weights[3:] - 1).abs().max() < 0.07


def test_effective_sample_size_by_hand() -> None:
    assert effective_sample_size(torch.ones(7)) == 7
    assert effective_sample_size(torch.tensor([0.0, 4.0, 0.0])) == 1
    assert effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 10)
