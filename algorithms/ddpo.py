"""Denoising diffusion policy optimisation: DDPO-SF and DDPO-IS (Black et al. 2023, section 4.3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from algorithms.base import Requirements
from algorithms.chunks import SampledChunk
from algorithms.config.algorithms import DDPOConfig as DDPOConfig
from algorithms.losses import importance_sampling_loss, kl_penalty_loss, ratio_statistics, score_function_loss
from algorithms.metrics import Meter
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator
from algorithms.with_advantages import WithAdvantages
from diffusion_gym.transitions import Gaussian


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
            rows = transitions if rollout.windows is None else rollout.rows_in_windows(update)
            for chunk in self.chunks(rollout, update):
                new, gaussian = chunk.log_prob_under(self.policy)
                advantage = here[chunk.images]
                loss, seen = self.surrogate(chunk, new, gaussian, advantage)
                if config.kl_penalty > 0:
                    kl = gaussian.kl(chunk.per_image(self._start(chunk)))
                    loss = loss + kl_penalty_loss(kl, config.kl_penalty, dimensions, config.log_prob_reduction)
                    seen["train/kl_to_start"] = kl * self._steps_with_density  # nats per image
                self.backward(chunk.weight * loss.sum() / transitions)
                ratios = ratio_statistics(new, chunk.log_prob, advantage, config.clip_range)
                meter.add(ratios.metrics() | seen | {"train/loss": loss}, chunk.weight)
            meter.add({"train/grad_norm": self.step(self.optimizer)})
            self.count_rows(rows, reference=rows if config.kl_penalty > 0 else 0)
        return meter.means() | self.advantage_metrics(rollout, advantages)

    def chunks(self, rollout: Rollout, update: int) -> Iterator[SampledChunk]:
        """Yield the transitions that an update trains on."""
        return self.sampled_chunks(rollout, update, self._drawn_steps(rollout))

    def surrogate(
        self, chunk: SampledChunk, new: Tensor, gaussian: Gaussian, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a chunk's images, (k,), and what is logged beside, each (k,).

        Args:
            chunk: with the log-density ``chunk.log_prob`` of the policy that sampled.
            new: (k,), the present policy's, with gradients.
            gaussian: the present policy's, of each image.
            advantages: (k,).
        """
        config, dimensions = self.config, gaussian.dimensions
        if config.importance_sampling:  # equation 4: max(-A ratio, -A clip(ratio)), ratio = p / p_old
            loss = importance_sampling_loss(
                new, chunk.log_prob, advantages, dimensions, config.log_prob_reduction, config.clip_range
            )
        else:  # equation 3: -A log p(x_{t-1} | x_t, c)
            loss = score_function_loss(new, advantages, dimensions, config.log_prob_reduction)
        return loss, {}

    def _start(self, chunk: SampledChunk) -> Gaussian:
        assert self.reference is not None
        return self.reference.distribution(chunk.rows, chunk.transition)

    @property
    def _steps_with_density(self) -> int:
        return len(self.policy.trainable_steps)

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
