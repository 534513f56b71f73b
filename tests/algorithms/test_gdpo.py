"""GDPO: each of several rewards normalised by itself; by hand, against float64, in the log, resumed, and refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import DDPO, GRPO, ForwardProcess, OnlinePreference
from algorithms.advantages import gdpo_advantages, group_advantages, share_without_spread
from benchmarks.runs.spec import RunSpec, TaskConfig
from diffusion_gym.rewards import Linear, Quadratic, RewardTerm, WeightedSum

STEPS, IMAGES = 3, 16
COMBINED = "exact-linear:normalise:2,exact-quadratic:floor=-3:0.5,exact-quadratic:-0.25"
SMALL: dict[str, Any] = {"trainable": "full", "images_per_iteration": IMAGES, "images_per_prompt": 4, "num_envs": 8}


def build(make_env: Callable, cls: Any = GRPO, reward: Any = COMBINED, **kwargs: Any) -> Any:
    """An algorithm on the exact mixture: iterations of 16 images in groups of 4."""
    env = make_env("exact-mixture", steps=STEPS, reward=reward, prompts=["north", "south", "east", "west"])
    return cls(env, **{**SMALL, "advantages": "gdpo", **kwargs})


# ---- known answers


def test_a_rewards_scale_does_not_matter() -> None:
    """Of 0 and 100 beside 0 and 100,000 the sum sees the second alone; GDPO ranks by both.

    Both normalised are -1, 1, -1, 1 and -1, -1, 1, 1; their sum -2, 0, 0, 2 has the std sqrt(2).
    """
    rewards = torch.tensor([[0.0, 100.0, 0.0, 100.0], [0.0, 0.0, 1e5, 1e5]])
    assert group_advantages(["cat"] * 4, rewards.sum(0)).tolist() == pytest.approx([-1, -1, 1, 1], abs=2e-3)
    expected = pytest.approx([-(2**0.5), 0, 0, 2**0.5], rel=1e-4, abs=1e-5)
    assert gdpo_advantages(["cat"] * 4, rewards, [1.0, 1.0]).tolist() == expected
    assert gdpo_advantages(["cat"] * 4, 50 * rewards + 7, [3.0, 3.0]).tolist() == expected


def test_patterns_that_have_one_sum_are_told_apart() -> None:
    """The paper's example: two images and two rewards of 0 or 1; sums of 0 and 1, 0 and 2, and 1 and 2.

    Their group advantages are all -1 and 1. GDPO gives the images that win both rewards twice the others' advantage:
    before the last normalisation 1, 2 and 1, whose std over the images is sqrt(2).
    """
    prompts = ["one"] * 2 + ["both"] * 2 + ["other"] * 2
    rewards = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0, 0.0, 1.0]])
    assert group_advantages(prompts, rewards.sum(0)).tolist() == pytest.approx([-1.0, 1.0] * 3, rel=3e-4)
    expected = [-(0.5**0.5), 0.5**0.5, -(2**0.5), 2**0.5, -(0.5**0.5), 0.5**0.5]
    assert gdpo_advantages(prompts, rewards, [1.0, 1.0]).tolist() == pytest.approx(expected, rel=4e-4)


def test_of_one_group_and_equal_rewards_grpo_remains() -> None:
    """Twice the same reward, in any units, has the advantages of one; against itself it has none."""
    values = torch.tensor([3.0, -1.0, 4.0, 0.5])
    twice, alone = torch.stack([values, 7 * values - 2]), group_advantages(["cat"] * 4, values)
    torch.testing.assert_close(gdpo_advantages(["cat"] * 4, twice, [1.0, 0.3]), alone, rtol=3e-4, atol=0)
    assert gdpo_advantages(["cat"] * 4, torch.stack([values, values]), [1.0, -1.0]).tolist() == [0.0] * 4
    lonely = gdpo_advantages(["cat", "dog", "dog"], torch.tensor([[9.0, 1.0, 1.0], [5.0, 2.0, 2.0]]), [1.0, 1.0])
    assert lonely.tolist() == [0.0] * 3


def test_rewards_that_cancel_out_leave_no_spread() -> None:
    """Of x and 1 - x, rounded to float32, about 1e-7 would be left, by which preferences would choose their pairs."""
    values = torch.tensor([0.1, 0.2, 0.4, 0.7])
    other = torch.tensor([[5.0, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, 7.0]])
    groups = ["cat"] * 4 + ["dog"] * 4
    found = gdpo_advantages(groups, torch.cat([torch.stack([values, 1 - values]), other], 1), [1.0, 1.0])
    assert found[:4].tolist() == [0.0] * 4
    assert share_without_spread(groups, found) == 0.5


@pytest.mark.parametrize("cls", [GRPO, DDPO, ForwardProcess])
def test_an_algorithms_advantages_against_float64(make_env: Callable, sample: Callable, cls: Any) -> None:
    """The formula in NumPy, on each reward's own scores: one normalised with weight 2, a floor, a negative weight."""
    algorithm = build(make_env, cls)
    algorithm.learn(IMAGES * STEPS)  # measures mean and std
    rollout = sample(algorithm, IMAGES)
    mean, std = algorithm.mdp.reward.state_dict()["statistics"]["exact-linear"]
    linear, quadratic = (rollout.parts[name].double().numpy() for name in ("exact-linear", "exact-quadratic"))
    terms = [(2.0, (linear - mean) / std), (0.5, -np.maximum(0, -3 - quadratic)), (-0.25, quadratic)]
    total, prompts = np.zeros(IMAGES), np.array(rollout.prompts)
    for weight, values in terms:
        for prompt in set(rollout.prompts):
            mine = values[prompts == prompt]
            total[prompts == prompt] += weight * (mine - mine.mean()) / (mine.std() + 1e-4)
    expected = (total - total.mean()) / (total.std() + 1e-4)
    np.testing.assert_allclose(algorithm.advantages(rollout).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - group_advantages(rollout.keys, rollout.rewards).numpy()).max() > 0.1


def test_branched_groups_of_one_prompt_stay_apart(make_env: Callable, sample: Callable) -> None:
    """Each group is normalised by itself, although all have the same prompt."""
    reward = WeightedSum([RewardTerm(Linear()), RewardTerm(Quadratic())])
    algorithm = build(make_env, reward=reward, window=1, branched=True, updates_per_iteration=1)
    rollout = sample(algorithm, IMAGES)
    shifts = torch.arange(4.0).repeat_interleave(4) * 100
    parts = {name: torch.arange(16.0) % 4 + shifts for name in ("exact-linear", "exact-quadratic")}
    rollout = replace(rollout, parts=parts)
    advantages = algorithm.advantages(rollout).reshape(4, 4)
    torch.testing.assert_close(advantages, advantages[:1].expand(4, 4))
    assert advantages.std() > 0.5


def test_d3po_compares_by_the_sum_of_normalised_rewards(make_env: Callable, sample: Callable) -> None:
    """The total prefers image 3 to 0, by the second reward's scale; normalised, 1 and 2 are the best and the worst."""
    reward = WeightedSum([RewardTerm(Linear()), RewardTerm(Quadratic())])
    small = {"images_per_iteration": 4, "num_envs": 4}
    algorithm = build(make_env, OnlinePreference, reward, **small)
    rollout = sample(algorithm, 4)
    rollout.parts["exact-linear"][:] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    rollout.parts["exact-quadratic"][:] = torch.tensor([0.0, 60.0, -40.0, 61.0])
    rollout.rewards[:] = torch.tensor([70.0, 61.0, 80.0, 62.0])  # of which GDPO takes no notice
    assert algorithm.pairs(rollout).tolist() == [[3, 2]]
    assert build(make_env, OnlinePreference, reward, advantages="group", **small).pairs(rollout).tolist() == [[2, 1]]
    rollout.parts["exact-linear"][:] = 1.0
    logged = algorithm.update(rollout)
    assert (logged["reward/exact-linear_no_spread"], logged["reward/exact-quadratic_no_spread"]) == (1.0, 0.0)
    assert logged["train/groups_without_spread"] == 0.0


# ---- in a run


def test_the_log_says_which_reward_has_no_spread(make_env: Callable, sample: Callable) -> None:
    """Of four groups one has none in the first reward, two in the second; the sum has some in one group alone.

    In the last two groups the rewards, with weights 2 and 1, cancel in the sum, and not once they are normalised.
    """
    reward = WeightedSum([RewardTerm(Linear(), 2.0), RewardTerm(Quadratic())])
    first = torch.tensor([0.0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0, 5, 6, 7, 8])
    second = torch.tensor([3.0, 3, 3, 3, 2, 2, 2, 2, 0, 0, 2, 2, 6, 4, 2, 0])
    for advantages, share in (("gdpo", 0.25), ("group", 0.75)):
        algorithm = build(make_env, reward=reward, advantages=advantages)
        records = [record for record in algorithm.mdp.records for _ in range(4)]
        parts = {"exact-linear": first, "exact-quadratic": second}
        rollout = replace(sample(algorithm, IMAGES), records=records, parts=parts, rewards=2 * first + second)
        logged = algorithm.advantage_metrics(rollout, algorithm.advantages(rollout))
        assert logged["reward/exact-linear_no_spread"] == 0.25
        assert logged["reward/exact-quadratic_no_spread"] == 0.5
        assert logged["train/groups_without_spread"] == share


def test_a_resumed_run_is_that_which_never_stopped(make_env: Callable, tmp_path: Path, digest: Callable) -> None:
    whole = build(make_env).learn(3 * IMAGES * STEPS)
    build(make_env).learn(IMAGES * STEPS).save(tmp_path / "run")
    resumed = GRPO.load(tmp_path / "run")  # its environment rebuilt from the reward's text
    assert resumed.config.advantages == "gdpo"
    resumed.learn(2 * IMAGES * STEPS, reset_num_timesteps=False)
    assert digest(resumed) == digest(whole)
    assert digest(resumed) != digest(build(make_env, advantages="group").learn(3 * IMAGES * STEPS))


# ---- refused


@pytest.mark.parametrize("cls", [GRPO, OnlinePreference])
def test_a_single_reward_is_refused(make_env: Callable, cls: Any) -> None:
    """Also one with a modifier, one that is set later, and in a run's specification before anything is built."""
    alone = r"'gdpo' normalise each of several rewards by itself, but 'exact-linear.*' is a single one; combine two"
    for reward in ("exact-linear", "exact-linear:normalise:2", Linear()):
        with pytest.raises(ValueError, match=alone):
            build(make_env, cls, reward)
    with pytest.raises(ValueError, match=r"but those of 'exact-linear.*' are all 0, so nothing would be learned"):
        build(make_env, cls, "exact-linear:0,exact-quadratic:0")
    algorithm = build(make_env, cls)
    algorithm.mdp.set_reward("exact-linear")
    with pytest.raises(ValueError, match=alone):
        algorithm.learn(IMAGES * STEPS)
    name = "grpo" if cls is GRPO else "d3po"
    with pytest.raises(ValueError, match=alone):
        RunSpec(name, cls.config_class(advantages="gdpo"), TaskConfig("exact-mixture", "exact-linear"), 16).check()
    nothing = TaskConfig("exact-mixture", "exact-linear:0,exact-quadratic:0")
    with pytest.raises(ValueError, match="are all 0, so nothing would be learned"):
        RunSpec(name, cls.config_class(advantages="gdpo"), nothing, 16).check()


def test_settings_that_contradict_it_are_refused(make_env: Callable) -> None:
    with pytest.raises(ValueError, match=r"'gdpo' compare the images of one prompt .* images_per_prompt is 1"):
        build(make_env, DDPO, images_per_prompt=1)
    with pytest.raises(ValueError, match="advantage_scale 'batch' has no effect on advantages 'gdpo'"):
        build(make_env, advantage_scale="batch")
