"""What an algorithm may replace: advantages, sampling, the weights that sample, its state, the noise of each step."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from algorithms import DDPO, RWR, DDPOConfig, DiffusionAlgorithm, Requirements
from algorithms.advantages import group_advantages, share_without_spread
from algorithms.losses import score_function_loss
from algorithms.rollouts import Rollout
from algorithms.weight_average import WeightAverage

PROMPTS, REWARDS = ["a", "b", "a", "b", "a", "c"], torch.tensor([1.0, 5.0, 2.0, 5.0, 6.0, 9.0])


def test_group_advantages_by_hand() -> None:
    """Of a: mean 3, deviations -2, -1, 3, std sqrt(14 / 3); of b, without spread, and c, alone: 0."""
    std = (14 / 3) ** 0.5 + 1e-4
    assert group_advantages(PROMPTS, REWARDS).tolist() == pytest.approx([-2 / std, 0, -1 / std, 0, 3 / std, 0])
    batch = REWARDS.double().std(correction=0).item() + 1e-4
    scaled = group_advantages(PROMPTS, REWARDS, "batch").tolist()
    assert scaled == pytest.approx([-2 / batch, 0, -1 / batch, 0, 3 / batch, 0])


def test_leave_one_out_by_hand() -> None:
    """Less the mean of the others: 1 - 4, 2 - 3.5, 6 - 1.5."""
    assert group_advantages(PROMPTS, REWARDS, "none", others=True).tolist() == pytest.approx([-3, 0, -1.5, 0, 4.5, 0])
    assert share_without_spread(PROMPTS, REWARDS) == pytest.approx(2 / 3)


@pytest.mark.parametrize("baseline", ["group", "leave-one-out"])
def test_ddpo_with_a_group_baseline_is_a_configuration(make_env: Callable, baseline: str) -> None:
    """It learns the exact model, where the running baseline does: the reward is the first coordinate."""
    config = DDPOConfig(advantages=baseline, images_per_prompt=8, learning_rate=0.1)
    algorithm = DDPO(make_env("exact-gaussian", steps=5), config, trainable="full", sampler="ddpm", chunk_size=64)
    start = algorithm.policy.denoiser.means[0, 0].item()
    algorithm.learn(15 * 64 * 5)
    assert algorithm.policy.denoiser.means[0, 0].item() > start + 0.5
    assert 0 <= algorithm.logger.name_to_value.get("train/groups_without_spread", 0) <= 1


def test_groups_of_one_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"advantages 'group' compare the images of one prompt.*set it to 2 or more"):
        DDPOConfig(advantages="group")


def test_a_scale_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="advantage_scale 'batch' has no effect on running advantages"):
        DDPOConfig(advantage_scale="batch")


class Trailing(DiffusionAlgorithm[DDPOConfig]):
    """The score function on rollouts of a slower average of the weights, which is neither evaluated nor exported."""

    config_class = DDPOConfig

    @classmethod
    def requires(cls, config: DDPOConfig) -> Requirements:
        return replace(super().requires(config), trajectory=True, density=True, several_ranks=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.optimizer = self.make_optimizer()
        self.old = WeightAverage(self.policy.trainable_parameters(), decay=0.5)

    def sampling_weights(self) -> contextlib.AbstractContextManager[None]:
        return self.old.applied()

    def extra_tensors(self) -> dict[str, Tensor]:
        return self.old.tensors

    def update(self, rollout: Rollout) -> dict[str, float]:
        advantages = rollout.split.here(rollout.rewards - rollout.rewards.mean())
        for chunk in self.sampled_chunks(rollout):
            log_prob, _ = self.policy.log_prob(chunk.rows, chunk.next_latents)
            loss = score_function_loss(log_prob, advantages[chunk.images], rollout.latents[0, 0].numel(), "mean")
            self.backward(chunk.weight * loss.sum() / len(rollout))
        norm = self.step(self.optimizer)
        self.old.update()  # once per iteration
        return {"train/grad_norm": float(norm)}


def weights(algorithm: DiffusionAlgorithm[Any]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in algorithm.policy.trainable_parameters().items()}


def test_an_algorithm_samples_with_averaged_weights_and_keeps_them(make_env: Callable, tmp_path: Path) -> None:
    """Resumed it equals one that never stopped, bit for bit, in the average too; what is trained is left in place."""
    env = make_env("exact-gaussian", steps=3)
    options: dict[str, Any] = {"trainable": "full", "learning_rate": 0.05, "images_per_iteration": 16, "num_envs": 16}
    whole, parts = Trailing(env, **options), Trailing(env, **options)
    whole.learn(4 * 16 * 3)
    parts.learn(2 * 16 * 3).save(tmp_path / "run")
    resumed = Trailing.load(tmp_path / "run", env)
    resumed.learn(2 * 16 * 3, reset_num_timesteps=False)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value)
        assert torch.equal(resumed.old.tensors[name], whole.old.tensors[name])
    assert not torch.equal(whole.old.tensors["means"], weights(whole)["means"])
    assert set(whole.get_parameters()) == {"policy", "optimizer", "extra"}


def test_a_checkpoint_taken_in_a_rollout_has_the_weights_in_training(make_env: Callable, tmp_path: Path) -> None:
    """Callbacks see them too, while the average samples before and after."""

    class Save(BaseCallback):
        def _on_step(self) -> bool:
            return True if self.n_calls < 8 else bool(self.model.save(tmp_path / "run"))  # and stops in the third

    algorithm = Trailing(make_env("exact-gaussian", steps=3), trainable="full", images_per_iteration=4, num_envs=4)
    algorithm.learn(3 * 4 * 3, Save())
    assert algorithm.iteration == 2
    assert not torch.equal(algorithm.old.tensors["means"], weights(algorithm)["means"])
    assert torch.equal(weights(Trailing.load(tmp_path / "run"))["means"], weights(algorithm)["means"])


def test_the_rollout_is_that_of_the_sampling_weights(make_env: Callable) -> None:
    """Stored log-probabilities are those of the average, and not of the weights in training."""
    algorithm = Trailing(make_env("exact-gaussian", steps=3), trainable="full", images_per_iteration=4, num_envs=4)
    with torch.no_grad():
        algorithm.policy.denoiser.means.add_(3.0)
    rollout = algorithm.collect(algorithm._setup_learn(12, None)[1])
    for scored, same in ((algorithm.sampling_weights(), True), (contextlib.nullcontext(), False)):
        with scored, torch.no_grad():
            chunks = algorithm.sampled_chunks(rollout)
            found = [algorithm.policy.log_prob(c.rows, c.next_latents)[0].equal(c.log_prob) for c in chunks]
        assert all(found) if same else not any(found)


def test_tensors_of_another_shape_are_refused_before_anything_changes(make_env: Callable) -> None:
    algorithm = Trailing(make_env("exact-gaussian", steps=3), trainable="full", images_per_iteration=4, num_envs=4)
    given, before = algorithm.get_parameters(), weights(algorithm)
    given["policy"] = {name: value + 1 for name, value in given["policy"].items()}
    given["extra"]["means"] = torch.zeros(7)
    with pytest.raises(ValueError, match="another shape for 'means'"):
        algorithm.set_parameters(given)
    assert all(torch.equal(value, before[name]) for name, value in weights(algorithm).items())


def test_only_steps_with_noise_are_trained(make_env: Callable) -> None:
    """A window of steps 1 and 2 of 5; moved between iterations, the window is another."""
    env = make_env("exact-mixture", steps=5)
    algorithm = DDPO(env, trainable="full", eta=(0.0, 1.0, 1.0, 0.0, 0.0), images_per_iteration=8, num_envs=8)
    assert algorithm.policy.trainable_steps.tolist() == [1, 2]
    algorithm.learn(8 * 5)
    algorithm.policy.set_noise_levels((0.0, 0.0, 0.0, 0.5, 0.0))
    rollout = algorithm.collect(algorithm._setup_learn(40, None)[1])
    assert rollout.log_probs.isnan().any(1).tolist() == [True, True, True, False, True]
    trained = [chunk.rows.step_index.unique().tolist() for chunk in algorithm.sampled_chunks(rollout)]
    assert trained == [[3]] * len(trained)
    assert algorithm.update(rollout)["train/log_ratio_abs_max"] < 1.0


def test_levels_changed_between_iterations_are_resumed(make_env: Callable, tmp_path: Path) -> None:
    """Bit for bit the run that was never stopped; an eta that is given when loading counts instead."""
    env = make_env("exact-mixture", steps=5)
    options: dict[str, Any] = {"trainable": "full", "images_per_iteration": 8, "num_envs": 8}
    whole = DDPO(env, **options)
    whole.policy.set_noise_levels((0.0, 1.0, 1.0, 0.0, 0.0))
    whole.learn(8 * 5).save(tmp_path / "run")
    resumed = DDPO.load(tmp_path / "run", env)
    assert resumed.policy.trainable_steps.tolist() == [1, 2]
    for given in (0.5, whole.config.policy.eta):  # also where it is the configuration's own
        assert DDPO.load(tmp_path / "run", env, eta=given).policy.trainable_steps.tolist() == [0, 1, 2, 3, 4]
    for algorithm in (whole, resumed):
        algorithm.learn(8 * 5, reset_num_timesteps=False)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


def test_levels_without_noise_are_refused_before_anything_is_sampled(make_env: Callable) -> None:
    algorithm = DDPO(make_env("exact-mixture", steps=5), trainable="full", images_per_iteration=8, num_envs=8)
    algorithm.policy.set_noise_levels((0.0,) * 5)
    with pytest.raises(ValueError, match=r"DDPO needs a stochastic sampler, but with .* no step has a density"):
        algorithm.learn(8 * 5)
    assert algorithm.costs["reward_queries"] == 0


def test_an_interrupted_updates_gradient_is_dropped(make_env: Callable) -> None:
    """The next learn warns, and begins with no gradient of the former update."""
    algorithm = DDPO(make_env(), trainable="full", images_per_iteration=8, num_envs=8, updates_per_iteration=1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    algorithm.gradient_steps.after_backward = interrupt
    with pytest.raises(KeyboardInterrupt):
        algorithm.learn(8 * 5)
    assert (algorithm.updating, algorithm.num_timesteps) == (True, 0)
    seen: list[bool] = []
    algorithm.gradient_steps.after_backward = lambda: None
    backward = algorithm.backward

    def watch(loss: Tensor) -> None:
        seen.append(all(value.grad is None for value in algorithm.policy.trainable_parameters().values()))
        backward(loss)

    algorithm.backward = watch  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="the last update was interrupted"):
        algorithm.learn(8 * 5)
    assert (seen[0], algorithm.updating) == (True, False)


@pytest.mark.parametrize(
    ("eta", "reason"), [((1.0, 0.5), "5"), ((1.0, 0.0, 2.0, 0.0, 0.0), r"must lie in \[0, 1\]"), ((), "eta must lie")]
)
def test_levels_that_do_not_fit_are_refused(make_env: Callable, eta: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DDPO(make_env("exact-mixture", steps=5), trainable="full", eta=eta)


def test_finished_images_need_no_noise(make_env: Callable) -> None:
    """RWR trains on endpoints alone, so its rollouts may be deterministic."""
    env = make_env("exact-mixture", steps=5)
    algorithm = RWR(env, trainable="full", eta=0.0, images_per_iteration=32, num_envs=32, images_per_prompt=16)
    before = weights(algorithm)
    algorithm.learn(32 * 5)
    assert any(not torch.equal(value, before[name]) for name, value in weights(algorithm).items())
    with pytest.raises(ValueError, match="DDPO needs a stochastic sampler"):
        DDPO(env, trainable="full", eta=0.0)


def test_collect_may_be_replaced(make_env: Callable) -> None:
    """An algorithm that trains on the same rollout twice sees it in update."""

    class Repeating(DDPO):
        kept: Rollout | None = None

        def collect(self, callback: Any) -> Rollout:
            if self.kept is None:
                self.kept = super().collect(callback)
            else:
                self.num_timesteps += len(self.kept) * self.mdp.num_inference_steps
            return self.kept

    algorithm = Repeating(make_env(), trainable="full", images_per_iteration=8, num_envs=8)
    algorithm.learn(3 * 8 * 5)
    assert (algorithm.iteration, algorithm.costs["reward_queries"]) == (3, 8)
