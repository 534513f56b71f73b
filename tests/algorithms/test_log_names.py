"""Every output of Stable-Baselines3's logger takes any prompt and any reward's name."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from stable_baselines3.common.logger import configure

import diffusion_gym
from algorithms import DDPO
from diffusion_gym.naming import log_name

COLD = "a photograph of a red cat sitting on a "
PROMPTS: dict[str, list[str]] = {
    "one beginning": [COLD + "mat", COLD + "sofa"],
    "commas and lines": ["cat, sitting", "cat\nsitting", "cat\r\nsitting", 'cat "sitting"', "'cat' sitting"],
    "tags": ["cat/dog", "cat", "/cat", "cat/", "dog/dog"],
    "scripts": ["кошка", "猫", "he\u0301ron", "héron", "🐈", "a\u2028b"],
    "signs": ["$5 cat", "$6 cat", "50 % cat", "-cat", "--cat", " cat", "cat|dog", "<b>cat</b>", "{cat}", "\\cat", ""],
}


def _learn(model: str, prompts: Sequence[str], reward: Any, folder: Path | None = None, verbose: int = 0) -> DDPO:
    env = gymnasium.make(diffusion_gym.ENV_ID, model=model, reward=reward, prompts=list(prompts), num_inference_steps=2)
    n = len(prompts)
    config = {"images_per_iteration": n, "num_envs": n, "updates_per_iteration": 1, "trainable": "full"}
    algorithm = DDPO(env, verbose=verbose, **config)
    if folder is not None:
        algorithm.set_logger(configure(str(folder), ["stdout", "log", "csv", "json"]))
    return algorithm.learn(2 * 2 * n)


@pytest.mark.parametrize("kind", PROMPTS)
def test_any_prompt_in_any_output(kind: str, tiny_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = PROMPTS[kind]
    algorithm = _learn(tiny_sd, prompts, "compressibility", tmp_path)
    keys = {f"reward_by_prompt/{log_name(prompt)}" for prompt in prompts}
    assert len(keys) == len(prompts)
    first, second = (json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines())
    assert {key for key in second if key.startswith("reward_by_prompt/")} == keys
    with (tmp_path / "progress.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert set(header) == set(second)
    assert {len(row) for row in rows} == {len(header)}
    assert float(rows[0][header.index("rollout/ep_rew_mean")]) == pytest.approx(first["rollout/ep_rew_mean"])
    table = capsys.readouterr().out
    assert table.isascii()
    assert all(key.partition("/")[2] in table for key in keys)
    assert algorithm.log_names() == {log_name(prompt): prompt for prompt in prompts if log_name(prompt) != prompt}


def test_verbose_1_is_the_same_table(tiny_sd: str, capsys: pytest.CaptureFixture[str]) -> None:
    _learn(tiny_sd, PROMPTS["one beginning"], "compressibility", verbose=1)
    assert capsys.readouterr().out.count("a photograph of a red ca-") == 4


def _named(name: str) -> Any:
    def reward(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return images.flatten(1).float().mean(1)

    reward.__name__ = name
    return reward


@pytest.mark.parametrize(
    "names", [("x" * 40 + "1", "x" * 40 + "2"), ("reward", "ep_rew"), ("a/b", "a,b"), ("mean\n", "männ"), ("r", "r")]
)
def test_any_name_of_a_part(names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {_named(name): weight for name, weight in zip(names, (1.0, 0.5), strict=True)}
    _learn("exact-mixture", ["north", "south"], parts, tmp_path)
    line = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    keys = [key for key in line if key.startswith("reward/")]
    assert len(keys) == 4
    assert max(map(len, keys)) + len("_below_floor") - len("_mean") <= len("reward/") + 33
    assert capsys.readouterr().out.isascii()


def test_a_part_that_is_called_reward_hides_not_the_whole() -> None:
    env = gymnasium.make(
        diffusion_gym.ENV_ID,
        model="exact-mixture",
        reward={_named("reward"): 0.5, _named("other"): 1.0},
        prompts=["north"],
        num_inference_steps=2,
    )
    model = DDPO(env, images_per_iteration=2, num_envs=2, updates_per_iteration=1, trainable="full", images=2)
    evaluation = model.learn(4).last_evaluation
    assert evaluation is not None
    metrics = evaluation.metrics()
    assert metrics["eval/reward_mean"] == pytest.approx(float(evaluation.rewards.mean()))
    assert metrics["eval/reward_mean"] != pytest.approx(float(evaluation.parts["reward"].mean()))
