"""Reward gradients: DRaFT, DRaFT-LV, AlignProp and ReFL, one update of which each is a configuration.

The reward of an image is differentiated with respect to the image, through the decoder and through the last steps of
sampling, down to the weights (Clark et al. 2023, arXiv 2309.17400; Xu et al. 2023, arXiv 2304.05977). So the reward
must have a gradient, and no step needs a density. The loss of an image is minus its reward.
"""

from dataclasses import replace

import torch
from torch import Tensor

from algorithms.base import Requirements
from algorithms.config.reward_gradient import RewardGradientConfig as RewardGradientConfig
from algorithms.losses import mean_square
from algorithms.metrics import Meter
from algorithms.policy import Rows
from algorithms.rollouts import Rollout
from algorithms.seeding import TRAINING_STREAMS, Noise, Stream, generator
from algorithms.with_reward_gradient import WithRewardGradient


class RewardGradient(WithRewardGradient[RewardGradientConfig]):
    """``RewardGradient(env, gradient_steps=3).learn(100_000)``; the environment's reward must have a gradient."""

    config_class = RewardGradientConfig

    @classmethod
    def requires(cls, config: RewardGradientConfig) -> Requirements:
        """Return a gradient, and all latents, or the finished ones alone where these are noised again; no density."""
        return replace(super().requires(config), trajectory=config.draws_per_image == 0)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._check_last_steps("gradient_steps")

    def assign(self) -> Tensor:
        """Deal the images out to the updates in their order."""
        config = self.config
        return torch.arange(config.images_per_iteration).reshape(config.updates_per_iteration, -1)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Make one gradient step on each share of the images."""
        meter, source = Meter(self.ranks), generator(self.config.seed, Stream.UPDATES, self.iteration)
        numbers = self._draw_steps(source)  # before the noise, which is from the same source
        renoise, step_noise = self._renoise(rollout, source), self._step_noise(rollout)
        for update, drawn in enumerate(numbers):
            rows, chunks = len(rollout.assigned(update)) * len(drawn), rollout.chunks(update, self.policy.chunk_size)
            for draw, last in enumerate(drawn):
                for chunk, weight in rollout.split.in_step(chunks, slice(0, 1)):
                    begin = self._begin(rollout, chunk, last, None if renoise is None else renoise[chunk, draw])
                    x_0 = self._x_0(begin, last, None if step_noise is None else step_noise[-last:, chunk])
                    records = [rollout.records[image] for image in rollout.split.kept[chunk]]
                    rewards, gradient = self._reward_gradient(x_0, records)
                    self.backward(-weight * (gradient * x_0).sum() / rows)  # minus d reward / d weights
                    seen = {
                        "train/loss": -rewards,
                        "train/latent_grad_norm": gradient.flatten(1).norm(dim=1),
                        "train/distance_from_sampled": mean_square(x_0 - rollout.final_latents[chunk]),
                    }
                    meter.add(seen, weight)
            meter.add({"train/grad_norm": self.step(self.optimizer)})
            self.count_rows(rows if self.config.one_step else rows // len(drawn) * sum(drawn))
        return meter.means()

    def train_blank(self, rows: Rows) -> None:
        """Make the passes of a chunk of zeros through the differentiated steps and, for a few images, the decoder."""
        last = self.config.gradient_steps
        x_0 = self._x_0(replace(rows, step_index=rows.step_index + self.policy.num_inference_steps - last), last, None)
        self._decode_blank(x_0)
        x_0.sum().backward()

    # -- what is drawn ------------------------------------------------------------------------------------------------

    def _draw_steps(self, source: torch.Generator) -> list[list[int]]:
        """Return how many of the last steps are differentiated in each update, for each of an image's draws."""
        config = self.config
        size = config.updates_per_iteration, max(1, config.draws_per_image)
        if config.random_steps:
            return torch.randint(1, config.gradient_steps + 1, size, generator=source).tolist()
        return torch.full(size, config.gradient_steps).tolist()

    def _renoise(self, rollout: Rollout, source: torch.Generator) -> Tensor | None:
        """Return the noise (m, draws, c, h, w) that the finished latents kept here get, if they are noised again."""
        if self.config.draws_per_image == 0:
            return None
        shape = self.policy.model.latent_shape
        noise = torch.randn(len(rollout), self.config.draws_per_image, *shape, generator=source)
        return rollout.split.here(noise).to(rollout.latents.device)

    def _step_noise(self, rollout: Rollout) -> Tensor | None:
        """Return the noise (K, m, c, h, w) that the last K steps were sampled with; None where none is needed."""
        config, policy = self.config, self.policy
        if config.one_step or not bool((policy.transition.std[-config.gradient_steps :] > 0).any()):
            return None
        first, shape, steps = self.iteration * len(rollout), policy.model.latent_shape, policy.num_inference_steps
        noise = Noise(config.seed, TRAINING_STREAMS, range(first, first + len(rollout)))
        images = [
            torch.stack([torch.randn(shape, generator=source) for _ in range(steps)])[-config.gradient_steps :]
            for source in noise.sources(rollout.split.kept)
        ]
        return torch.stack(images, 1).to(rollout.latents.device)

    # -- the gradient -------------------------------------------------------------------------------------------------

    def _begin(self, rollout: Rollout, chunk: slice, last: int, noise: Tensor | None) -> Rows:
        """Return the rows at which the ``last`` steps begin: as they were sampled, or noised again."""
        step = self.policy.num_inference_steps - last
        rows, schedule = rollout.rows(chunk, step), self.policy.transition.schedule
        if noise is None:
            return rows
        x_t, _ = schedule.noised(rows.latents, noise, schedule.timesteps[step].expand(len(rows)))
        return replace(rows, latents=x_t)

    def _x_0(self, rows: Rows, last: int, noise: Tensor | None) -> Tensor:
        """Return x_0 (m, c, h, w) with gradient to the weights: after the ``last`` steps, or as the first predicts it.

        Args:
            rows: where the steps begin.
            last: number of steps.
            noise: (last, m, c, h, w) of the steps; None where they have none.
        """
        policy = self.policy
        if self.config.one_step:
            output = policy.model_output(rows.latents, policy.transition.timesteps[rows.step_index], rows.conditioning)
            return policy.transition.predicted_x_0(output, rows.latents, rows.step_index)
        for step in range(last):
            gaussian = policy.distribution(rows)
            x = gaussian.mean if noise is None else gaussian.sample(noise[step])
            rows = Rows(x, rows.step_index + 1, rows.conditioning)
        return rows.latents
