"""Denoising diffusion policy optimisation: DDPO-SF and DDPO-IS (Black et al. 2023, section 4.3)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.advantages import PerPromptStatistics
from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.losses import importance_sampling_loss, kl_penalty_loss, score_function_loss
from algorithms.meter import Meter
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator
from algorithms.settings import DDPOConfig as DDPOConfig


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
        source = generator(self.config.seed, Stream.UPDATES, self.iteration)
        order = torch.randperm(len(rollout), generator=source).to(advantages.device)
        meter = Meter(self.ranks)
        for share in order.chunk(self.config.updates_per_iteration):
            images, steps = self._transitions(share, source)
            norm = self.gradient_step(self.optimizer, self._losses(rollout, images, steps, advantages, meter))
            meter.add("train/grad_norm", norm)
            self.count_training_rows(len(images))
            if self.config.kl_penalty > 0:
                self.count_reference_rows(len(images))
        return meter.means() | {
            "train/advantage_mean": float(advantages.mean()),
            "train/advantage_abs_mean": float(advantages.abs().mean()),
        }

    def sampling_order(self) -> Tensor:
        """The order of :meth:`update`, so that ranks have equally many images of each share."""
        source = generator(self.config.seed, Stream.UPDATES, self.iteration)
        return torch.randperm(self.config.images_per_iteration, generator=source)

    def _transitions(self, images: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fold time into the batch: image and step of every transition to train on, each (m,)."""
        trainable = self.policy.trainable_steps
        count = max(1, round(self.config.timestep_fraction * len(trainable)))
        if count == len(trainable):
            steps = trainable.expand(len(images), -1)
        else:
            picks = torch.rand(len(images), len(trainable), generator=source).argsort(1)[:, :count]
            steps = trainable[picks]
        return images.repeat_interleave(count), steps.flatten().to(images.device)

    def _losses(
        self, rollout: Rollout, images: Tensor, steps: Tensor, advantages: Tensor, meter: Meter
    ) -> Iterator[Tensor]:
        """Yield each chunk's share of the mean loss over all m transitions."""
        m, dimensions = len(images), rollout.latents[0, 0].numel()
        reduction = self.config.log_prob_reduction
        for part in self.parts(rollout, images):
            rows, next_latents, old_log_prob = rollout.rows(part.images, steps[part.rows])
            chunk = rows.padded(self.policy.chunk_size) if part.weight else rows
            log_prob, gaussian = self.policy.log_prob(chunk, next_latents)
            if not part.weight:
                yield 0 * log_prob.sum()
                continue
            weight = advantages[part.images]
            if self.config.importance_sampling:
                loss, ratios = importance_sampling_loss(
                    log_prob, old_log_prob, weight, dimensions, reduction, self.config.clip_range
                )
            else:
                loss = score_function_loss(log_prob, weight, dimensions, reduction)
                _, ratios = importance_sampling_loss(
                    log_prob.detach(), old_log_prob, weight, dimensions, reduction, 1.0
                )
            if self.config.kl_penalty > 0:
                assert self.reference is not None
                kl = self.reference.kl(chunk, gaussian)[: len(rows)]
                meter.add_rows("train/kl_to_start", kl.detach() * len(self.policy.trainable_steps))  # nats an image
                loss = loss + kl_penalty_loss(kl, self.config.kl_penalty, dimensions, reduction)
            meter.add_rows("train/approx_kl", ratios.approx_kl)
            meter.add_rows("train/clip_fraction", ratios.clipped)
            meter.add_rows("train/log_ratio_abs", ratios.log_ratio.abs())
            meter.maximum("train/log_ratio_abs_max", ratios.log_ratio.abs())
            meter.add_rows("train/loss", loss.detach())
            yield part.weight * loss.sum() / m

    def extra_state(self) -> dict[str, Any]:
        """The per-prompt statistics."""
        return {"statistics": self.statistics.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the per-prompt statistics."""
        self.statistics.load_state_dict(state["statistics"])
