"""``check_algorithm``: every algorithm and preset passes it, and each broken one fails the check of what it breaks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import (
    ALGORITHMS,
    DDPO,
    GRPO_PRESETS,
    PRESETS,
    DDPOConfig,
    EvaluationConfig,
    ForwardProcessConfig,
    OnlinePreferenceConfig,
    Requirements,
    check_algorithm,
    checked_gradient,
)
from algorithms.checked_runs import Subject
from algorithms.rollouts import Rollout, SampledChunk

SHORT = {"updates_per_iteration": 4, "batch_size": 32}  # twenty updates of 128 take longer, and show no more
#: What is checked, and with what.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpo-is": ("ddpo-is", {}),
    "ddpo-sf": ("ddpo-sf", {"policy_gradient": True}),
    "rwr": ("rwr", {**SHORT, "beta": 0.5}),
    "sparse-rwr": ("sparse-rwr", {**SHORT, "top_fraction": 0.2}),
    "awm": ("awm", {"passes": 2, "updates_per_iteration": 2, "paired_noise": True}),
    "nft": ("nft", {}),
    "epg": (ForwardProcessConfig.preset("epg"), {}),
    "ram": (ForwardProcessConfig.preset("ram"), {"anchor_start": 0.2}),  # 1 would hold it after one std
    "d3po": ("d3po", {"updates_per_iteration": 2}),
    "d3po, flow": (OnlinePreferenceConfig(log_prob_reduction="mean", beta=0.5), {"flow": True}),
    "grpo": ("grpo", {"antithetic": True, "evaluation": EvaluationConfig(images=4)}),
    "grpo, gdpo": ("grpo", {"advantages": "gdpo"}),
    "grpo-fast": ("grpo-fast", {}),
    "mixgrpo": ("mixgrpo", {"window": 2, "window_every": 1, "centred_ratio": True}),
    "flow-dppo": ("flow-dppo", {}),
    "branched": ("branched", {}),
    "branched, flow": ("branched", {"flow": True, "eta": 0.5, "kl_penalty": 1e-3, "window": 2}),
    "draft": ("draft", {}),
    "draft-lv": ("draft-lv", {}),
    "refl": ("refl", {}),
    "opsd": ("opsd", {"updates_per_iteration": 2, "states_per_image": 2}),
    # Its minibatches are shuffled rows, and its log-densities whole ones: the ratio is 1 up to rounding.
    "sb3-ppo": ("sb3-ppo", {"ratio_tolerance": 1e-3, "n_epochs": 4, "batch_size": 64}),
    "ddpo-is, flow": ("ddpo-is", {"flow": True, "kl_penalty": 1e-3}),
    "awm, eta 0": ("awm", {"flow": True, "eta": 0.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_algorithm_passes(case: str) -> None:
    algorithm, settings = CASES[case]
    check_algorithm(algorithm, **settings)


def test_no_algorithm_is_left_out() -> None:
    assert {*ALGORITHMS, *PRESETS, *GRPO_PRESETS} <= set(CASES)


class Elsewhere(DDPO):
    """Scores other latents than were sampled."""

    def sampled_chunks(self, *arguments: Any) -> Iterator[SampledChunk]:
        for chunk in super().sampled_chunks(*arguments):
            yield replace(chunk, rows=replace(chunk.rows, latents=chunk.rows.latents + 0.01))


class OtherOld(DDPO):
    """Compares with log-densities that no policy had."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        return super().update(replace(rollout, log_probs=rollout.log_probs + 0.01))


class Moved(DDPO):
    """Does not begin at the pretrained model."""

    def _setup_model(self) -> None:
        super()._setup_model()
        with torch.no_grad():
            self.policy.denoiser.means.add_(0.1)


class WithoutStart(DDPO):
    """Forgets what the configuration itself asks for."""

    @classmethod
    def requires(cls, config: DDPOConfig) -> Requirements:
        return Requirements(trajectory=True, density=True)


class Unbilled(DDPO):
    """Does not say what its update costs."""

    def count_rows(self, *arguments: Any, **options: Any) -> None:
        pass


class BilledUnguided(DDPO):
    """Says it right without guidance alone."""

    def count_rows(self, trained: int, guided: bool = True, reference: int = 0) -> None:
        super().count_rows(trained, False, reference)


class Global(DDPO):
    """Draws from torch's global generator."""

    def advantages(self, rollout: Rollout) -> Tensor:
        return super().advantages(rollout) + 0.01 * torch.randn(len(rollout))


class Forgetful(DDPO):
    """Does not restore its statistics."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        pass


class Silent(DDPO):
    """Calls no callback while it samples."""

    def collect(self, callback: Any) -> Rollout:
        return super().collect(self._init_callback(None))


class Backwards(DDPO):
    """Climbs down."""

    def advantages(self, rollout: Rollout) -> Tensor:
        return -super().advantages(rollout)


class FirstSteps(DDPO):
    """Trains half of the steps, which is not the gradient of the expected reward."""

    def sampled_chunks(self, *arguments: Any) -> Iterator[SampledChunk]:
        for chunk in super().sampled_chunks(*arguments):
            yield replace(chunk, weight=int(chunk.step < 2))


class LogsNothing(DDPO):
    """Returns no numbers for the log."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        super().update(rollout)
        return None  # type: ignore[return-value]


class NotANumber(DDPO):
    """Trains steps that have no density."""

    def surrogate(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, seen = super().surrogate(*arguments)
        return loss * torch.nan, seen


class OwnStep(DDPO):
    """Lets the optimizer step by itself."""

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.step()
        optimizer.zero_grad()
        return torch.zeros(())


class TensorState(DDPO):
    """Saves a tensor as if it were JSON."""

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "mean": torch.zeros(2)}


SENTENCES: dict[type[DDPO], str] = {
    LogsNothing: r"update\(\) must return names in the log and finite numbers, but returned .None.; give {} for",
    NotANumber: r"but returned .\('train/loss', nan\).; .* look for NaN at steps without a density",
    OwnStep: r"3 iterations made no update through step\(optimizer\), which clips .*; call it in the place of",
    TensorState: r"extra_state\(\) must be what JSON holds, .* but Object of type Tensor .* return tensors from",
    Elsewhere: r"the importance ratio must be exactly 1, but .* sampled_chunks\(\) differ .* by up to \d.* nats",
    OtherOld: r"but the log has train/approx_kl = .*, expected 0; look at which rows, chunks and weights",
    Moved: r"before training the KL to the start must be 0, but an evaluation measured \d.* nats; look at .* weights",
    WithoutStart: r"kl_to_start=True must measure the KL .* let requires\(\) build on super\(\).requires\(config\)",
    Unbilled: r"3 iterations with guidance_scale 1 took 768 forwards and cost/forward_equivalents is 192; look",
    BilledUnguided: r"with guidance_scale 2 took 1536 forwards and cost/forward_equivalents is 960",
    Global: r"two runs of one seed must be equal bit for bit, but .* draw random numbers from algorithms.seeding",
    Forgetful: r"a run that resumes .* but .*; look at what extra_state\(\), load_extra_state\(\) and extra",
    Silent: r"none was called in the second one; let collect\(\) call callback.on_step\(\) at every step",
    Backwards: r"must rise for every prompt .* its mean went from .* to -.*; look at the sign and size of the loss",
    FirstSteps: r"the first gradient must point where that of the expected reward does, .* standard errors off",
}


@pytest.mark.parametrize("broken", SENTENCES, ids=lambda cls: cls.__name__)
def test_what_is_broken_is_said(broken: type[DDPO]) -> None:
    with pytest.raises(AssertionError, match=f"^{broken.__name__}: .*{SENTENCES[broken]}"):
        check_algorithm(
            broken, importance_sampling=False, updates_per_iteration=1, policy_gradient=broken is FirstSteps
        )


def test_a_noisy_gradient_takes_more_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 8 of 128 images it cannot be told from 0 yet."""
    monkeypatch.setattr(checked_gradient, "ROLLOUTS", 8)
    monkeypatch.setattr(checked_gradient, "IMAGES", 128)
    subject = Subject(DDPO, ALGORITHMS["ddpo-sf"].config, False, {})
    checked_gradient.check_gradient(subject)
    monkeypatch.setattr(checked_gradient, "MOST_ROLLOUTS", 8)
    with pytest.raises(AssertionError, match=r"over 1024 images .* the factor is 0\.\d+, with a standard error of 0"):
        checked_gradient.check_gradient(subject)


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown algorithm 'ddpo'; expected a class, or one of \['awm', "):
        check_algorithm("ddpo")

    class OwnConfig(DDPOConfig):
        pass

    with pytest.raises(ValueError, match=r"no registered algorithm has a OwnConfig; give the class, too"):
        check_algorithm(OwnConfig())
