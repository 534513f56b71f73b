"""The learning rate: a number or Stable-Baselines3's schedule, given at the start, by a callback, or on load."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

import diffusion_gym
from algorithms import DDPO, RWR, DDPOConfig
from algorithms.sb3_ppo import SB3PPO

STEPS, IMAGES = 3, 4
ITERATION = STEPS * IMAGES
SMALL: dict[str, Any] = {"trainable": "full", "images_per_iteration": IMAGES, "num_envs": IMAGES, "chunk_size": IMAGES}
OWN: dict[type, dict[str, Any]] = {
    DDPO: {"updates_per_iteration": 2},
    RWR: {"images_per_prompt": IMAGES, "updates_per_iteration": 2, "batch_size": 4},
    SB3PPO: {"n_epochs": 1, "batch_size": 12},
}


def env() -> gymnasium.Env:
    return gymnasium.make(
        diffusion_gym.ENV_ID, model="exact-gaussian", reward="exact-linear", num_inference_steps=STEPS
    )


def linear(progress: float) -> float:
    """From .04 down to 0."""
    return 0.04 * progress


used: list[float] = []


@pytest.fixture(params=[DDPO, RWR, SB3PPO])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``make(learning_rate=...)``: each algorithm; ``used`` then holds the rate of every gradient step."""
    step = torch.optim.AdamW.step

    def build(**changes: Any) -> Any:
        algorithm = request.param(env(), **{**SMALL, **OWN[request.param], **changes})
        algorithm.set_logger(Logger(None, [Lines()]))
        return algorithm

    def recorded(self: torch.optim.AdamW, *arguments: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    used.clear()
    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    return build


class Lines(KVWriter):
    """Keeps the logged learning rates of iterations."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        if "train/loss" in key_values:
            self.rates.append(key_values["train/learning_rate"])


def logged(algorithm: Any) -> list[float]:
    return algorithm.logger.output_formats[0].rates


def each(rates: list[float]) -> list[float]:
    """Without repetitions in a row: every iteration has several gradient steps."""
    return [rate for k, rate in enumerate(rates) if k == 0 or rate != rates[k - 1]]


def test_a_schedule_is_followed_as_stable_baselines3_does(make: Callable) -> None:
    """After an iteration's images the remaining progress is 3/4, 1/2, 1/4, 0 of four; each update has its rate."""
    algorithm = make(learning_rate=linear)
    algorithm.learn(4 * ITERATION)
    assert each(used) == pytest.approx([0.03, 0.02, 0.01, 0.0])
    assert logged(algorithm) == pytest.approx([0.03, 0.02, 0.01, 0.0])


def test_more_steps_than_the_total_are_at_its_end(make: Callable) -> None:
    """Iterations are whole: 13 steps take two of 12, and the progress does not fall below 0."""
    algorithm = make(learning_rate=lambda progress: 0.01 + progress)
    algorithm.learn(ITERATION + 1)
    assert logged(algorithm) == pytest.approx([1.01 - 12 / 13, 0.01])


@pytest.mark.parametrize("schedule", [linear, LinearSchedule(0.04, 0.0, 1.0), FloatSchedule(linear)])
def test_a_resumed_schedule_equals_never_stopping(
    make: Callable, schedule: Any, digest: Callable, tmp_path: Path
) -> None:
    """The rest of the same total: the schedule's progress is that of all steps."""
    whole, stopped = make(learning_rate=schedule), make(learning_rate=schedule)
    whole.learn(4 * ITERATION)
    stopped.learn(4 * ITERATION, lambda locals_, globals_: stopped.iteration < 2)
    stopped.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"schedule of the learning rate.*give it again, load"):
        type(stopped).load(tmp_path / "run")
    resumed = type(stopped).load(tmp_path / "run", learning_rate=schedule)
    resumed.learn(2 * ITERATION, reset_num_timesteps=False)
    assert digest(resumed) == digest(whole)
    assert digest(resumed) != digest(stopped)


def test_a_number_in_a_schedules_place(make: Callable, tmp_path: Path) -> None:
    scheduled = make(learning_rate=linear)
    scheduled.save(tmp_path / "run")
    loaded = type(scheduled).load(tmp_path / "run", learning_rate=1e-3)
    loaded.learn(ITERATION)
    assert each(used) == [1e-3]
    assert loaded.config.learning_rate == 1e-3


class Setter(BaseCallback):
    """Does something to the algorithm when the second iteration's images are there."""

    def __init__(self, act: Callable[[Any], None]) -> None:
        super().__init__()
        self.act = act

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.model.iteration == 1:
            self.act(self.model)


def set_rate(value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model, "learning_rate", value)


def set_schedule(value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model, "lr_schedule", value)


def both(model: Any) -> None:
    """What a user of Stable-Baselines3 writes to be sure."""
    model.learning_rate = 0.002
    model._setup_lr_schedule()
    model.lr_schedule = lambda progress: 0.002


@pytest.mark.parametrize(
    "act",
    [
        set_rate(0.002),
        set_rate(np.float64(0.002)),
        set_schedule(FloatSchedule(0.002)),
        set_schedule(ConstantSchedule(0.002)),
        set_schedule(lambda progress: 0.002),
        lambda model: setattr(model, "config", replace(model.config, learning_rate=0.002)),
        both,
    ],
)
def test_a_callbacks_rate_is_used_and_logged(make: Callable, act: Callable) -> None:
    algorithm = make(learning_rate=0.01)
    algorithm.learn(3 * ITERATION, Setter(act))
    assert each(used) == [0.01, 0.002]
    assert logged(algorithm) == [0.01, 0.002, 0.002]


def test_a_callbacks_rate_is_saved(make: Callable, digest: Callable, tmp_path: Path) -> None:
    """A number is the configuration's from then on; the resumed run equals the one that never stopped."""
    whole, stopped = make(learning_rate=0.01), make(learning_rate=0.01)
    whole.learn(3 * ITERATION, Setter(set_rate(0.002)))
    stopped.learn(2 * ITERATION, Setter(set_rate(0.002))).save(tmp_path / "run")
    resumed = type(stopped).load(tmp_path / "run")
    assert resumed.learning_rate == resumed.config.learning_rate == 0.002
    assert digest(resumed.learn(ITERATION, reset_num_timesteps=False)) == digest(whole)
    json.dumps(resumed._state())


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-4},
        {"custom_objects": {"learning_rate": 1e-4}},
        {"custom_objects": {"lr_schedule": lambda progress: 1e-4}},
        {"custom_objects": {"learning_rate": 1e-4, "lr_schedule": lambda progress: 0.0}},
        {"custom_objects": {"learning_rate": 1.0}, "learning_rate": 1e-4},
    ],
)
def test_another_rate_on_load(make: Callable, changes: dict[str, Any], tmp_path: Path) -> None:
    trained = make(learning_rate=0.01).learn(ITERATION)
    trained.save(tmp_path / "run")
    used.clear()
    type(trained).load(tmp_path / "run", **changes).learn(ITERATION)
    assert each(used) == [1e-4]


def test_the_optimizers_own_rate_is_refused_where_nobody_would_see_it(tmp_path: Path) -> None:
    """By a callback, before learning, and by torch's schedulers: neither the log nor a checkpoint would have it."""
    words = r"learning rate was changed to 1e-05 in its param_groups.*model\.learning_rate = 1e-05"

    def write(model: Any) -> None:
        model.optimizer.param_groups[0]["lr"] = 1e-5

    algorithm = DDPO(env(), **SMALL, learning_rate=0.01)
    with pytest.raises(ValueError, match=words):
        algorithm.learn(3 * ITERATION, Setter(write))
    algorithm = DDPO(env(), **SMALL, learning_rate=0.01)
    torch.optim.lr_scheduler.LambdaLR(algorithm.optimizer, lambda epoch: 1e-3)
    with pytest.raises(ValueError, match=words):
        algorithm.learn(ITERATION)
    algorithm.learning_rate = 1e-5  # as the words say
    algorithm.learn(ITERATION)
    assert algorithm.optimizer.param_groups[0]["lr"] == 1e-5


def test_a_group_with_a_rate_of_its_own_keeps_it() -> None:
    """As an algorithm of one's own may have for a critic."""
    algorithm = DDPO(env(), **SMALL, learning_rate=linear)
    first, *others = algorithm.policy.trainable_parameters().values()
    algorithm.optimizer = torch.optim.AdamW([{"params": [first], "lr": 0.04}, {"params": others, "lr": 0.5}])
    algorithm._group_rates = ()
    algorithm.learn(2 * ITERATION)
    assert [group["lr"] for group in algorithm.optimizer.param_groups] == [0.0, 0.5]


MISTAKES: dict[str, tuple[Callable[[DDPO], Any], type[Exception], str]] = {
    "text": (set_rate("fast"), TypeError, "must be a number, or a function of the remaining progress.*got str 'fast'"),
    "nothing": (set_rate(None), TypeError, "got NoneType None"),
    "a truth value": (set_rate(True), TypeError, "got bool True"),
    "0": (set_rate(0.0), ValueError, "learning_rate must be a positive, finite number, got 0.0"),
    "NaN": (set_rate(float("nan")), ValueError, "learning_rate must be a finite number, got nan"),
    "a schedule below 0": (set_rate(lambda progress: progress - 0.5), ValueError, "gave -0.5 at remaining progress 0"),
    "a schedule of NaN": (set_schedule(lambda progress: float("nan")), ValueError, "gave nan at remaining progress 1"),
    "a schedule of text": (set_schedule(lambda progress: "fast"), TypeError, "into a number; at 1 it failed"),
    "a schedule of nothing": (set_rate(lambda: 0.1), TypeError, "at 1 it failed: .*takes 0 positional arguments"),
    "in a configuration": (
        lambda _: DDPOConfig(learning_rate=linear), ValueError,  # type: ignore[arg-type]
        r"give a schedule to the algorithm: DDPO\(env, config, learning_rate=schedule\)",
    ),
    "a custom object of another kind": (
        lambda model: DDPO.load(saved(model), custom_objects={"replay_buffer_class": None}), TypeError,
        "DDPOConfig has no field 'replay_buffer_class'",
    ),
    "a schedule of another field": (
        lambda model: DDPO.load(saved(model), custom_objects={"clip_range": linear}), ValueError,
        "clip_range must be a finite number",
    ),
}  # fmt: skip


def saved(model: DDPO) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file)
    return file


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    act, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=words):
        act(DDPO(env(), **SMALL))
