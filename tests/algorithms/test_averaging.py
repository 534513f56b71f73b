"""The moving average of the weights: by hand; what uses it; kept through a checkpoint bit for bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from safetensors.torch import load_file

from algorithms import DDPO, RWR, Requirements
from algorithms.checkpoints.file import read_checkpoint, write_checkpoint
from algorithms.weight_average import WeightAverage, weights_replaced


def small(make_env: Callable, cls: type = DDPO, **options: Any) -> Any:
    return cls(make_env(steps=4), **{"updates_per_iteration": 4, "images_per_iteration": 16, "num_envs": 16, **options})


def test_by_hand() -> None:
    """Decay 0.75 from 8: after 4 the average is 7, after 0 it is 5.25; the weight itself is left alone."""
    weight = torch.nn.Parameter(torch.tensor([8.0]))
    average = WeightAverage({"w": weight}, 0.75)
    for value, expected in ((4.0, 7.0), (0.0, 5.25)):
        weight.data.fill_(value)
        average.update()
        assert average.tensors["w"].tolist() == [expected]
    with average.applied():
        assert weight.tolist() == [5.25]
    assert weight.tolist() == [0.0]


def test_weights_come_back_after_an_error() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))

    def fail() -> None:
        with weights_replaced({"w": weight}, {"w": torch.ones(2)}):
            assert weight.tolist() == [1.0, 1.0]
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert weight.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("cls", [DDPO, RWR])
def test_it_follows_every_update_and_changes_none(make_env: Callable, cls: type) -> None:
    """The average is that of the weights after each update, worked out beside; training is as without it."""
    plain, averaged = small(make_env, cls), small(make_env, cls, ema_decay=0.9)
    by_hand = {name: value.detach().clone() for name, value in averaged.policy.trainable_parameters().items()}
    step = averaged.step

    def watched(*args: Any) -> Any:
        norm = step(*args)
        for name, value in averaged.policy.trainable_parameters().items():
            by_hand[name] = 0.9 * by_hand[name] + 0.1 * value.detach()
        return norm

    averaged.step = watched
    plain.learn(2 * 16 * 4)
    averaged.learn(2 * 16 * 4)
    weights = averaged.policy.trainable_parameters()
    assert averaged._n_updates > 4
    for name, value in plain.policy.trainable_parameters().items():
        assert torch.equal(value, weights[name])
        torch.testing.assert_close(averaged.average.tensors[name], by_hand[name])
    assert not torch.equal(weights["means"], by_hand["means"])


def test_a_skipped_update_is_not_averaged(make_env: Callable) -> None:
    algorithm = small(make_env, ema_decay=0.5)
    before = {name: value.clone() for name, value in algorithm.average.tensors.items()}
    loss = algorithm.policy.denoiser.means.sum() * float("nan")
    algorithm.backward(loss)
    algorithm.step(algorithm.optimizer)
    assert all(torch.equal(algorithm.average.tensors[name], value) for name, value in before.items())


def test_evaluation_prediction_and_export_use_the_average(make_env: Callable, tmp_path: Path) -> None:
    """The raw weights are set far off: whatever depends on them would show it."""
    algorithm = small(make_env, ema_decay=0.99, images=8)
    algorithm.learn(0)
    assert algorithm.last_evaluation is not None
    first = algorithm.last_evaluation.rewards
    observation, _ = make_env(steps=4).reset(seed=0)
    predicted, _ = algorithm.predict(observation, deterministic=True)
    with torch.no_grad():
        algorithm.policy.denoiser.means.fill_(5.0)
    algorithm.iteration = 1
    algorithm.learn(0)
    assert torch.equal(algorithm.last_evaluation.rewards, first)
    assert (algorithm.predict(observation, deterministic=True)[0] == predicted).all()
    assert (algorithm.policy.predict(observation, deterministic=True)[0] != predicted).any()
    algorithm.export(tmp_path)
    exported = load_file(tmp_path / "exact_model.safetensors")
    assert torch.equal(exported["means"], algorithm.average.tensors["means"])
    assert algorithm.policy.denoiser.means.eq(5.0).all()


def test_rollouts_use_the_raw_weights(make_env: Callable) -> None:
    """The ratio before an iteration's first update stays exactly 1, which it would not with other weights sampling."""
    algorithm = small(make_env, ema_decay=0.9, updates_per_iteration=1)
    largest = []
    algorithm._log = lambda metrics: largest.append(metrics["train/log_ratio_abs_max"])
    algorithm.learn(3 * 16 * 4)
    assert largest == [0.0, 0.0, 0.0]
    assert not torch.equal(algorithm.average.tensors["means"], algorithm.policy.denoiser.means)


def test_with_lora_only_adapters_are_averaged(tiny_sd: str) -> None:
    env = gymnasium.make("DiffusionDenoise-v0", model=tiny_sd, num_inference_steps=2)
    algorithm = DDPO(env, images_per_iteration=4, num_envs=4, ema_decay=0.9)
    assert algorithm.average is not None
    assert all("lora_" in name for name in algorithm.average.tensors)
    assert len(algorithm.average.tensors) == len(algorithm.policy.trainable_parameters()) > 0


def test_resumed_to_the_bit_and_begun_again_where_a_checkpoint_has_none(
    make_env: Callable, digest: Callable, tmp_path: Path
) -> None:
    whole = small(make_env, ema_decay=0.9).learn(4 * 16 * 4)
    small(make_env, ema_decay=0.9).learn(2 * 16 * 4).save(tmp_path / "half")
    resumed = DDPO.load(tmp_path / "half", make_env(steps=4)).learn(2 * 16 * 4, reset_num_timesteps=False)
    assert "average" in resumed.get_parameters()
    assert digest(resumed) == digest(whole)
    without = DDPO.load(tmp_path / "half", make_env(steps=4), ema_decay=0.0)
    assert "average" not in without.get_parameters()
    without.save(tmp_path / "without")
    again = DDPO.load(tmp_path / "without", make_env(steps=4), ema_decay=0.5)
    assert torch.equal(again.average.tensors["means"], again.policy.denoiser.means)
    assert again.average.tensors["means"].data_ptr() != again.policy.denoiser.means.data_ptr()


@pytest.mark.parametrize(
    ("change", "reason"), [("nan", "NaN or infinity"), ("shape", "another shape"), ("lacks", "lacks")]
)
def test_a_damaged_average_is_refused_and_changes_nothing(
    make_env: Callable, digest: Callable, tmp_path: Path, change: str, reason: str
) -> None:
    algorithm = small(make_env, ema_decay=0.9)
    algorithm.save(tmp_path / "run")
    checkpoint = read_checkpoint(tmp_path / "run")
    tensors = dict(checkpoint.tensors)
    if change == "nan":
        tensors["average/means"] = tensors["average/means"] * float("nan")
    elif change == "shape":
        tensors["average/means"] = torch.zeros(3, 3)
    else:
        del tensors["average/means"]
    tensors["policy/means"] = tensors["policy/means"] + 1
    state = {name: value for name, value in json.loads(json.dumps(checkpoint.state)).items() if name != "format"}
    write_checkpoint(tmp_path / "damaged.zip", state, tensors)
    before = digest(algorithm)
    with pytest.raises(ValueError, match=reason):
        algorithm.set_parameters(tmp_path / "damaged.zip")
    assert digest(algorithm) == before


def test_an_algorithm_that_requires_it_says_so_before_it_starts(make_env: Callable) -> None:
    class Needing(DDPO):
        @classmethod
        def requires(cls, config: Any) -> Requirements:
            return replace(super().requires(config), average=True)

    with pytest.raises(ValueError, match="Needing needs the moving average of the weights, but ema_decay is 0"):
        small(make_env, Needing)
    assert small(make_env, Needing, ema_decay=0.9).average is not None


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_impossible_decays_are_refused(make_env: Callable, decay: float) -> None:
    with pytest.raises(ValueError, match="ema_decay must"):
        small(make_env, ema_decay=decay)
