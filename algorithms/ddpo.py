"""Denoising diffusion policy optimisation: DDPO-SF and DDPO-IS (Black et al. 2023, section 4.3)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.advantages import PerPromptStatistics
from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config.algorithms import DDPOConfig as DDPOConfig
from algorithms.losses import importance_sampling_loss, kl_penalty_loss, score_function_loss
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator
from algorithms.update_metrics import Meter


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
