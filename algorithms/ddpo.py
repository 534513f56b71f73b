"""Denoising diffusion policy optimisation: DDPO-SF and DDPO-IS (Black et al. 2023, section 4.3)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from algorithms.base import Requirements
from algorithms.config.algorithms import DDPOConfig as DDPOConfig
from algorithms.losses import importance_sampling_loss, kl_penalty_loss, ratio_statistics, score_function_loss
from algorithms.metrics import Meter
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator
from algorithms.with_advantages import WithAdvantages


class DDPO(WithAdvantages[DDPOConfig]):
    """``DDPO("DiffusionDenoise-v0", trainable="full").learn(100_000)``."""

    config_class = DDPOConfig

    @classmethod
    def requires(cls, config: DDPOConfig) -> Requirements:
        """Return whole trajectories of steps with a density; a penalty needs the starting model."""
        needs = super().requires(config)
        reference = needs.reference or config.kl_penalty > 0
        return replace(needs, trajectory=True, density=True, reference=reference, several_ranks=True)

    def assign(self) -> Tensor:
        """Deal the images out to the updates at random."""
        source = generator(self.config.seed, Stream.UPDATES, self.iteration)
        images = torch.randperm(self.config.images_per_iteration, generator=source)
        return images.reshape(self.config.updates_per_iteration, -1)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Compute advantages once, then make one gradient step on each share of the images."""
        config, meter = self.config, Meter(self.ranks)
        advantages = self.clipped_advantages(rollout)
        here, dimensions = rollout.split.here(advantages), rollout.latents[0, 0].numel()
        for update in range(rollout.updates):
            transitions = len(rollout.assigned(update)) * self._steps_per_image
            for chunk in self.sampled_chunks(rollout, update, self._drawn_steps(rollout)):
                new, gaussian = self.policy.log_prob(chunk.rows, chunk.next_latents)
                old, advantage = chunk.log_prob, here[chunk.images]
                if config.importance_sampling:  # equation 4: max(-A ratio, -A clip(ratio)), ratio = p / p_old
                    loss = importance_sampling_loss(
                        new, old, advantage, dimensions, config.log_prob_reduction, config.clip_range
                    )
                else:  # equation 3: -A log p(x_{t-1} | x_t, c)
                    loss = score_function_loss(new, advantage, dimensions, config.log_prob_reduction)
                seen = {}
                if config.kl_penalty > 0:
                    assert self.reference is not None
                    kl = self.reference.kl(chunk.rows, gaussian)
                    loss = loss + kl_penalty_loss(kl, config.kl_penalty, dimensions, config.log_prob_reduction)
                    seen["train/kl_to_start"] = kl * len(self.policy.trainable_steps)  # nats per image
                self.backward(chunk.weight * loss.sum() / transitions)
                ratios = ratio_statistics(new, old, advantage, config.clip_range)
                meter.add(seen | ratios.metrics() | {"train/loss": loss}, chunk.weight)
            grad_norm = self.step(self.optimizer)
            meter.add({"train/grad_norm": grad_norm})
            self.count_rows(transitions, reference=transitions if config.kl_penalty > 0 else 0)
        return meter.means() | self.advantage_metrics(rollout, advantages)

    @property
    def _steps_per_image(self) -> int:
        return max(1, round(self.config.timestep_fraction * len(self.policy.trainable_steps)))

    def _drawn_steps(self, rollout: Rollout) -> Callable[[slice], Sequence[int]] | None:
        """Return what draws the steps of a chunk that are trained, by the number of its first image; None is all."""
        trainable, count = self.policy.trainable_steps.tolist(), self._steps_per_image
        if count == len(trainable):
            return None

        def draw(images: slice) -> list[int]:
            first = rollout.split.kept[images.start]
            source = generator(self.config.seed, Stream.UPDATES, self.iteration, first + 1)  # 0 is assign's
            return [trainable[i] for i in torch.randperm(len(trainable), generator=source)[:count].tolist()]

        return draw
