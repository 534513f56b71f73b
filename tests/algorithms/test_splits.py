"""Two ways to cut the same work give the same update; what is trained on is what was promised."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import DDPO, RWR, DiffusionAlgorithm
from algorithms.parallel.split import Split
from algorithms.rollouts import Rollout, SampledChunk


def trained(algorithm: DiffusionAlgorithm[Any], iterations: int = 2) -> dict[str, Tensor]:
    """The weights after some iterations."""
    algorithm.learn(iterations * algorithm.config.images_per_iteration * algorithm.mdp.num_inference_steps)
    return algorithm.get_parameters()["policy"]


@pytest.mark.parametrize("cls", [DDPO, RWR])
@pytest.mark.parametrize("num_envs", [1, 4])
def test_number_of_environments_does_not_change_the_update(make_env: Callable, cls: type, num_envs: int) -> None:
    """Weights after two iterations: bit for bit where rounds hold whole chunks of 4, else to rounding."""

    def run(n: int) -> dict[str, Tensor]:
        env = make_env("exact-mixture", prompts=["north", "south"])
        sizes = {"num_envs": n, "images_per_iteration": 16, "images_per_prompt": 4, "chunk_size": 4}
        return trained(cls(env, trainable="full", **sizes))

    split, whole = run(num_envs), run(16)
    for name, value in whole.items():
        if num_envs == 4:
            assert torch.equal(split[name], value), name
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-5)


class Gradients(DDPO):
    """DDPO that keeps each update's gradient and changes no weight."""

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        named = self.policy.trainable_parameters()
        self.seen = {name: value.grad.clone() for name, value in named.items() if value.grad is not None}
        optimizer.zero_grad()
        return torch.zeros(())


class WeightedGradients(RWR):
    """The same for RWR."""

    step = Gradients.step


@pytest.mark.parametrize("cls", [Gradients, WeightedGradients])
def test_chunks_give_the_same_gradient(make_env: Callable, sample: Callable, tiny_sd: str, cls: type) -> None:
    """32 transitions (RWR: 30 noised images) in chunks of 1, 5, 16 and 64: one gradient, up to float32 rounding.

    A loss averaged per chunk, or padding that counts, would be off by tens of percent. The rounding: the same rows
    through other kernels, 1e-7 each, amplified by the network; 1e-4 of the norm leaves a hundredfold margin.
    """
    env = make_env(tiny_sd, steps=4, reward="compressibility", prompts=["cat", "dog"])
    kwargs: dict[str, Any] = {"trainable": "full", "num_envs": 8, "images_per_iteration": 8, "updates_per_iteration": 1}
    if cls is WeightedGradients:
        kwargs |= {"batch_size": 30, "images_per_prompt": 4}
    rollout: Rollout | None = None
    flat: dict[int, Tensor] = {}
    for size in (16, 1, 5, 64):
        algorithm = cls(env, chunk_size=size, **kwargs)
        rollout = rollout or sample(algorithm, 8, whole_trajectory=cls is Gradients)
        algorithm.update(rollout)
        flat[size] = torch.cat([value.flatten() for _, value in sorted(algorithm.seen.items())])
    assert flat[16].norm() > 0
    for size in (1, 5, 64):
        assert (flat[size] - flat[16]).norm() < 1e-4 * flat[16].norm(), size


class Trained(DDPO):
    """DDPO that notes which transitions it trains on."""

    def sampled_chunks(self, rollout: Rollout, *args: Any) -> Iterator[SampledChunk]:
        for chunk in super().sampled_chunks(rollout, *args):
            images = list(rollout.split.kept[chunk.images])
            self.pairs = [*getattr(self, "pairs", []), *((image, int(chunk.rows.step_index[0])) for image in images)]
            yield chunk


def transitions(make_env: Callable, **kwargs: Any) -> list[tuple[int, int]]:
    """(image, step) of everything one iteration of 8 images and T = 5 trains on."""
    algorithm = Trained(make_env(), trainable="full", num_envs=8, images_per_iteration=8, **kwargs)
    trained(algorithm, 1)
    return algorithm.pairs


def test_every_transition_is_trained_once(make_env: Callable) -> None:
    """4 updates share the images; each step of each image is in exactly one of them."""
    pairs = transitions(make_env, updates_per_iteration=4)
    assert sorted(pairs) == [(image, step) for image in range(8) for step in range(5)]


def test_steps_without_density_are_left_out(make_env: Callable) -> None:
    """Ancestral DDPM's last step is deterministic: T - 1 = 4 steps an image, and finite weights after it."""
    pairs = transitions(make_env, sampler="ddpm")
    assert sorted(pairs) == [(image, step) for image in range(8) for step in range(4)]


@pytest.mark.parametrize("spacing", [{"steps_offset": 0, "set_alpha_to_one": True}, {"timestep_spacing": "linspace"}])
def test_stable_diffusion_grids_with_a_deterministic_end(
    make_env: Callable, sample: Callable, with_scheduler: Callable, spacing: dict[str, Any]
) -> None:
    """Where ddpo-pytorch and trl give NaN, T - 1 steps are trained and the weights stay finite."""
    env = make_env(with_scheduler(**spacing), steps=4, reward="compressibility", prompts=["cat"])
    algorithm = Trained(env, trainable="full", num_envs=4, images_per_iteration=4, updates_per_iteration=1)
    rollout = sample(algorithm, 4)
    assert rollout.log_probs.isnan().any(1).tolist() == [False, False, False, True]
    algorithm.update(rollout)
    assert sorted(algorithm.pairs) == [(image, step) for image in range(4) for step in range(3)]
    assert all(value.isfinite().all() for value in algorithm.policy.parameters())


def test_timestep_fraction_draws_anew_for_each_chunk(make_env: Callable) -> None:
    """0.4 of T = 5: two different steps per image, the same two in each of 4 chunks, not the same two in all chunks."""
    pairs = transitions(make_env, timestep_fraction=0.4, updates_per_iteration=2, chunk_size=2)
    by_image = {image: sorted(step for i, step in pairs if i == image) for image in range(8)}
    assert all(len(set(steps)) == len(steps) == 2 for steps in by_image.values())
    assert all(by_image[first] == by_image[first + 1] for first in (0, 2, 4, 6))
    assert len({tuple(steps) for steps in by_image.values()}) > 1  # the seed is fixed; by chance (1 / 10)^3


def test_updates_train_on_a_random_share_of_the_images(make_env: Callable) -> None:
    """Which images share an update, and so a chunk, is drawn anew in each iteration, and each image is in one."""
    algorithm = DDPO(make_env(), trainable="full", images_per_iteration=8, num_envs=8, updates_per_iteration=4)
    first, again = algorithm.assign(), algorithm.assign()
    algorithm.iteration = 1
    assert torch.equal(first, again)
    assert first.shape == (4, 2)
    assert sorted(first.flatten().tolist()) == list(range(8)) != first.flatten().tolist()
    assert not torch.equal(algorithm.assign(), first)


@pytest.mark.parametrize(("n", "updates", "round_size", "size"), [(12, 3, 12, 3), (12, 2, 4, 16), (9, 1, 4, 3)])
@pytest.mark.parametrize("ranks", [1, 3])
def test_chunks_hold_each_image_once_and_cross_nothing(
    n: int, updates: int, round_size: int, size: int, ranks: int
) -> None:
    """On every rank, by brute force: chunks of neighbours of one update and one round, at most ``size`` of them."""
    for rank in range(ranks):
        split = Split(SimpleNamespace(rank=rank, size=ranks), n)
        seen = []
        for update in range(updates):
            images = range(update * n // updates, (update + 1) * n // updates)
            for run in split.runs(images, size, round_size):
                assert 1 <= run.stop - run.start <= size
                assert run.start // round_size == (run.stop - 1) // round_size
                assert all(image in images for image in split.kept[run])
                seen += split.kept[run]
        assert seen == list(split.kept)
