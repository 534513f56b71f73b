"""Stable-Baselines3's contract: its callbacks, logger, evaluation and prediction work as on its own algorithms."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure

from algorithms import DDPO, RWR, DiffusionAlgorithm
from algorithms.policy import Rows

IMAGES, STEPS = 8, 3
ITERATION = IMAGES * STEPS  # 24 denoising steps

pytestmark = pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped with a ``Monitor``")


@pytest.fixture(params=[DDPO, RWR])
def make(request: pytest.FixtureRequest, make_env: Callable) -> Callable[..., DiffusionAlgorithm[Any]]:
    """``make(reward=..., model=..., **config)``: each algorithm class, quick, in rounds of 4 environments."""

    def build(reward: Any = "exact-quadratic", model: str = "exact-gaussian", **kwargs: Any) -> DiffusionAlgorithm[Any]:
        config = {"trainable": "full", "images_per_iteration": IMAGES, "num_envs": 4, "learning_rate": 0.01, **kwargs}
        if request.param is RWR:  # which compares images of one prompt, 16 where nothing else is said
            config = {"images_per_prompt": 4, **config}
        return request.param(make_env(model, steps=STEPS, reward=reward), **config)

    return build


class Recorder(BaseCallback):
    """Notes every call; stops at one."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.events: list[str] = []
        self.dones: list[list[bool]] = []
        self.timesteps: list[int] = []
        self.stop_at = stop_at

    def _on_training_start(self) -> None:
        self.events.append("training start")
        assert self.training_env is self.model.get_env()

    def _on_rollout_start(self) -> None:
        self.events.append("rollout start")

    def _on_step(self) -> bool:
        self.events.append("step")
        self.dones.append(np.asarray(self.locals["dones"]).tolist())
        self.timesteps.append(self.num_timesteps)
        return self.n_calls != self.stop_at

    def _on_rollout_end(self) -> None:
        self.events.append("rollout end")

    def _on_training_end(self) -> None:
        self.events.append("training end")


def test_callbacks_are_called_in_order(make: Callable) -> None:
    """One iteration: two rounds of 4 environments, T = 3 each; dones at each round's end, where episodes finish."""
    recorder = Recorder()
    algorithm = make()
    assert algorithm.learn(1, CallbackList([recorder])) is algorithm
    assert recorder.events == ["training start", "rollout start", *["step"] * 6, "rollout end", "training end"]
    assert recorder.dones == 2 * [[False] * 4, [False] * 4, [True] * 4]
    assert recorder.timesteps == [4, 8, 12, 16, 20, 24]


def test_a_list_of_callbacks_and_a_function_are_accepted(make: Callable) -> None:
    seen: list[int] = []
    make().learn(1, [Recorder(), Recorder()])
    make().learn(1, lambda locals_, globals_: seen.append(len(locals_["dones"])) or True)
    assert seen == [4] * 6


def test_a_callback_that_returns_false_stops(make: Callable, digest: Callable) -> None:
    """In the second iteration's rollout: only the first iteration happened, and training ends in order."""
    stopped, whole, recorder = make(), make(), Recorder(stop_at=6 + 2)
    stopped.learn(10 * ITERATION, recorder)
    whole.learn(ITERATION)
    assert recorder.events[-2:] == ["step", "training end"]
    assert (stopped.iteration, stopped.num_timesteps) == (1, ITERATION)
    assert digest(stopped) == digest(whole)


def test_total_timesteps_is_a_lower_bound(make: Callable) -> None:
    """Iterations are whole: 25 steps take two of 24."""
    assert make().learn(ITERATION).num_timesteps == ITERATION
    assert make().learn(ITERATION + 1).num_timesteps == 2 * ITERATION


def test_learning_on_continues(make: Callable, digest: Callable) -> None:
    """``reset_num_timesteps=False`` counts on; the weights are those of one call either way."""
    whole, on, again = make(), make(), make()
    whole.learn(2 * ITERATION)
    on.learn(ITERATION).learn(ITERATION, reset_num_timesteps=False)
    again.learn(ITERATION).learn(ITERATION)
    assert on.num_timesteps == 2 * ITERATION
    assert again.num_timesteps == ITERATION
    assert digest(on) == digest(again) == digest(whole)


def test_checkpoint_callback_writes_what_load_reads(make: Callable, tmp_path: Path) -> None:
    """Every 4 calls (16 steps) in two iterations: one lies in each rollout and one at the end of the second."""
    algorithm = make()
    algorithm.learn(2 * ITERATION, CheckpointCallback(save_freq=4, save_path=str(tmp_path), name_prefix="run"))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["run_16_steps.zip", "run_32_steps.zip", "run_48_steps.zip"]
    # A checkpoint is that of its iteration's start: 16 steps lie in the first, 32 and 48 in the second.
    loaded = [type(algorithm).load(tmp_path / name) for name in files]
    assert [one.num_timesteps for one in loaded] == [0, ITERATION, ITERATION]


def test_eval_callback_evaluates_and_keeps_the_best(make: Callable, make_env: Callable, tmp_path: Path) -> None:
    callback = EvalCallback(
        make_env(steps=STEPS), n_eval_episodes=3, eval_freq=3, verbose=0, deterministic=False,
        best_model_save_path=str(tmp_path), log_path=str(tmp_path),
    )  # fmt: skip
    algorithm = make()
    algorithm.learn(ITERATION, callback)
    saved = np.load(tmp_path / "evaluations.npz")
    assert saved["timesteps"].tolist() == [12, 24]
    assert saved["results"].shape == (2, 3)
    assert (saved["ep_lengths"] == STEPS).all()
    assert (saved["results"] < 0).all()  # the quadratic reward
    assert type(algorithm).load(tmp_path / "best_model").mdp.model.name == "exact-gaussian"


def test_evaluation_does_not_change_the_training(make: Callable, make_env: Callable, digest: Callable) -> None:
    """EvalCallback draws from torch's global generator in the middle of a rollout."""
    alone, watched = make(), make()
    alone.learn(ITERATION)
    watched.learn(ITERATION, EvalCallback(make_env(steps=STEPS), n_eval_episodes=1, eval_freq=2, verbose=0))
    assert digest(alone) == digest(watched)


@pytest.mark.parametrize(("threshold", "iterations"), [(-1e9, 0), (1e9, 2)])
def test_training_stops_at_a_reward_threshold(
    make: Callable, make_env: Callable, threshold: float, iterations: int
) -> None:
    """A threshold that is passed at the first evaluation, and one that never is."""
    callback = EvalCallback(
        make_env(steps=STEPS), callback_on_new_best=StopTrainingOnRewardThreshold(threshold, verbose=0),
        n_eval_episodes=1, eval_freq=2, verbose=0,
    )  # fmt: skip
    assert make().learn(2 * ITERATION, callback).iteration == iterations


def test_logger_gets_every_metric(make: Callable, tmp_path: Path) -> None:
    """The four cost axes, the rewards, and what each algorithm promises; one line an iteration."""
    algorithm = make(images=2)
    algorithm.set_logger(configure(str(tmp_path), ["csv", "json"]))
    algorithm.learn(3 * ITERATION)
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    trained = [line for line in lines if "rollout/ep_rew_mean" in line]
    assert [line["time/iterations"] for line in trained] == [1, 2, 3]
    assert [line["cost/reward_queries"] for line in trained] == [8, 16, 24]
    promised = {"cost/images", "cost/seconds", "cost/forward_equivalents", "rollout/reward_std", "train/grad_norm",
                "time/total_timesteps", "reward_by_prompt/anywhere", "train/loss"}  # fmt: skip
    own = {
        DDPO: {"train/approx_kl", "train/clip_fraction", "train/log_ratio_abs", "train/log_ratio_abs_max"},
        RWR: {"train/effective_sample_size", "train/effective_sample_share"},
    }
    assert promised | own[type(algorithm)] <= set(trained[0])
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    evaluated = [line for line in lines if "eval/reward_mean" in line]
    assert [line["time/iterations"] for line in evaluated] == [0, 1, 2, 3]  # before training, each, and at the end
    assert len({line["cost/reward_queries"] for line in evaluated}) == 4  # evaluations are not counted


def test_log_interval_and_tensorboard(make: Callable, tmp_path: Path) -> None:
    """Every second of four iterations is logged; events lie under tensorboard_log."""
    algorithm = make(tensorboard_log=str(tmp_path))
    steps: list[int] = []
    algorithm._log = lambda metrics: steps.append(algorithm.iteration)
    algorithm.learn(4 * ITERATION, log_interval=2, tb_log_name="try")
    assert steps == [2, 4]
    assert list((tmp_path / "try_1").glob("events.out.tfevents.*"))


def test_tensorboard_has_the_scalars(make: Callable, tmp_path: Path) -> None:
    """Of two calls of learn that count on, in one folder each, at the steps they were logged at."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    algorithm = make(tensorboard_log=str(tmp_path))
    algorithm.learn(2 * ITERATION, tb_log_name="try")
    algorithm.learn(ITERATION, tb_log_name="try", reset_num_timesteps=False)
    steps = []
    for folder in sorted(tmp_path.iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        assert {"rollout/ep_rew_mean", "train/loss", "cost/images"} <= set(events.Tags()["scalars"])
        steps += [event.step for event in events.Scalars("rollout/ep_rew_mean")]
    assert steps == [ITERATION, 2 * ITERATION, 3 * ITERATION]


def test_progress_bar_counts_to_the_end(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_baselines3.common import callbacks

    bars: list[Any] = []

    class Bar(callbacks.tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(callbacks, "tqdm", Bar)
    make().learn(2 * ITERATION, progress_bar=True)
    assert [(bar.n, bar.total) for bar in bars] == [(2 * ITERATION, 2 * ITERATION)]


@pytest.mark.parametrize("with_env", [True, False])
def test_a_loaded_algorithm_counts_on(make: Callable, tmp_path: Path, digest: Callable, with_env: bool) -> None:
    """Steps, iterations, updates and costs go on where they were; without an environment the saved one is rebuilt."""
    whole, saved = make(), make()
    whole.learn(3 * ITERATION)
    saved.learn(ITERATION).save(tmp_path / "run")
    loaded = type(saved).load(tmp_path / "run", saved.get_env() if with_env else None)
    recorder = Recorder()
    loaded.learn(2 * ITERATION, recorder, reset_num_timesteps=False)
    assert recorder.timesteps[0] == ITERATION + 4
    assert recorder.timesteps[-1] == loaded.num_timesteps == 3 * ITERATION
    assert (loaded.iteration, loaded._n_updates) == (3, whole._n_updates)
    assert loaded.costs["reward_queries"] == 3 * IMAGES
    assert digest(loaded) == digest(whole)


def test_predict_single_and_batched(make: Callable) -> None:
    """Shapes; deterministic is the mean, twice the same; otherwise noise of torch's global generator."""
    algorithm = make()
    batch = algorithm.get_env().reset()
    one = {name: value[0] for name, value in batch.items()}
    action, state = algorithm.predict(one, deterministic=True)
    assert state is None
    assert action.shape == (2, 1, 1)
    assert action.dtype == np.float32
    actions, _ = algorithm.predict(batch, deterministic=True)
    assert actions.shape == (4, 2, 1, 1)
    np.testing.assert_allclose(actions[0], action, rtol=0, atol=1e-6)
    torch.manual_seed(0)
    first, second = algorithm.predict(batch)[0], algorithm.predict(batch)[0]
    torch.manual_seed(0)
    assert np.array_equal(algorithm.predict(batch)[0], first)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("model", ["exact-gaussian", "exact-flow-gaussian"])
def test_predict_follows_each_rows_time(make: Callable, model: str) -> None:
    """Rows at different steps, as an environment with automatic resets gives them; the last has ended and stays."""
    algorithm = make(model=model)
    batch = algorithm.get_env().reset()
    grid = algorithm.policy.transition.schedule.timesteps.tolist()
    batch["timestep"] = np.array([[grid[0]], [grid[2]], [grid[1]], [0]], dtype=np.float32)
    together, _ = algorithm.predict(batch, deterministic=True)
    for row in range(4):
        alone, _ = algorithm.predict({name: value[row] for name, value in batch.items()}, deterministic=True)
        np.testing.assert_allclose(together[row], alone, rtol=0, atol=1e-6)
    assert np.array_equal(together[3], batch["latent"][3])


@pytest.mark.parametrize("envs", [1, 3, 6])
def test_predict_forwards_no_more_rows_than_it_is_given(make: Callable, envs: int) -> None:
    """Chunks of at most 4, the last not padded; the actions are those of padded chunks to float32 rounding."""
    policy = make(chunk_size=4).policy
    batch = make(num_envs=envs, images_per_iteration=12).get_env().reset()
    rows: list[int] = []
    policy.denoiser.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    actions, _ = policy.predict(batch, deterministic=True)
    assert rows == {1: [1], 3: [3], 6: [4, 2]}[envs]
    rollout = Rows(
        torch.tensor(batch["latent"]),
        torch.zeros(envs, dtype=torch.long),
        {"prompt_embedding": torch.tensor(batch["prompt_embedding"])},
    )
    np.testing.assert_allclose(actions, policy.sample(rollout, None)[0].numpy(), rtol=0, atol=1e-6)


def test_predict_refuses_what_is_not_its_observation(make: Callable) -> None:
    algorithm = make()
    batch = algorithm.get_env().reset()
    with pytest.raises(ValueError, match=r"lacks \['prompt_embedding'\]"):
        algorithm.predict({name: value for name, value in batch.items() if name != "prompt_embedding"})
    batch["timestep"] = batch["timestep"] + 1
    with pytest.raises(ValueError, match="not on the grid"):
        algorithm.predict(batch)


def test_evaluate_policy_on_both_kinds_of_environment(make: Callable, make_env: Callable) -> None:
    """Mean reward and lengths of whole episodes, on model.get_env() and on a single environment."""
    algorithm = make()
    for env in (algorithm.get_env(), make_env(steps=STEPS)):
        rewards, lengths = evaluate_policy(
            algorithm, env, n_eval_episodes=6, deterministic=False, return_episode_rewards=True, warn=False
        )  # fmt: skip
        assert len(rewards) == 6
        assert lengths == [STEPS] * 6
        assert all(reward < 0 for reward in rewards)


def test_evaluate_policy_sees_training(make: Callable) -> None:
    """The evaluated policy is the trained one: with means moved to the target the reward is near its best."""
    algorithm = make()
    with torch.no_grad():
        algorithm.policy.denoiser.means.fill_(1.0)
        algorithm.policy.denoiser.log_stds.fill_(-4.0)
    mean, _ = evaluate_policy(algorithm, algorithm.get_env(), n_eval_episodes=8, deterministic=True, warn=False)
    assert -0.02 < mean <= 0  # untrained: about -2.7


def test_seeded_vec_env_repeats(make: Callable) -> None:
    """``VecEnv.seed`` as Stable-Baselines3 has it: environment i gets seed + i, once."""
    env = make().get_env()
    env.seed(7)
    first = env.reset()
    env.seed(7)
    second, third = env.reset(), env.reset()
    assert np.array_equal(first["latent"], second["latent"])
    assert not np.array_equal(second["latent"], third["latent"])


def test_vec_env_restarts_and_keeps_the_last_observation(make: Callable) -> None:
    env = make().get_env()
    env.reset()
    action = np.full((4, 2, 1, 1), 0.5, dtype=np.float32)
    for step in range(STEPS):
        observation, rewards, dones, infos = env.step(action)
        assert dones.tolist() == [step == STEPS - 1] * 4
    np.testing.assert_allclose(rewards, -0.5, atol=1e-3)  # -|(0.5, 0.5) - (1, 1)|^2
    assert rewards.dtype == np.float32
    assert np.array_equal(infos[0]["terminal_observation"]["latent"], action[0])
    assert infos[0]["TimeLimit.truncated"] is False
    assert infos[0]["image"].shape == (8, 16, 3)
    assert not np.array_equal(observation["latent"], action)


def test_get_and_set_parameters(make: Callable, digest: Callable) -> None:
    """They round-trip, are copies, and check names and shapes."""
    trained, fresh = make().learn(ITERATION), make()
    parameters = trained.get_parameters()
    fresh.set_parameters(parameters)
    assert digest(fresh) == digest(trained)
    next(iter(parameters["policy"].values())).zero_()
    assert digest(fresh) == digest(trained)
    with pytest.raises(ValueError, match="lacks"):
        fresh.set_parameters({"policy": {}})
    with pytest.raises(ValueError, match="unknown"):
        fresh.set_parameters({"policy": {**fresh.get_parameters()["policy"], "bias": torch.zeros(1)}})
    with pytest.raises(ValueError, match="another shape"):
        fresh.set_parameters({"policy": {**fresh.get_parameters()["policy"], "means": torch.zeros(1)}})


def test_setting_untrained_parameters_forgets_the_moments(make: Callable, digest: Callable) -> None:
    """What get_parameters gave before training, set after it, is the state before training."""
    algorithm = make()
    before = algorithm.get_parameters()
    untrained = digest(algorithm)
    algorithm.learn(ITERATION)
    algorithm.set_parameters(before)
    assert digest(algorithm) == untrained


def test_set_parameters_from_a_file(make: Callable, tmp_path: Path, digest: Callable) -> None:
    trained, fresh = make().learn(ITERATION), make()
    trained.save(tmp_path / "run")
    fresh.set_parameters(str(tmp_path / "run"))
    assert digest(fresh) == digest(trained)


def sevens(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward that is always 7."""
    return torch.full((len(prompts),), 7.0)


def test_set_env_trains_on_the_new_environment(make: Callable, make_env: Callable) -> None:
    """Stable-Baselines3's way to another reward, in the middle of a run."""
    algorithm = make().learn(ITERATION)
    rewards: list[float] = []
    algorithm._log = lambda metrics: rewards.append(metrics["rollout/ep_rew_mean"])
    algorithm.set_env(make_env(steps=STEPS, reward=sevens, prompts=["centre"]))
    algorithm.learn(ITERATION, reset_num_timesteps=False)
    assert rewards == [7.0]
    assert algorithm.get_env().reset()["latent"].shape == (4, 2, 1, 1)


@pytest.mark.parametrize("other", [{"model": "exact-mixture"}, {"steps": STEPS + 1}])
def test_set_env_refuses_another_model_or_grid(make: Callable, make_env: Callable, other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the policy was built for 3 steps of 'exact-gaussian'"):
        make().set_env(make_env(**{"steps": STEPS, **other}))
