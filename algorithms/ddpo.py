"""Denoising diffusion policy optimisation: DDPO-SF and DDPO-IS (Black et al. 2023, section 4.3)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.advantages import PerPromptStatistics
from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config import AlgorithmConfig, Reduction, divisor
from algorithms.losses import importance_sampling_loss, kl_penalty_loss, score_function_loss
from algorithms.meter import Meter
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator

_MAX_CLIP_RANGE = 700  # e to this many nats is the largest ratio that a float64 holds


@dataclass(frozen=True)
class DDPOConfig(AlgorithmConfig):
    """DDPO. With importance sampling several updates use one rollout; without, exactly one does."""

    importance_sampling: bool = True
    """True: DDPO-IS, equation 4 with clipping. False: DDPO-SF, equation 3."""
    updates_per_iteration: int = 4
    """Gradient updates a rollout, each on its own share of the images. DDPO-SF allows only 1."""
    clip_range: float = 1.64
    """Bound on the joint log-ratio of a step, in nats; 1.64 is the paper's 1e-4 times its 16,384 dimensions."""
    log_prob_reduction: Reduction = "mean"
    """"mean" over the latent's dimensions, as in the reference implementations, or the true "sum"."""
    advantage_clip: float = 5.0
    """Advantages are clipped to plus and minus this."""
    statistics_buffer: int = 32
    """Rewards remembered for each prompt's running mean and std."""
    statistics_min_count: int = 16
    """Below this many remembered rewards a prompt uses the statistics of all prompts."""
    timestep_fraction: float = 1.0
    """Share of the denoising steps that is trained on, drawn anew for each chunk of images sampled together."""
    kl_penalty: float = 0.0
    """What a nat of KL to the starting model costs, in stds of the reward; 0 is none. Costs a forward a trained row."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        super().__post_init__()
        if not self.importance_sampling and self.updates_per_iteration != 1:
            raise ValueError(
                "DDPO-SF (importance_sampling=False) is on-policy: updates_per_iteration must be 1, got "
                f"{self.updates_per_iteration}. DDPO-IS takes several."
            )
        if self.updates_per_iteration < 1:
            raise ValueError(f"updates_per_iteration must be at least 1, got {self.updates_per_iteration}.")
        if self.images_per_iteration % self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration ({self.updates_per_iteration}) must divide images_per_iteration "
                f"({self.images_per_iteration}), so that each update has equally many images; "
                f"{divisor(self.images_per_iteration, self.updates_per_iteration)} would."
            )
        if not 0 < self.clip_range <= _MAX_CLIP_RANGE or self.advantage_clip <= 0:
            raise ValueError(
                f"clip_range must lie in (0, {_MAX_CLIP_RANGE}] and advantage_clip be positive, got {self.clip_range}, "
                f"{self.advantage_clip}."
            )
        if self.kl_penalty < 0:
            raise ValueError(f"kl_penalty must be at least 0, got {self.kl_penalty}.")
        if not 0 < self.timestep_fraction <= 1:
            raise ValueError(f"timestep_fraction must lie in (0, 1], got {self.timestep_fraction}.")
        PerPromptStatistics(self.statistics_buffer, self.statistics_min_count)


class DDPO(DiffusionAlgorithm[DDPOConfig]):
    """``DDPO("DiffusionDenoise-v0", trainable="full").learn(100_000)``."""

    config_class = DDPOConfig
    requires: ClassVar[Requirements] = Requirements(whole_trajectory=True, stochastic=True)
    splits_over_ranks = True

    @classmethod
    def requirements(cls, config: DDPOConfig) -> Requirements:
        """A penalty needs the starting model."""
        needs = super().requirements(config)
        return replace(needs, reference=True) if config.kl_penalty > 0 else needs

    def _setup_model(self) -> None:
        super()._setup_model()
        self.statistics = PerPromptStatistics(self.config.statistics_buffer, self.config.statistics_min_count)
        self.optimizer = self.make_optimizer()

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Advantages once, then one gradient update for each share of the images."""
        bound = self.config.advantage_clip
        advantages = self.statistics.update(rollout.prompts, rollout.rewards).clamp(-bound, bound)
        meter = Meter(self.ranks)
        for update in range(rollout.updates):
            losses = self._losses(rollout, update, rollout.split.here(advantages), meter)
            meter.add("train/grad_norm", self.gradient_step(self.optimizer, losses))
            rows = len(rollout.assigned(update)) * self._steps_per_image
            self.count_training_rows(rows)
            if self.config.kl_penalty > 0:
                self.count_reference_rows(rows)
        return meter.means() | {
            "train/advantage_mean": float(advantages.mean()),
            "train/advantage_abs_mean": float(advantages.abs().mean()),
        }

    def assign(self) -> Tensor:
        """Deal the images out to the updates at random."""
        source = generator(self.config.seed, Stream.UPDATES, self.iteration)
        images = torch.randperm(self.config.images_per_iteration, generator=source)
        return images.reshape(self.config.updates_per_iteration, -1)

    @property
    def _steps_per_image(self) -> int:
        return max(1, round(self.config.timestep_fraction * len(self.policy.trainable_steps)))

    def _losses(self, rollout: Rollout, update: int, advantages: Tensor, meter: Meter) -> Iterator[Tensor]:
        """Yield each chunk's share of the mean loss over all transitions of the update.

        Args:
            rollout: with whole trajectories.
            update: which of its updates.
            advantages: (m,), of the images here.
            meter: notes what the rows show.
        """
        trainable, dimensions = self.policy.trainable_steps.tolist(), rollout.latents[0, 0].numel()
        reduction, count = self.config.log_prob_reduction, self._steps_per_image
        transitions = len(rollout.assigned(update)) * count

        def steps(images: slice) -> list[int]:
            if count == len(trainable):
                return trainable
            first = rollout.split.kept[images.start]
            source = generator(self.config.seed, Stream.UPDATES, self.iteration, first)
            return [trainable[i] for i in torch.randperm(len(trainable), generator=source)[:count].tolist()]

        for chunk in self.sampled_chunks(rollout, update, steps):
            rows = rollout.rows(chunk.images, chunk.step)
            log_prob, gaussian = self.policy.log_prob(rows, rollout.latents[chunk.step + 1, chunk.images])
            if not chunk.weight:
                yield 0 * gaussian.mean.sum()
                continue
            old_log_prob, advantage = rollout.log_probs[chunk.step, chunk.images], advantages[chunk.images]
            if self.config.importance_sampling:
                loss, ratios = importance_sampling_loss(
                    log_prob, old_log_prob, advantage, dimensions, reduction, self.config.clip_range
                )
            else:
                loss = score_function_loss(log_prob, advantage, dimensions, reduction)
                _, ratios = importance_sampling_loss(
                    log_prob.detach(), old_log_prob, advantage, dimensions, reduction, 1.0
                )
            if self.config.kl_penalty > 0:
                assert self.reference is not None
                kl = self.reference.kl(rows, gaussian)
                meter.add_rows("train/kl_to_start", kl.detach() * len(trainable))  # nats per image
                loss = loss + kl_penalty_loss(kl, self.config.kl_penalty, dimensions, reduction)
            meter.add_rows("train/approx_kl", ratios.approx_kl)
            meter.add_rows("train/clip_fraction", ratios.clipped)
            meter.add_rows("train/log_ratio_abs", ratios.log_ratio.abs())
            meter.maximum("train/log_ratio_abs_max", ratios.log_ratio.abs())
            meter.add_rows("train/loss", loss.detach())
            yield chunk.weight * loss.sum() / transitions

    def extra_state(self) -> dict[str, Any]:
        """The per-prompt statistics."""
        return {"statistics": self.statistics.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the per-prompt statistics."""
        self.statistics.load_state_dict(state["statistics"])
