"""GRPO: windows, branching, the mask and the centred ratio, by hand and against the exact gradient."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import ALGORITHMS, GRPO, GRPO_PRESETS, GRPOConfig
from algorithms.losses import masked_loss, output_scales
from algorithms.parallel.ranks import Ranks
from algorithms.parallel.split import Split
from algorithms.rollouts import Rollout
from algorithms.sampling import collect
from algorithms.seeding import TRAINING_STREAMS, Noise, StepNoise
from algorithms.windows import Windows

SMALL: dict[str, Any] = {"images_per_iteration": 64, "num_envs": 32, "chunk_size": 16, "trainable": "full"}
T = 10


def rolled(algorithm: GRPO) -> Rollout:
    return algorithm.collect(algorithm._setup_learn(1, None)[1])


@pytest.fixture
def make(make_env: Callable) -> Callable[..., GRPO]:
    def build(name: str = "branched", kind: type[GRPO] = GRPO, **changes: Any) -> GRPO:
        env = make_env("exact-gaussian", reward="exact-linear", steps=T)
        return kind(env, GRPOConfig.preset(name), **{**SMALL, **changes})

    return build


# -- windows -----------------------------------------------------------------------------------------------------------


def test_passes_by_hand() -> None:
    """Groups of two, whose windows of two steps begin at 0, 2 and 2; in rows of at most 2."""
    first, groups = torch.tensor([0, 0, 2, 2, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 2])

    def passes(branched: bool, step: int) -> list[tuple[list[int], list[int], list[int], bool]]:
        windows = Windows(first, groups, 2, branched, transition := object())  # type: ignore[arg-type]
        found = [p for inside in (True, False) for p in windows.passes(slice(0, 6), step, 2, inside)]
        return [(p.rows.tolist(), p.images.tolist(), p.copies.tolist(), p.transition is transition) for p in found]

    assert passes(True, 0) == [([0], [0, 1], [0, 0], True), ([2, 4], [2, 3, 4, 5], [0, 0, 1, 1], False)]
    assert passes(True, 1) == [([0, 1], [0, 1], [0, 1], True), ([2, 4], [2, 3, 4, 5], [0, 0, 1, 1], False)]
    assert passes(True, 2) == [([2, 4], [2, 3, 4, 5], [0, 0, 1, 1], True), ([0, 1], [0, 1], [0, 1], False)]
    assert passes(True, 4) == [([i, i + 1], [i, i + 1], [0, 1], False) for i in (0, 2, 4)]
    assert passes(False, 0) == [([i, i + 1], [i, i + 1], [0, 1], i == 0) for i in (0, 2, 4)]


def test_what_noise_is_shared() -> None:
    noise = Noise(3, TRAINING_STREAMS, range(8), shared=4, antithetic=True)
    seeds = noise.seeds(range(8))
    assert seeds == [seeds[0]] * 4 + [seeds[4]] * 4
    assert seeds[0] != seeds[4]
    source = StepNoise(noise, range(8), (1, 2, 2))
    z = source.draw(torch.tensor([True] * 4 + [False] * 4))
    assert z[0].equal(z[3])
    assert z[4].equal(-z[5])
    assert not z[4].equal(z[6])
    alone = Noise(3, TRAINING_STREAMS, [4])
    assert StepNoise(alone, [0], (1, 2, 2)).draw()[0].equal(z[4]), "an image's own noise is keyed by the image"


def test_a_branched_group_is_one_image_until_its_window(make: Callable) -> None:
    """And is billed as one: ``(s + 1) / 8 + 9 - s`` forwards, and a trained row of 3, of each of its 8 images."""
    algorithm = make()
    rollout = rolled(algorithm)
    starts, groups = rollout.windows.first.reshape(8, 8), rollout.latents.reshape(T + 1, 8, 8, -1)
    assert (starts == starts[:, :1]).all()
    assert len(starts[:, 0].unique()) > 4
    for start, group in zip(starts[:, 0].tolist(), groups.unbind(1), strict=True):
        same = [len(images.unique(dim=0)) == 1 for images in group]
        assert same == [step <= start for step in range(T + 1)]
    forwards = sum((start + 1) + 8 * (T - start - 1) for start in starts[:, 0].tolist())
    assert algorithm.costs["forward_equivalents"] == forwards
    algorithm.update(rollout)
    assert algorithm.costs["forward_equivalents"] == forwards + 3 * 8


def test_a_branched_group_shares_all_noise_but_its_windows(make: Callable) -> None:
    """Also after the window, and however the groups are split over rounds."""
    algorithm = make(window=2, eta=1.0)
    rollout = rolled(algorithm)
    for step in range(T - 1):  # the last of DDIM has no noise
        gaussian = algorithm.policy.distribution(rollout.rows(slice(0, 64), step))
        z = ((rollout.latents[step + 1] - gaussian.mean) / gaussian.std).reshape(8, 8, -1)
        shared = [(group - group[0]).abs().max() < 1e-2 for group in z]
        assert shared == (~rollout.windows.inside(step)).reshape(8, 8)[:, 0].tolist()
    torch.testing.assert_close(rolled(make(window=2, eta=1.0, num_envs=16)).latents, rollout.latents)


def test_noise_is_in_the_window_alone(make: Callable) -> None:
    rollout = rolled(make("grpo-fast"))
    dense = ~rollout.log_probs.isnan()
    assert dense.sum(0).tolist() == [2] * 64
    assert dense[5:].sum() == 0, "of the first half"
    assert (dense[:-1] & dense[1:]).sum(0).tolist() == [1] * 64, "neighbours"


def test_a_sliding_window_moves_and_begins_again(make: Callable) -> None:
    algorithm = make("mixgrpo", window_every=2)
    found = []
    for algorithm.iteration in range(16):
        found.append(set(algorithm.windows(range(64), Split.alone(64)).first.tolist()))
    assert found == [{step} for step in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 0, 0)]
    algorithm = make("mixgrpo", window_every=1, window_stride=4)
    places = [algorithm.windows(range(64), Split.alone(64)).first[0].item() for algorithm.iteration in range(4)]
    assert places == [0, 4, 0, 4]


def test_noise_of_ddpm_windows_is_scaled(make: Callable) -> None:
    algorithm = make(sampler="ddpm", window_eta=0.5, eta=1.0)
    torch.testing.assert_close(algorithm.noisy.std, 0.5 * algorithm.policy.transition.std)


def test_the_kl_to_the_start_is_that_of_the_window(make: Callable) -> None:
    """Of groups that branch, whose rows are fewer than their images; other steps have no density."""
    algorithm = make(images_per_iteration=16, num_envs=16, kl_penalty=1.0)
    with torch.no_grad():
        algorithm.policy.denoiser.means += 0.1
    images, split = range(16), Split.alone(16)
    found = collect(
        algorithm.rollout_env, algorithm.policy, algorithm.mdp.prompts * 16, 0, updates=2,
        reference=algorithm.reference, windows=algorithm.windows(images, split), noise=algorithm.noise(images),
    )  # fmt: skip
    for update in range(2):
        for chunk in found.window_chunks(update, 16):
            now, start = chunk.log_prob_under(algorithm.policy)[1], chunk.per_image(algorithm._start(chunk))
            torch.testing.assert_close(found.kl_to_start[chunk.images], now.kl(start).detach())
    assert (found.kl_to_start > 0).all()


@pytest.mark.parametrize("name", list(GRPO_PRESETS))
@pytest.mark.parametrize("guided", [False, True])
def test_every_ratio_is_1_before_the_first_update(make: Callable, name: str, guided: bool) -> None:
    algorithm = make(name, guidance_scale=2.0 if guided else 1.0, antithetic=True, centred_ratio=guided)
    rollout = rolled(algorithm)
    for update in range(rollout.updates):
        chunks = list(algorithm.chunks(rollout, update))
        assert sum(len(chunk.next_latents) for chunk in chunks) == 32 * algorithm._steps_per_image
        with torch.no_grad():
            assert all(chunk.log_prob_under(algorithm.policy)[0].equal(chunk.log_prob) for chunk in chunks)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_groups_that_branch_apart_are_compared_apart(make: Callable) -> None:
    """All 8 groups are of one prompt; two that branch began with other noise, which no training changes."""
    for name, apart in (("branched", True), ("grpo-fast", False)):
        algorithm = make(name)
        rollout = rolled(algorithm)
        means = algorithm.advantages(rollout).reshape(8, 8).mean(1).abs()
        assert bool((means < 1e-4).all()) == apart
        rewards = rollout.rewards.reshape(8, 8).clone()
        rewards[:2] = 0.0
        metrics = algorithm.advantage_metrics(replace(rollout, rewards=rewards.flatten()), means)
        assert metrics["train/groups_without_spread"] == (0.25 if apart else 0.0)


def test_the_share_of_clipped_rows_is_that_of_the_ratio_in_the_loss(make: Callable) -> None:
    """All of them where no gradient passes; the mask clips none."""
    for changes, parts in (({"centred_ratio": True}, {0.0, 1.0}), ({}, {0.0, 1.0}), ({"proximal": "mask"}, {0.0})):
        clip = {} if "proximal" in changes else {"clip_range": 0.02}
        algorithm = make("grpo", log_prob_reduction="sum", **changes, **clip)
        rollout, found = rolled(algorithm), set()
        with torch.no_grad():
            algorithm.policy.denoiser.means += 0.03
        for chunk in algorithm.chunks(rollout, 0):
            new, gaussian = chunk.log_prob_under(algorithm.policy)
            new.retain_grad()
            loss, seen = algorithm.surrogate(chunk, new, gaussian, torch.ones(len(new)))
            clipped = seen["train/clip_fraction"]
            found |= set(clipped.tolist())
            if clip:
                loss.sum().backward()
                assert ((new.grad == 0) == clipped.bool()).all()
        assert found == parts


def test_equal_steps_follow_the_noise_levels(make: Callable) -> None:
    """Without a window: a step that gets noise later is trained, too."""
    algorithm = make("grpo", step_weight="equal", eta=(1.0,) * 5 + (0.0,) * 5)
    assert algorithm.step_weights.bool().tolist() == [True] * 5 + [False] * 5
    algorithm.policy.set_noise_levels((0.0,) * 5 + (1.0,) * 5)
    weights = algorithm.step_weights[5:]
    assert (weights[weights > 0] * output_scales(algorithm.noisy)[5:][weights > 0]).std() < 1e-4
    assert not algorithm.step_weights[:5].any()


def test_the_mask_by_hand() -> None:
    """Of four rows with a KL above the limit those are left out whose ratio moved the advantage's way."""
    log_ratio = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.5], requires_grad=True)
    advantages, kl = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.1])
    loss, masked = masked_loss(log_ratio, torch.zeros(5), advantages, 4, "sum", kl, 0.5)
    assert masked.tolist() == [True, False, False, True, False]
    expected = [0, -math.exp(-0.5), math.exp(0.5), 0, -math.exp(0.5)]
    assert loss.tolist() == pytest.approx(expected)
    assert torch.autograd.grad(loss.sum(), log_ratio)[0].tolist() == pytest.approx(expected)


def test_the_centred_ratio_is_linear_in_the_mean(make: Callable) -> None:
    """GRPO-Guard: what is left of the log-ratio is ``z (mu - mu_old)``, whose mean is 0; times 1, not 1 / s."""
    algorithm = make("grpo-fast", centred_ratio=True, log_prob_reduction="sum", clip_range=80.0)
    rollout = rolled(algorithm)
    chunk = next(algorithm.chunks(rollout, 0))
    with torch.no_grad():
        algorithm.policy.denoiser.means += 0.1
        new, gaussian = chunk.log_prob_under(algorithm.policy)
        loss, _ = algorithm.surrogate(chunk, new, gaussian, -torch.ones(len(new)))
    z = (chunk.next_latents - chunk.mean) / gaussian.std.reshape(-1, 1, 1, 1)
    expected = (z * (gaussian.mean - chunk.mean)).flatten(1).sum(1)
    torch.testing.assert_close(loss.log(), expected, rtol=1e-3, atol=1e-5)


def test_scales_of_ddim_by_hand(make: Callable) -> None:
    """``mu = sqrt(a_p) x_0 + sqrt(1 - a_p - s^2) e``, of which the model here predicts e."""
    transition = make().noisy
    schedule = transition.schedule
    assert schedule.prediction_type == "epsilon"
    a = schedule.alphas_cumprod[schedule.timesteps].double()
    a_p = torch.cat([a[1:], torch.tensor([schedule.final_alpha_cumprod]).double()])
    std = ((1 - a_p) / (1 - a) * (1 - a / a_p)).sqrt()
    slope = ((1 - a_p - std**2).clamp(min=0).sqrt() - (a_p * (1 - a) / a).sqrt()).abs()
    torch.testing.assert_close(output_scales(transition)[:-1].double(), (slope / std)[:-1], rtol=1e-3, atol=0.0)


class Gradients(GRPO):
    """Hands out the gradient of the means instead of stepping."""

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        self.gradient = self.policy.denoiser.means.grad[0].double()
        optimizer.zero_grad()
        return torch.zeros(())


def pathwise(algorithm: GRPO, rollout: Rollout) -> Tensor:
    """Return minus the gradient of the mean reward through the noisy step of each image, by autograd through the rest.

    The reward is the first coordinate; only the trained step's mean depends on the weights.
    """
    means, total = algorithm.policy.denoiser.means, torch.zeros(2, dtype=torch.double)
    for step in algorithm.steps:
        images = (rollout.windows.first == step).nonzero().flatten()
        if len(images) == 0:
            continue
        mean = algorithm.policy.distribution(rollout.rows(images, step), algorithm.noisy).mean
        x = mean + (rollout.latents[step + 1, images] - mean).detach()
        algorithm.policy.requires_grad_(False)
        for later in range(step + 1, T):
            rows = rollout.rows(images, later)
            x = algorithm.policy.distribution(type(rows)(x, rows.step_index, rows.conditioning)).mean
        algorithm.policy.requires_grad_(True)
        reward = x.flatten(1)[:, 0] * float(algorithm.step_weights[step])
        total -= torch.autograd.grad(reward.sum(), means)[0][0].double() / len(rollout)
    return total


@pytest.mark.parametrize("changes", [{}, {"step_weight": "likelihood"}, {"branched": False}])
def test_the_gradient_is_the_exact_one(make: Callable, changes: dict[str, Any]) -> None:
    """8 rollouts of 512 images, within 4 of their own standard errors; not branched the noise of 8 x_T is in it too."""
    found = make(
        kind=Gradients, images_per_iteration=512, num_envs=512, chunk_size=512, updates_per_iteration=1,
        advantages="leave-one-out", advantage_scale="none", advantage_clip=100.0, log_prob_reduction="sum",
        clip_range=80.0, **changes,
    )  # fmt: skip
    gaps, exact = [], torch.zeros(2, dtype=torch.double)
    for found.iteration in range(8):
        rollout = rolled(found)
        found.update(rollout)
        exact = pathwise(found, rollout)
        gaps.append(found.gradient - exact)
    error = torch.stack(gaps).std(0) / math.sqrt(8)
    print(torch.stack(gaps).mean(0).tolist(), error.tolist(), exact.tolist())
    assert error.norm() < 0.25 * exact.norm()  # otherwise the comparison could not fail
    assert (torch.stack(gaps).mean(0).abs() < 4 * error).all()


# -- as algorithms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(GRPO_PRESETS))
def test_it_learns_the_exact_model(make: Callable, name: str) -> None:
    algorithm = make(name, learning_rate=0.05)
    start = algorithm.policy.denoiser.means[0, 0].item()
    algorithm.learn(15 * 64 * T)
    assert algorithm.policy.denoiser.means[0, 0].item() > start + 0.3
    assert ALGORITHMS[name].config == GRPOConfig.preset(name)


def test_settings_that_contradict_each_other_are_refused(make: Callable) -> None:
    alone = {"images_per_prompt": 1, "advantages": "running"}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"branched": True}, "branched .True. has no effect: it needs a window"),
        ({"window_eta": 0.5}, "window_eta .0.5. has no effect: it needs a window"),
        ({"window": 1, "window_stride": 2}, "window_stride .2. has no effect: it moves a sliding window"),
        ({"mask_kl": 0.1}, "mask_kl .0.1. has no effect: it bounds the mask"),
        ({"window": 1, "timestep_fraction": 0.5}, "leave timestep_fraction at 1"),
        ({**alone, "antithetic": True}, "need an even number"),
        ({"importance_sampling": False}, "GRPO takes importance ratios"),
        ({"window": 1, "window_eta": 2.0}, "window_eta must lie in .0, 1., got 2.0; only sampler 'flow-sde'"),
        ({**alone, "window": 1, "branched": True}, "branched .True. has no effect: it needs groups"),
        ({"proximal": "mask", "clip_range": 0.1}, "clip_range .0.1. has no effect: it is PPO's"),
        ({"updates_per_iteration": 16}, "must divide the 8 groups"),
    ]
    for changes, message in refused:
        with pytest.raises(ValueError, match=message):
            GRPOConfig(**changes)
    with pytest.raises(ValueError, match="a window of 4 steps does not fit"):
        make("mixgrpo", window_range=(0.0, 0.3))
    with pytest.raises(ValueError, match=r"window_stride .7. would not move the window, which has 7 places"):
        make("mixgrpo", window_stride=7)
    with pytest.raises(ValueError, match=r"'ddpm' would give every step outside the window its own noise.* got 0.0"):
        make("grpo-fast", sampler="ddpm")


def test_sharded_groups_must_be_alike_on_all_ranks(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a rank would make more forward passes than another, and wait for it for ever."""
    ranks = Ranks()
    ranks.sharded, ranks.size = True, 3
    monkeypatch.setattr("algorithms.setup.current_ranks", lambda: ranks)
    with pytest.raises(ValueError, match=r"images_per_prompt .8. must be a multiple of the number of ranks .3."):
        make("branched", images_per_iteration=48, num_envs=48)


def test_presets_leave_the_rest_as_the_model_recommends(make_env: Callable) -> None:
    for name, fields in GRPO_PRESETS.items():
        policy = GRPO(make_env(), **fields).config.policy
        assert (policy.trainable, policy.chunk_size, policy.eta) == ("full", 64, fields.get("eta", 1.0))
        assert GRPOConfig.variant(**fields) == name
