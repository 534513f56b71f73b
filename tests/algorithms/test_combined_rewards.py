"""Combined rewards, held-out prompts and prompt weights in training; rewards beside sampling change nothing."""

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from algorithms import DDPO, RWR, EvaluationConfig
from algorithms.rollouts import Rollout
from algorithms.sb3.callback_locals import Step
from diffusion_gym.rewards import Linear, Quadratic, RewardError, RewardTerm, WeightedSum

STEPS, IMAGES = 3, 8
COMBINED = "exact-linear:normalise:2,exact-quadratic:floor=-3:0.5"


def ddpo(
    make_env: Callable, reward: Any = COMBINED, prompts: Any = ("north", "south"), cls: Any = DDPO, **kwargs: Any
) -> DDPO:
    """An algorithm on the exact mixture: iterations of 8 images in rounds of 4, evaluated on 8."""
    env = make_env("exact-mixture", steps=STEPS, reward=reward, prompts=prompts)
    settings = {"trainable": "full", "chunk_size": 4, "num_envs": 4, "images_per_iteration": IMAGES, **kwargs}
    return cls(env, **{"evaluation": EvaluationConfig(images=8), **settings})


def logs(algorithm: DDPO, iterations: int) -> list[dict[str, float]]:
    """Train, and return what each dump logged."""
    dumps: list[dict[str, float]] = []
    log = algorithm._log
    algorithm._log = lambda metrics: (dumps.append(dict(metrics)), log(metrics))[1]
    algorithm.learn(iterations * IMAGES * STEPS, reset_num_timesteps=False)
    return dumps


def test_parts_are_logged_apart_and_add_up(make_env: Callable) -> None:
    algorithm = ddpo(make_env)
    dumps = logs(algorithm, 1)
    before, rollout = dumps[0], dumps[1]
    evaluation = algorithm.last_evaluation
    assert evaluation is not None
    for name in ("exact-linear", "exact-quadratic"):
        assert {f"eval/{name}_mean", f"eval/{name}_std"} <= set(before)
        assert {f"reward/{name}_mean", f"reward/{name}_std"} <= set(rollout)
        mean = float(evaluation.parts[name].mean())
        assert evaluation.metrics()[f"eval/{name}_mean"] == pytest.approx(mean, rel=1e-5)
    assert 0 <= rollout["reward/exact-quadratic_below_floor"] <= 1
    mean, std = algorithm.mdp.reward.state_dict()["statistics"]["exact-linear"]
    linear, quadratic = evaluation.parts["exact-linear"], evaluation.parts["exact-quadratic"]
    assert torch.equal(linear, Linear()(evaluation.images, evaluation.prompts))
    expected = 2 * (linear - mean) / std - 0.5 * (-3 - quadratic).clamp(min=0)
    torch.testing.assert_close(evaluation.rewards, expected)


def _bright(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.float().mean((1, 2, 3))


def test_infos_have_each_rewards_own_score(make_env: Callable) -> None:
    """In callbacks at an episode's end, as in Stable-Baselines3's environment; also of a function named ``_bright``."""
    seen: list[dict[str, Any]] = []

    class Reader(BaseCallback):
        def _on_step(self) -> bool:
            seen.extend(self.locals["infos"])
            return True

    class Kept(DDPO):
        def update(self, rollout: Rollout) -> dict[str, float]:
            parts.update(rollout.parts)
            return super().update(rollout)

    parts: dict[str, Tensor] = {}
    reward = WeightedSum({Linear(): 1.0, _bright: 2.0})
    algorithm = ddpo(make_env, reward, cls=Kept).learn(IMAGES * STEPS, Reader())
    ended = [info for info in seen if "episode" in info]
    assert [info for info in seen if "rewards" in info] == ended
    assert {name: [info["rewards"][name] for info in ended] for name in parts} == {
        name: scores.tolist() for name, scores in parts.items()
    }
    env = algorithm.get_env()
    env.reset()
    for _ in range(STEPS):
        *_, infos = env.step(np.zeros((4, 2, 1, 1), np.float32))
    scored = algorithm.mdp.score(torch.zeros(4, 2, 1, 1), [info["prompt"] for info in infos])
    for row, info in enumerate(infos):
        assert info["rewards"] == pytest.approx({name: float(scores[row]) for name, scores in scored.parts.items()})


def test_statistics_are_those_of_the_base_model_on_evaluation_noise(make_env: Callable) -> None:
    """The same for every algorithm and seed, or their rewards could not be compared.

    Evaluated before training on the same 64 images, a reward normalised by them has mean 0 and variance 1.
    """
    first = ddpo(make_env, "exact-linear:normalise", evaluation=EvaluationConfig(images=64, every=9))
    before = logs(first, 1)[0]
    assert before["eval/reward_mean"] == pytest.approx(0, abs=1e-6)
    assert before["eval/reward_std"] == pytest.approx((64 / 63) ** 0.5, rel=1e-5)
    changes = {"cls": RWR, "images_per_prompt": 4, "seed": 7, "num_envs": 8, "evaluation": EvaluationConfig()}
    other = ddpo(make_env, "exact-linear:normalise", **changes)
    other.learn(IMAGES * STEPS)
    assert other.mdp.reward.state_dict() == first.mdp.reward.state_dict()


def test_a_loaded_run_goes_on_with_the_same_statistics(make_env: Callable, tmp_path: Path, digest: Callable) -> None:
    whole = ddpo(make_env).learn(3 * IMAGES * STEPS)
    ddpo(make_env).learn(IMAGES * STEPS).save(tmp_path / "run")
    resumed = DDPO.load(tmp_path / "run")  # its environment rebuilt from the reward's text
    assert resumed.mdp.reward.state_dict() == whole.mdp.reward.state_dict()
    resumed.learn(2 * IMAGES * STEPS, reset_num_timesteps=False)
    assert digest(resumed) == digest(whole)


# ---- held-out prompts and weights


def test_held_out_prompts_are_evaluated_apart_on_the_same_noise(make_env: Callable, tmp_path: Path) -> None:
    """Prompt 'west' pulls the first coordinate down, 'east' up; training never sees either."""
    (tmp_path / "held.txt").write_text("west\neast\n", encoding="utf-8")
    evaluated = EvaluationConfig(images=8, held_out_prompts=str(tmp_path / "held.txt"))
    algorithm = ddpo(make_env, "exact-linear", evaluation=evaluated)
    dumps = logs(algorithm, 1)
    evaluation = algorithm.last_evaluation
    assert evaluation is not None
    assert evaluation.held_out is not None
    assert evaluation.prompts == ["north", "south"] * 4
    assert evaluation.held_out.prompts == ["west", "east"] * 4
    assert not set(algorithm.mdp.prompts) & {"west", "east"}
    assert evaluation.held_out.rewards[1::2].mean() > evaluation.held_out.rewards[::2].mean() + 1
    assert {"held_out/reward_mean", "held_out/reward_stderr"} <= set(dumps[0])
    first = logs(ddpo(make_env, "exact-linear", prompts=["west", "east"]), 1)[0]
    assert dumps[0]["held_out/reward_mean"] == first["eval/reward_mean"]


def test_of_more_prompts_than_images_evenly_spaced_ones_are_evaluated(make_env: Callable) -> None:
    prompts = ["north", "north", "east", "east", "south", "south", "west", "west"]
    algorithm = ddpo(make_env, "exact-linear", prompts, evaluation=EvaluationConfig(images=4))
    algorithm.learn(IMAGES * STEPS)
    assert algorithm.last_evaluation is not None
    assert algorithm.last_evaluation.prompts == ["north", "east", "south", "west"]


def test_held_out_prompts_that_are_trained_on_are_refused(make_env: Callable, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("west\nnorth\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 of the held-out prompts '.*held\.txt' are trained on \('north', \.\.\.\)"):
        ddpo(make_env, evaluation=EvaluationConfig(images=8, held_out_prompts=str(tmp_path / "held.txt")))
    with pytest.raises(ValueError, match="held_out_prompts needs an evaluation"):
        EvaluationConfig(held_out_prompts="animals@held-out")
    with pytest.raises(ValueError, match="unknown prompt set 'animal'"):
        EvaluationConfig(images=8, held_out_prompts="animal")


def test_weights_decide_how_often_a_prompt_is_drawn(make_env: Callable, tmp_path: Path) -> None:
    """3 to 1 in rollouts, also of a loaded run, and in environments that draw their own prompts."""
    prompts = [{"prompt": "north", "weight": 3}, {"prompt": "south", "weight": 1}]
    drawn: Counter[str] = Counter()

    class Counting(DDPO):
        def update(self, rollout: Rollout) -> dict[str, float]:
            drawn.update(rollout.prompts)
            return super().update(rollout)

    env = make_env("exact-mixture", steps=STEPS, reward="exact-linear", prompts=prompts)
    algorithm = ddpo(make_env, "exact-linear", prompts, Counting, evaluation=EvaluationConfig())
    algorithm.learn(4 * IMAGES * STEPS).save(tmp_path / "run")
    assert drawn["north"] > 1.5 * drawn["south"]
    assert Counting.load(tmp_path / "run").mdp.prompt_set.weights == (3, 1)
    texts = Counter(env.reset(seed=seed)[1]["prompt"] for seed in range(200))
    assert 130 <= texts["north"] <= 170  # 150 expected, standard deviation 6


# ---- rewards beside sampling


def test_rewards_beside_sampling_change_nothing(make_env: Callable, digest: Callable) -> None:
    """Same weights, statistics and log; scored by another thread, one batch after another, in order."""
    threads: set[int] = set()
    batches: list[int] = []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        threads.add(threading.get_ident())
        batches.append(len(prompts))
        assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 1
        return Quadratic()(images, prompts)

    def combined() -> WeightedSum:
        return WeightedSum([RewardTerm(reward, normalise=True), RewardTerm(Linear(), 0.5)])

    at_once, beside = (ddpo(make_env, combined(), rewards_beside_sampling=on) for on in (False, True))
    expected, orders = logs(at_once, 3), [batches.copy()]
    assert threads == {threading.get_ident()}
    threads.clear()
    batches.clear()
    assert [{k: v for k, v in dump.items() if "time" not in k} for dump in logs(beside, 3)] == expected
    orders.append(batches)
    assert orders[0] == orders[1]
    assert threading.get_ident() in threads, "calibration is done at once"
    assert len(threads) > 1
    assert digest(beside) == digest(at_once)


def test_sampling_goes_on_while_rewards_wait(make_env: Callable, sample: Callable) -> None:
    """The second of 4 rounds' rewards waits until the third round was sampled: at once it would wait for ever.

    The first round is scored at once, to see whether the reward leaves the process's settings alone.
    """
    third, calls = threading.Event(), iter(range(4))

    def slow(images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert next(calls) == 0 or third.wait(timeout=60), "the next round was not sampled meanwhile"
        return Linear()(images, prompts)

    steps = iter(range(100))

    def on_step(step: Step) -> bool:
        if next(steps) == 3 * STEPS - 1:
            third.set()
        return True

    algorithm = ddpo(make_env, slow)
    rollout = sample(algorithm, 16, score_beside=True, on_step=on_step)
    assert torch.equal(rollout.rewards, Linear()(rollout.images, rollout.prompts))


def test_an_error_beside_sampling_is_raised_at_once_and_the_next_rollout_is_sound(
    make_env: Callable, sample: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first round's failure stops the second round's sampling; nothing of the scorer stays behind."""
    rounds: list[Future[Any]] = []
    submit = ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda *args: (rounds.append(submit(*args)), rounds[-1])[1])

    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise KeyError("weights")

    taken: list[int] = []

    def on_step(step: Step) -> bool:
        taken.append(len(taken))
        if len(taken) >= STEPS:
            assert isinstance(rounds[0].exception(timeout=60), RewardError)
        return True

    algorithm = ddpo(make_env, broken)
    with pytest.raises(
        RewardError, match=r"reward 'broken' failed on 4 images \(prompts 'north'.*KeyError\('weights'\)"
    ):
        sample(algorithm, 64, score_beside=True, on_step=on_step)
    assert len(taken) <= STEPS + 1
    algorithm.rollout_env.set_reward("exact-linear")
    rollout = sample(algorithm, 8)
    assert torch.equal(rollout.rewards, Linear()(rollout.images, rollout.prompts))


# ---- rewards that spoil what is not theirs, and rewards that say nothing


def _spoiling(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Write into pictures and prompts, and leave the process's settings changed."""
    scores = images.float().mean((1, 2, 3))
    images.zero_()
    prompts[:] = ["nothing"] * len(prompts)  # type: ignore[index]
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float16)
    torch.manual_seed(0)
    return scores


def _sound(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.float().mean((1, 2, 3))


@pytest.mark.filterwarnings("ignore:the reward '_spoiling' changed settings")
@pytest.mark.parametrize("beside", [False, True])
def test_a_reward_that_spoils_what_it_touches_trains_like_a_sound_one(
    make_env: Callable, digest: Callable, beside: bool
) -> None:
    seen = []
    for first in (_sound, _spoiling):
        algorithm = ddpo(make_env, {first: 1.0, "exact-linear": 1.0}, rewards_beside_sampling=beside)
        algorithm.learn(2 * IMAGES * STEPS)
        evaluation = algorithm.last_evaluation
        assert evaluation is not None
        scores = (evaluation.rewards.tolist(), evaluation.parts["exact-linear"].tolist())
        seen.append((digest(algorithm), evaluation.images.tolist(), evaluation.prompts, scores))
    assert seen[0] == seen[1]
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def _constant(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(images),), 0.5)


def _by_prompt(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(prompt)) for prompt in prompts])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            _constant,
            "the reward '_constant' gave all 8 images of a rollout the same score, 0.5: there is nothing to learn",
        ),
        (_by_prompt, "the reward '_by_prompt' gave the images of each prompt in a rollout the same score"),
        ({_constant: 1.0, "exact-linear": 1.0}, "the reward '_constant' gave all 8 images of a rollout the same"),
    ],
)
def test_equal_rewards_are_said_once(make_env: Callable, reward: Any, message: str) -> None:
    algorithm = ddpo(make_env, reward, prompts=("north", "west"), evaluation=EvaluationConfig())
    with pytest.warns(UserWarning, match=message) as told:
        algorithm.learn(2 * IMAGES * STEPS)
    assert len([warning for warning in told if "nothing to learn from it" in str(warning.message)]) == 1


def test_rewards_that_differ_are_not_spoken_of(make_env: Callable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ddpo(make_env, evaluation=EvaluationConfig()).learn(IMAGES * STEPS)
