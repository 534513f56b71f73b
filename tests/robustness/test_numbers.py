"""Numbers under stress: whatever rewards and gradients are, the update is right or refused, and no weight is NaN."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import ALGORITHMS, DiffusionAlgorithm
from algorithms.advantages import PerPromptStatistics, softmax_weights, top_fraction_weights
from algorithms.checkpoints.file import read_checkpoint
from algorithms.checkpoints.tensors import flatten
from algorithms.optimization import DivergedError
from benchmarks.__main__ import main
from diffusion_gym.rewards import Linear, RewardError
from tests.builders.algorithms import WEIGHINGS

Build = Callable[..., DiffusionAlgorithm[Any]]
ITERATION = 16 * 3
first = Linear((1.0, 0.0))
#: Algorithms that take scores as they come, without a gradient.
ANY_REWARD = [name for name in WEIGHINGS if not name.startswith(("draft", "refl", "opsd"))]


def rewarding(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, list[str]], Tensor]:
    """A reward: the image's first coordinate, changed."""

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        return change(first(images, prompts))

    return reward


def weights(algorithm: DiffusionAlgorithm[Any]) -> dict[str, Tensor]:
    return flatten(algorithm.get_parameters())


def all_finite(algorithm: DiffusionAlgorithm[Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in weights(algorithm).values())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- rewards -----------------------------------------------------------------------------------------------------------

STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda x: torch.full_like(x, 0.1),
    "huge and constant": lambda x: torch.full_like(x, -3.3e37),
    "huge": lambda x: 1e30 * x,
    "as large as float32 goes": lambda x: 3e38 * torch.sign(x),
    "tiny spread": lambda x: 1000 + 1e-4 * x,
    "tiny": lambda x: 1e-38 * x,
    "integers": lambda x: (x * 10).long(),
    "truth values": lambda x: x > 0,
    "bytes": lambda x: (x > 0).to(torch.uint8),
    "float64": lambda x: x.double() / 3,
    "float16": lambda x: x.half(),
    "one that stands out": lambda x: torch.where(x == x.max(), 1e6, 0.0),
}


#: A value function fits the rewards themselves: the squares of these do not fit into float32.
TOO_LARGE_FOR_A_CRITIC = ("huge", "huge and constant", "as large as float32 goes")


@pytest.mark.parametrize("kind", TOO_LARGE_FOR_A_CRITIC)
def test_rewards_too_large_for_a_critic_are_skipped_and_then_refused(build: Build, kind: str) -> None:
    algorithm = build("sb3-ppo", rewarding(STRANGE[kind]), batch_size=16, n_epochs=1, max_skipped_updates=3)
    before = weights(algorithm)
    with pytest.raises(DivergedError, match=r"4 updates in a row were skipped.*Look for rewards of extreme size"):
        algorithm.learn(2 * ITERATION)
    assert equal(weights(algorithm), before)


@pytest.mark.parametrize("name", ANY_REWARD)
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_rewards_leave_finite_weights_and_logs(build: Build, name: str, kind: str) -> None:
    if name == "sb3-ppo" and kind in TOO_LARGE_FOR_A_CRITIC:
        pytest.skip("refused, as the test above has it")
    algorithm = build(name, rewarding(STRANGE[kind]), images=2)
    lines: list[dict[str, float]] = []
    algorithm._log = lines.append  # type: ignore[assignment,method-assign]
    algorithm.learn(2 * ITERATION)
    assert algorithm.iteration == 2
    assert all_finite(algorithm)
    assert algorithm.skipped.total == 0
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("kind", ["constant", "huge and constant"])
@pytest.mark.parametrize("ddpo", [n for n in ALGORITHMS if n.startswith("ddpo")])
def test_rewards_without_spread_move_nothing(build: Build, ddpo: str, kind: str) -> None:
    """Every advantage is exactly 0, so without weight decay every weight stays, bit for bit."""
    algorithm = build(ddpo, rewarding(STRANGE[kind]), weight_decay=0.0)
    before = algorithm.get_parameters()["policy"]
    algorithm.learn(2 * ITERATION)
    assert equal(algorithm.get_parameters()["policy"], before)


@pytest.mark.parametrize("name", ANY_REWARD)
@pytest.mark.parametrize(("scale", "shift"), [(1e30, 0.0), (1e-3, 0.0), (1.0, 1000.0)])
def test_scale_and_origin_of_a_reward_do_not_matter(build: Build, name: str, scale: float, shift: float) -> None:
    """Each prompt's rewards are standardised, so an iteration of ``scale * r + shift`` ends as one of r."""
    if name == "sb3-ppo":
        pytest.skip("Stable-Baselines3's PPO takes rewards as they are")
    plain, scaled = build(name, first), build(name, rewarding(lambda x: scale * x + shift))
    for algorithm in (plain, scaled):
        algorithm.learn(ITERATION)
    start = build(name, first).get_parameters()["policy"]
    for key, value in plain.get_parameters()["policy"].items():
        moved = scaled.get_parameters()["policy"][key] - start[key]
        # float32 holds 1000 + r to 6e-5; 1e-6 is added to a std of 1e-3 / 3.
        torch.testing.assert_close(moved, value - start[key], rtol=0.02, atol=2e-5)


@pytest.mark.parametrize("name", ANY_REWARD)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e39])
def test_rewards_that_are_no_numbers_are_refused(build: Build, name: str, value: float) -> None:
    """1e39 as float64 is infinite in float32. The iteration never happened, and the same object can go on."""
    bad = [True]

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        scores = first(images, prompts).double()
        scores[3] = value if bad[0] else scores[3]
        return scores

    algorithm = build(name, reward)
    before = weights(algorithm)
    with pytest.raises(RewardError, match=r"reward 'reward' returned -?(nan|inf) for the prompt '(north|south)'"):
        algorithm.learn(ITERATION)
    assert equal(weights(algorithm), before)
    assert (algorithm.iteration, algorithm.num_timesteps) == (0, 0)
    bad[0] = False
    assert algorithm.learn(ITERATION).iteration == 1


def test_one_prompt_and_prompts_seen_once(build: Build, name: str) -> None:
    """One prompt in all; and four prompts with one image each, where statistics are shared (groups need two)."""
    few = 1 if name in ("ddpo-is", "ddpo-sf", "sb3-ppo") else 2
    for prompts, group, images in ((["north"], 8, 16), (["north", "east", "south", "west"], few, 4 * few)):
        algorithm = build(name, first, prompts, images_per_prompt=group, images_per_iteration=images, num_envs=4)
        algorithm.learn(2 * images * 3)
        assert algorithm.iteration == 2
        assert all_finite(algorithm)


def test_a_group_without_spread_beside_one_with(build: Build) -> None:
    """The flat group's images weigh nothing in DDPO, and the same each in RWR."""
    prompts = ["flat"] * 4 + ["steep"] * 4
    rewards = torch.tensor([7.0] * 4 + [0.0, 0.0, 0.0, 4.0])
    advantages = PerPromptStatistics(4, 4).update(prompts, rewards)
    assert advantages[:4].tolist() == [0.0] * 4
    assert advantages[4:].tolist() == pytest.approx([-1 / 3**0.5] * 3 + [3 / 3**0.5], rel=1e-5)
    assert softmax_weights(prompts, rewards, 0.2)[:4].tolist() == [1.0] * 4
    assert top_fraction_weights(prompts, rewards, 0.25)[4:].tolist() == [0.0, 0.0, 0.0, 4.0]


def test_a_prompt_seen_once_with_statistics_of_its_own_has_no_advantage() -> None:
    """Its mean is its one reward: 0, not 0 / 0."""
    assert PerPromptStatistics(1, 1).update(["once"], torch.tensor([1e30])).tolist() == [0.0]


# -- gradients ---------------------------------------------------------------------------------------------------------


def spoil(algorithm: DiffusionAlgorithm[Any], value: float, updates: set[int]) -> None:
    """Put a value into one weight's gradient in some updates, counted from 0 over those that were tried."""
    parameter = next(iter(algorithm.policy.trainable_parameters().values()))

    def hook(gradient: Tensor) -> Tensor:
        tried = algorithm._n_updates + algorithm.skipped.total
        if tried not in updates:
            return gradient
        spoiled = gradient.clone()
        spoiled.view(-1)[0] = value
        return spoiled

    parameter.register_hook(hook)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(build: Build, name: str, value: float) -> None:
    """The second update of the first iteration: neither weights, nor moments, nor Adam's count of steps move."""
    updates = 1 if name == "ddpo-sf" else 2
    algorithm = build(name, first, updates_per_iteration=updates, learning_rate=0.01)
    optimizer = algorithm.make_optimizer() if name.endswith("rwr") else algorithm.optimizer
    parameters = algorithm.policy.trainable_parameters()

    def step(loss: Tensor) -> None:
        algorithm.backward(loss)
        algorithm.step(optimizer)

    step(sum(p.sum() for p in parameters.values()))
    before = {key: value.clone() for key, value in parameters.items()}
    moments = {key: {k: v.clone() for k, v in optimizer.state[p].items()} for key, p in parameters.items()}
    step(value * sum(p.sum() for p in parameters.values()))
    assert equal(dict(parameters), before)
    assert all(equal(optimizer.state[p], moments[key]) for key, p in parameters.items())
    assert (algorithm.skipped.total, algorithm.skipped.in_a_row, algorithm._n_updates) == (1, 1, 1)
    step(sum(p.sum() for p in parameters.values()))
    assert (algorithm.skipped.total, algorithm.skipped.in_a_row, algorithm._n_updates) == (1, 0, 2)
    assert not equal(dict(parameters), before)


def test_training_goes_on_after_skipped_updates(build: Build, name: str, tmp_path: Path) -> None:
    """Two spoiled updates of a run: counted in the log and in the checkpoint; weights stay finite and move on."""
    algorithm = build(name, first, learning_rate=0.01)
    spoil(algorithm, torch.nan, {1, 2})
    counts: list[int] = []
    ordinary = algorithm._log

    def log(metrics: Any) -> None:
        ordinary(metrics)
        counts.append(algorithm.skipped.total)

    algorithm._log = log  # type: ignore[method-assign]
    algorithm.learn(5 * ITERATION)
    assert counts[-1] == 2
    assert all_finite(algorithm)
    algorithm.save(tmp_path / "run")
    state = read_checkpoint(tmp_path / "run").state["steps"]
    assert state["skipped"] == {"total": 2, "in_a_row": 0}
    config = algorithm.config
    each = 3 if name == "sb3-ppo" else config.updates_per_iteration * getattr(config, "passes", 1)
    assert state["made"] == 5 * each - 2
    assert type(algorithm).load(tmp_path / "run", algorithm.get_env()).skipped.total == 2


@pytest.mark.parametrize("limit", [0, 3])
def test_too_many_in_a_row_stop_the_run(build: Build, name: str, limit: int) -> None:
    algorithm = build(name, first, max_skipped_updates=limit)
    spoil(algorithm, torch.inf, set(range(1000)))
    before = algorithm.get_parameters()["policy"]
    message = rf"^{limit + 1} updates in a row were skipped.*was (nan|inf); expected a finite one.*allows {limit}\."
    with pytest.raises(DivergedError, match=message):
        algorithm.learn(100 * ITERATION)
    assert algorithm.skipped.in_a_row == limit + 1
    assert equal(algorithm.get_parameters()["policy"], before)


def test_skipped_updates_with_good_ones_between_do_not_stop_it(build: Build) -> None:
    algorithm = build("ddpo-is", first, max_skipped_updates=1)
    spoil(algorithm, torch.nan, set(range(0, 1000, 2)))
    algorithm.learn(3 * ITERATION)
    assert (algorithm.skipped.total, algorithm._n_updates) == (6, 6)


def test_the_command_line_says_why_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fourth iteration's gradients are NaN."""
    ordinary, calls = torch.nn.utils.clip_grad_norm_, [0]

    def clip(*args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        return ordinary(*args, **kwargs) if calls[0] <= 3 else torch.tensor(torch.nan)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    monkeypatch.setattr("benchmarks.runs.forecast.rows_per_iteration", lambda spec: None)  # an iteration of its own
    command = [
        "train",
        "ddpo-sf",
        "--model",
        "exact-gaussian",
        "--reward",
        "exact-linear",
        "--policy.trainable",
        "full",
    ]
    command += ["--images-per-iteration", "8", "--num-envs", "8", "--reward-queries", "80", "--threads", "1"]
    command += ["--max-skipped-updates", "2", "--checkpoint-every", "1", "--folder", str(tmp_path / "run")]
    command += ["--evaluation.images", "0"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "error: 3 updates in a row were skipped" in error
    assert "lower --learning-rate" in error
    assert "Traceback" not in error
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/skipped_updates"] for line in log] == [0, 0, 0, 1, 2]
    state = read_checkpoint(tmp_path / "run" / "checkpoint.zip").state
    assert (state["iteration"], state["steps"]["skipped"]) == (5, {"total": 2, "in_a_row": 2})
