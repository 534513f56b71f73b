"""Training on records: statistics and groups of their own, metadata for rewards, checks before sampling, resuming."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from algorithms import DDPO, RWR, SB3PPO, EvaluationConfig
from algorithms.advantages import PerPromptStatistics
from algorithms.rollouts import Rollout
from diffusion_gym.prompts import load_prompts
from diffusion_gym.rewards import RewardTerm, WeightedSum

#: Two records share the text "north"; what is scored is theirs.
RECORDS = [{"prompt": "north", "offset": 0.0}, {"prompt": "north", "offset": 1000.0}, "south"]
STEPS = 2


def shifted(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return each image's mean, and the record's offset."""
    return images.float().mean((1, 2, 3)) + torch.tensor([row.get("offset", -1000.0) for row in metadata])


class Needy:
    """A reward of the field ``offset``."""

    name = "needy"
    required_metadata = ("offset",)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the offset."""
        return torch.tensor([row["offset"] for row in metadata])


def build(make_env: Callable, cls: Any = DDPO, reward: Any = shifted, prompts: Any = RECORDS, **more: Any) -> Any:
    """An algorithm on the exact mixture with iterations of 12 images, four of each record."""
    env = make_env("exact-mixture", steps=STEPS, reward=reward, prompts=prompts)
    settings = {"trainable": "full", "chunk_size": 6, "num_envs": 6, "images_per_iteration": 12, **more}
    return cls(env, **{"evaluation": EvaluationConfig(images=0), "images_per_prompt": 4, **settings})


def iterate(algorithm: Any, iterations: int = 1) -> Any:
    """Train some iterations."""
    return algorithm.learn(iterations * 12 * STEPS, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("cls", "settings", "weigh"),
    [
        (DDPO, {"statistics_min_count": 1}, "advantages"),
        (DDPO, {"advantages": "group"}, "advantages"),
        (DDPO, {"advantages": "leave-one-out"}, "advantages"),
        (RWR, {}, "weights"),
        (RWR, {"sparse": True, "top_fraction": 0.5}, "weights"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_records_with_one_text_are_compared_among_themselves(
    make_env: Callable, sample: Callable, cls: Any, settings: dict[str, Any], weigh: str, beside: bool
) -> None:
    """Offsets of 1000 between records change nothing: no image is measured against another record's."""
    values = []
    for offset in (0.0, 1000.0):
        records = [{"prompt": "north", "offset": 0.0}, {"prompt": "north", "offset": offset, "n": 2}, "south"]
        algorithm = build(make_env, cls, prompts=records, rewards_beside_sampling=beside, **settings)
        seen = []
        own = getattr(algorithm, weigh)

        def noted(rollout: Rollout, own: Any = own, seen: list[Any] = seen) -> Tensor:
            seen.append((rollout, own(rollout)))
            return seen[-1][1]

        setattr(algorithm, weigh, noted)
        iterate(algorithm)
        rollout, found = seen[0]
        assert sorted(rollout.prompts) == ["north"] * 8 + ["south"] * 4
        assert len(set(rollout.keys)) == 3
        spread = [rollout.rewards[i].item() for i in range(12) if rollout.records[i].metadata.get("n") == 2]
        assert (min(spread) > 900) == (offset > 0)
        values.append(found)
    torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-3)


def test_the_log_names_records_that_share_a_text_apart(make_env: Callable) -> None:
    algorithm, logged = build(make_env), {}
    log = algorithm._log
    algorithm._log = lambda metrics: (logged.update(metrics), log(metrics))
    iterate(algorithm)
    means = {name.partition("/")[2]: value for name, value in logged.items() if name.startswith("reward_by_prompt/")}
    assert means.keys() == {"north (1)", "north (2)", "south"}
    assert means["north (2)"] > 500 > means["north (1)"] > -500 > means["south"]


def test_stable_baselines_sees_the_metadata(make_env: Callable) -> None:
    """In ``infos`` of callbacks and of its environment."""
    algorithm, seen = build(make_env), []

    class Notes(BaseCallback):
        def _on_step(self) -> bool:
            seen.extend((info["prompt"], info["metadata"]) for info in self.locals["infos"])
            return True

    algorithm.learn(12 * STEPS, Notes())
    assert sum(row == ("north", {"offset": 1000.0}) for row in seen) == 4 * STEPS
    env = algorithm.get_env()
    env.set_options({"prompts": [RECORDS[1]] * env.num_envs})
    env.reset()
    assert [info["metadata"] for info in env.reset_infos] == [{"offset": 1000.0}] * env.num_envs


@pytest.mark.parametrize("cls", [DDPO, RWR, SB3PPO])
def test_a_resumed_run_is_one_that_never_stopped(
    make_env: Callable, digest: Callable, tmp_path: Path, cls: Any
) -> None:
    settings = {"batch_size": 12} if cls is SB3PPO else {}
    whole, first = build(make_env, cls, **settings), build(make_env, cls, **settings)
    iterate(whole, 2)
    iterate(first).save(tmp_path / "half")
    resumed = cls.load(tmp_path / "half", env=first.mdp and make_env("exact-mixture", STEPS, shifted, prompts=RECORDS))
    iterate(resumed)
    assert digest(whole) == digest(resumed)
    if cls is DDPO:
        keys = {record.key for record in load_prompts(RECORDS).records}
        assert set(resumed.statistics.state_dict()["rewards"]) == keys


def test_a_checkpoint_holds_the_records(make_env: Callable, tmp_path: Path) -> None:
    iterate(build(make_env, reward="exact-linear")).save(tmp_path / "run")
    assert DDPO.load(tmp_path / "run").mdp.records == load_prompts(RECORDS).records


def test_statistics_of_older_checkpoints_are_those_of_plain_prompts() -> None:
    statistics = PerPromptStatistics(4, 2)
    statistics.load_state_dict(json.loads('{"rewards": {"north": [1.0, 3.0]}}'))
    record = load_prompts([{"prompt": "north", "weight": 2}]).records[0]
    # Of 1, 3 and 5: mean 3, std 1.63.
    assert statistics.update([record.key], torch.tensor([5.0])).tolist() == pytest.approx([2 / 1.6330], abs=1e-3)


def test_evaluations_keep_the_metadata_and_score_with_them(make_env: Callable, tmp_path: Path) -> None:
    held_out = tmp_path / "held.jsonl"
    held_out.write_text('{"prompt": "east", "offset": 7000}\n{"prompt": "east", "offset": 8000}\n')
    evaluation = EvaluationConfig(images=6, held_out_prompts=str(held_out))
    algorithm = iterate(build(make_env, evaluation=evaluation))
    found = algorithm.last_evaluation
    assert found.prompts == ["north", "north", "south"] * 2
    assert found.metadata == [{"offset": 0.0}, {"offset": 1000.0}, {}] * 2
    assert (found.rewards.round(decimals=-3) / 1000).tolist() == [0, 1, -1] * 2
    assert (found.held_out.prompts, found.held_out.metadata[1]) == (["east"] * 6, {"offset": 8000})
    assert (found.held_out.rewards.round(decimals=-3) / 1000).tolist() == [7, 8] * 3


@pytest.mark.filterwarnings("ignore:the reward .needy. gave")  # it depends on the record alone
def test_a_normalised_part_is_measured_with_metadata(make_env: Callable) -> None:
    reward = WeightedSum([RewardTerm(shifted, normalise=True), RewardTerm(Needy(), 0.0)])
    iterate(build(make_env, reward=reward, prompts=RECORDS[:2]))
    mean, std = reward.state_dict()["statistics"]["shifted"]
    assert 400 < mean < 800  # half of the records have an offset of 1000
    assert 450 < std < 550


def test_a_field_missing_of_a_held_out_prompt_is_named_before_anything_is_sampled(
    make_env: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "held.txt").write_text("east\n")
    evaluation = EvaluationConfig(images=2, held_out_prompts=str(tmp_path / "held.txt"))
    message = "the reward 'needy' needs the field 'offset' of every prompt, but 'east' has no metadata"
    with pytest.raises(ValueError, match=message):
        build(make_env, reward=Needy(), prompts=RECORDS[:2], evaluation=evaluation)

    algorithm = build(make_env, prompts=RECORDS[:2], evaluation=evaluation)
    forwards = []
    monkeypatch.setattr(algorithm.policy, "distribution", lambda rows, *_: forwards.append(rows))
    algorithm.mdp.set_reward(Needy())
    with pytest.raises(ValueError, match=message):
        iterate(algorithm)
    assert not forwards
