"""Every callback that Stable-Baselines3 ships, what callbacks find in ``locals``, and what they cost who has none."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common import callbacks as shipped
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

import diffusion_gym
from algorithms import DDPO, RWR
from algorithms.sb3 import callback_locals
from diffusion_gym.rewards import Linear

IMAGES, ENVS, STEPS = 8, 4, 3
ITERATION = IMAGES * STEPS
SMALL: dict[str, Any] = {"trainable": "full", "images_per_iteration": IMAGES, "num_envs": ENVS, "chunk_size": ENVS}
OWN: dict[type, dict[str, Any]] = {
    DDPO: {"updates_per_iteration": 1},
    RWR: {"images_per_prompt": 4, "updates_per_iteration": 1, "batch_size": 4},
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type"),
    pytest.mark.filterwarnings("ignore:rich is experimental"),
]


def env(**changes: Any) -> gymnasium.Env:
    arguments = {"model": "exact-gaussian", "reward": "exact-linear", "num_inference_steps": STEPS, **changes}
    return gymnasium.make(diffusion_gym.ENV_ID, **arguments)


@pytest.fixture(params=[DDPO, RWR])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``make(reward=..., **config)``: each algorithm, in two rounds of four environments."""
    return lambda reward="exact-linear", **changes: request.param(
        env(reward=reward), **{**SMALL, **OWN[request.param], **changes}
    )


def evaluating(folder: Path, **changes: Any) -> EvalCallback:
    return EvalCallback(Monitor(env()), eval_freq=3, n_eval_episodes=2, verbose=0, log_path=str(folder), **changes)


class Count(BaseCallback):
    """How often it was called."""

    def _on_step(self) -> bool:
        return True


def two_iterations(model: Any, callback: Any) -> None:
    assert (model.iteration, callback.n_calls) == (2, 12)


#: The callback -> how it is built in a folder, and what training of two iterations with it must have done.
SHIPPED: dict[str, tuple[Callable[[Path], Any], Callable[[Any, Any, Path], None]]] = {
    "CallbackList": (
        lambda folder: CallbackList([Count(), Count()]),
        lambda model, callback, folder: [two_iterations(model, one) for one in callback.callbacks],
    ),
    "CheckpointCallback": (
        lambda folder: shipped.CheckpointCallback(
            4, str(folder), save_replay_buffer=True, save_vecnormalize=True, verbose=2
        ),
        lambda model, callback, folder: [
            type(model).load(folder / f"rl_model_{steps}_steps.zip") for steps in (16, 32, 48)
        ],
    ),
    "ConvertCallback": (lambda folder: shipped.ConvertCallback(lambda locals_, globals_: True),
                        lambda model, callback, folder: two_iterations(model, callback)),
    "EvalCallback": (
        lambda folder: evaluating(folder, best_model_save_path=str(folder)),
        lambda model, callback, folder: [
            type(model).load(folder / "best_model.zip"), two_iterations(model, callback),
            np.testing.assert_array_equal(np.load(folder / "evaluations.npz")["timesteps"], [12, 24, 36, 48]),
        ],
    ),
    "EveryNTimesteps": (lambda folder: shipped.EveryNTimesteps(8, Count()),
                        lambda model, callback, folder: two_iterations_and(callback.callback.n_calls == 6)),
    "LogEveryNTimesteps": (lambda folder: shipped.LogEveryNTimesteps(16), lambda model, callback, folder: logs(folder)),
    "ProgressBarCallback": (lambda folder: shipped.ProgressBarCallback(),
                            lambda model, callback, folder: two_iterations_and(callback.pbar.n == 2 * ITERATION)),
    "StopTrainingOnMaxEpisodes": (lambda folder: shipped.StopTrainingOnMaxEpisodes(3, verbose=1),
                                  lambda model, callback, folder: two_iterations_and(
                                      (model.iteration, callback.n_episodes) == (1, 3 * ENVS))),
    "StopTrainingOnNoModelImprovement": (
        lambda folder: evaluating(
            folder, callback_after_eval=shipped.StopTrainingOnNoModelImprovement(1, min_evals=1, verbose=1)
        ),
        lambda model, callback, folder: two_iterations_and(callback.callback.n_calls > 0),
    ),
    "StopTrainingOnRewardThreshold": (
        lambda folder: evaluating(folder, callback_on_new_best=shipped.StopTrainingOnRewardThreshold(-99, verbose=1)),
        lambda model, callback, folder: two_iterations_and(model.iteration == 0),
    ),
}  # fmt: skip


def two_iterations_and(fact: bool) -> None:
    assert fact


def logs(folder: Path) -> None:
    """Five lines: after 16, 32 and 48 steps, and one for each iteration."""
    rows = (folder / "log" / "progress.csv").read_text().splitlines()
    assert len(rows) == 1 + 5


def test_every_callback_that_is_shipped_is_tried() -> None:
    """A new one fails here until it was looked at; abstract ones are tried by their subclasses."""
    kinds = {name for name, kind in vars(shipped).items() if inspect.isclass(kind) and issubclass(kind, BaseCallback)}
    assert kinds - {"BaseCallback", "EventCallback"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped(make: Callable, name: str, tmp_path: Path) -> None:
    build, check = SHIPPED[name]
    model, callback = make(), build(tmp_path)
    model.set_logger(configure(str(tmp_path / "log"), ["csv"]))
    model.learn(2 * ITERATION, callback)
    check(model, callback, tmp_path)


class Reader(BaseCallback):
    """Keeps copies of what Stable-Baselines3's documentation reads in ``self.locals``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        names = ("dones", "rewards", "infos", "new_obs", "actions")
        assert all(name in self.locals for name in names)
        self.seen.append({name: self.locals[name] for name in names})
        assert self.locals["rewards"] is self.locals.get("rewards")  # made once
        assert self.locals["self"] is self.model
        return True


def first(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    return Linear()(images, prompts)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("how", ["alone", "in a list", "in a list of lists", "of an event"])
def test_locals_hold_the_step_in_numpy(make: Callable, how: str, beside: bool) -> None:
    """Kinds and shapes as a VecEnv gives them; the rewards are the rollout's, also where a thread scores them."""
    reader = Reader()
    callback = {
        "alone": reader,
        "in a list": [Count(), reader],
        "in a list of lists": CallbackList([CallbackList([reader])]),
        "of an event": shipped.EveryNTimesteps(1, reader),
    }[how]
    model = make(first, rewards_beside_sampling=beside)
    rollouts = []
    update = model.update
    model.update = lambda rollout: rollouts.append(rollout) or update(rollout)
    model.learn(ITERATION, callback)
    (rollout,) = rollouts
    assert len(reader.seen) == 2 * STEPS
    for k, step in enumerate(reader.seen):
        last, mine = k % STEPS == STEPS - 1, slice(ENVS * (k // STEPS), ENVS * (k // STEPS) + ENVS)
        assert (step["dones"].dtype, step["dones"].tolist()) == (np.dtype(bool), [last] * ENVS)
        rewards = rollout.rewards[mine].numpy() if last else np.zeros(ENVS)
        assert step["rewards"].dtype == np.float32
        np.testing.assert_array_equal(step["rewards"], rewards)
        assert step["actions"].shape == (ENVS, 2, 1, 1)
        np.testing.assert_array_equal(step["actions"], step["new_obs"]["latent"])
        assert set(step["new_obs"]) == set(model.observation_space.spaces)
        assert [info["step_index"] for info in step["infos"]] == [k % STEPS + 1] * ENVS
        assert [info["prompt"] for info in step["infos"]] == rollout.prompts[mine]
        assert all(("image" in info) == ("episode" in info) == last for info in step["infos"])
        if last:
            np.testing.assert_array_equal(step["actions"], rollout.final_latents[mine].numpy())
            for row, info in enumerate(step["infos"]):
                np.testing.assert_array_equal(info["image"], rollout.images[mine][row].permute(1, 2, 0).numpy())
                np.testing.assert_array_equal(info["terminal_observation"]["latent"], step["actions"][row])
                assert info["episode"] == {"r": rewards[row], "l": STEPS}
                assert info["TimeLimit.truncated"] is False
    assert [episode["r"] for episode in model.ep_info_buffer] == rollout.rewards.tolist()


def test_a_step_is_copied_from_the_device_when_it_is_read(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the device while callbacks read no more than ``dones``; what is unread is not kept."""
    copied: list[tuple[int, ...]] = []
    array = callback_locals._array
    monkeypatch.setattr(callback_locals, "_array", lambda tensor: copied.append(tensor.shape) or array(tensor))
    make().learn(ITERATION)
    model, stop = make(), shipped.StopTrainingOnMaxEpisodes(100)
    model.learn(ITERATION, [stop, Count()])
    assert copied == []
    assert stop.n_episodes == IMAGES
    assert not any(isinstance(value, callback_locals.Step) for value in stop.locals.data.values())
    assert model._callback_locals.data == {}
    make().learn(ITERATION, lambda locals_, globals_: locals_["actions"] is locals_["actions"])
    assert len(copied) == 2 * STEPS


def test_copies_of_locals_hold_values(make: Callable) -> None:
    """``dict(locals)``, ``**locals``, and the locals of a callback that made its own."""

    class Apart(Count):
        def on_training_start(self, locals_: Any, globals_: Any) -> None:
            super().on_training_start(dict(locals_), globals_)

        def _on_step(self) -> bool:
            return isinstance(self.locals["rewards"], np.ndarray)

    def look(locals_: Any, globals_: Any) -> bool:
        return all(isinstance(copy["rewards"], np.ndarray) for copy in (dict(locals_), {**locals_}, locals_.copy()))

    model = make()
    model.learn(ITERATION, [Apart(), shipped.ConvertCallback(look)])
    assert model.iteration == 1


def test_the_reward_that_fails_beside_sampling_is_named_in_a_callback(make: Callable) -> None:
    def broken(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        raise KeyError("weights")

    with pytest.raises(diffusion_gym.RewardError, match="reward 'broken' failed"):
        make(broken, rewards_beside_sampling=True).learn(ITERATION, Reader())


def test_dump_logs_writes_a_line_now(make: Callable, tmp_path: Path) -> None:
    """With what was recorded by hand, before there is any reward and after."""
    model = make()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.logger.record("mine", 1.5)
    model.dump_logs()
    model.learn(ITERATION)
    model.dump_logs()
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=False)) for line in lines[1:]]
    assert [row.get("mine") for row in rows] == ["1.5", "", ""]
    assert float(rows[-1]["rollout/ep_rew_mean"]) == pytest.approx(model.last_rollout_reward)
