"""OPSD: the policy's own prediction, moved along the reward's gradient, is the target of its prediction.

At a state x_t that sampling visited, late enough for the predicted x_0 to be an image, the reward's gradient g with
respect to that prediction y of the policy that sampled gives a better and a worse target,

    y+ = y + h g / |g|,    y- = y - h g / |g|

and DiffusionNFT's loss of a pair (arXiv 2509.16117) draws the policy's prediction to the one and away from the other.
Targets are constants, so no gradient passes through decoder or sampler to the weights, only through one prediction.
"""

from dataclasses import replace

import torch
from torch import Tensor

from algorithms.base import Requirements
from algorithms.config.opsd import OPSDConfig as OPSDConfig
from algorithms.losses import mean_square, pair_loss
from algorithms.metrics import Meter
from algorithms.parallel.split import RowChunk
from algorithms.policy import Rows
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator
from algorithms.weight_average import WeightAverage
from algorithms.with_reward_gradient import WithRewardGradient
from diffusion_gym.prompt_records import Prompt


class OPSD(WithRewardGradient[OPSDConfig]):
    """``OPSD(env, visited_steps=3).learn(100_000)``; the environment's reward must have a gradient."""

    config_class = OPSDConfig

    @classmethod
    def requires(cls, config: OPSDConfig) -> Requirements:
        """Return a gradient and all latents; no density."""
        return replace(super().requires(config), trajectory=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._check_last_steps("visited_steps")

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Make each pass's updates toward targets of the policy that sampled."""
        config, meter = self.config, Meter(self.ranks)
        source = generator(config.seed, Stream.UPDATES, self.iteration)
        several = config.passes * config.updates_per_iteration > 1
        sampled = WeightAverage(self.policy.trainable_parameters(), 0.0) if several else None
        for _ in range(config.passes):
            for images in torch.randperm(len(rollout), generator=source).chunk(config.updates_per_iteration):
                self._train_on(rollout, images, sampled, source, meter)
        return meter.means()

    def train_blank(self, rows: Rows) -> None:
        """Make the passes of a chunk of zeros and, for a few images, of the decoder."""
        super().train_blank(rows)
        self._decode_blank(rows.latents)

    def _train_on(
        self,
        rollout: Rollout,
        images: Tensor,
        sampled: WeightAverage | None,
        source: torch.Generator,
        meter: Meter,
    ) -> None:
        """Make one update on some states of a share (k,) of the images."""
        rows = images.repeat_interleave(self.config.states_per_image).to(rollout.latents.device)
        steps = self._draw_steps(len(images), source)
        for chunk in self.row_chunks(rollout, rows):
            records = [rollout.records[image] for image in chunk.images.tolist()]
            loss, seen = self._loss(self._visited(rollout, chunk, steps), records, sampled)
            self.backward(chunk.weight * loss.sum() / len(rows))
            meter.add(seen, chunk.weight)
        meter.add({"train/grad_norm": self.step(self.optimizer)})
        self.count_rows(len(rows), reference=0 if sampled is None else len(rows))

    def _draw_steps(self, n: int, source: torch.Generator) -> Tensor:
        """Return the steps (n * K,), int64, on the CPU, at which the K states of each of n images lie."""
        last, states = self.config.visited_steps, self.config.states_per_image
        places = (torch.rand(n, 1, generator=source) + torch.arange(states) / states) % 1 * last  # evenly spread
        return self.policy.num_inference_steps - 1 - places.long().clamp(max=last - 1).flatten()

    def _visited(self, rollout: Rollout, chunk: RowChunk, steps: Tensor) -> Rows:
        here, step = rollout.split.local(chunk.images), steps[chunk.rows.cpu()].to(rollout.latents.device)
        conditioning = {name: value[here] for name, value in rollout.conditioning.items()}
        return Rows(rollout.latents[step, here], step, conditioning)

    def _loss(
        self, rows: Rows, records: list[Prompt], sampled: WeightAverage | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (m,) of the rows, and what is logged, each (m,)."""
        before = None
        if sampled is not None:
            with torch.no_grad(), sampled.applied():
                before = self._predicted_x_0(rows)
        x_0 = self._predicted_x_0(rows)
        before = x_0.detach() if before is None else before
        rewards, gradient = self._reward_gradient(before, records)
        move = self.config.step_size * direction(gradient)
        loss = pair_loss(x_0, before, before + move, before - move)
        return loss, {
            "train/loss": loss,
            "train/predicted_reward": rewards,
            "train/latent_grad_norm": gradient.flatten(1).norm(dim=1),
            "train/drift_from_old": mean_square(x_0 - before),
        }

    def _predicted_x_0(self, rows: Rows) -> Tensor:
        policy = self.policy
        output = policy.model_output(rows.latents, policy.transition.timesteps[rows.step_index], rows.conditioning)
        return policy.transition.predicted_x_0(output, rows.latents, rows.step_index)


def direction(gradient: Tensor) -> Tensor:
    """Return each row of gradients (m, ...) divided by its root mean square; 0 where the gradient is 0."""
    shape, smallest = (-1, *[1] * (gradient.ndim - 1)), torch.finfo(gradient.dtype).tiny
    # Divided by the largest entry first, whose square may overflow or vanish.
    scaled = gradient / gradient.flatten(1).abs().amax(1).clamp(min=smallest).reshape(shape)
    return scaled / mean_square(scaled).sqrt().clamp(min=smallest).reshape(shape)
