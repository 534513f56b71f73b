"""Reward-weighted regression and its sparse form (Black et al. 2023, section 4.2; Lee et al. 2023).

The update is the denoising loss the model was pretrained with, on its own samples, weighted by their rewards. It
needs the finished images alone: where they came from in the chain is forgotten.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from algorithms.advantages import effective_sample_size, softmax_weights, top_fraction_weights
from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config.algorithms import RWRConfig as RWRConfig
from algorithms.config.base import divisor
from algorithms.losses import weighted_denoising_loss
from algorithms.metrics import Meter
from algorithms.requirements import check_fitted_prediction
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator, prompt_order


class RWR(DiffusionAlgorithm[RWRConfig]):
    """``RWR("DiffusionDenoise-v0", trainable="full").learn(100_000)``."""

    config_class = RWRConfig

    @classmethod
    def requires(cls, config: RWRConfig) -> Requirements:
        """Return finished latents alone: neither trajectories nor a density."""
        return replace(super().requires(config), several_ranks=True)

    def __init__(
        self,
        env: str | gymnasium.Env | gymnasium.vector.VectorEnv | VecEnv,
        config: RWRConfig | None = None,
        *,
        _init_setup_model: bool = True,
        **arguments: Any,
    ) -> None:
        """Build the policy as every algorithm does.

        Raises:
            ValueError: as :class:`DiffusionAlgorithm`; a prompt with one image in the first iteration; or a distilled
                model whose prediction without guidance is to be fitted.
        """
        super().__init__(env, config, _init_setup_model=_init_setup_model, **arguments)
        check_fitted_prediction("RWR", self.config.cfg_training, self.mdp.model)
        if _init_setup_model:  # a checkpoint may also be loaded beside other prompts, to draw pictures of them
            self._check_groups()

    def _check_groups(self) -> None:
        """Raise ValueError where the first iteration has a prompt with one image, whose weight is 1 for any reward."""
        config, keys = self.config, [record.key for record in self.mdp.records]
        n, group = config.images_per_iteration, config.images_per_prompt
        order = prompt_order(config.seed, len(keys), group, 0, n, self.mdp.prompt_weights)
        alone = sum(count == 1 for count in Counter(keys[index] for index in order).values())
        if alone:
            raise ValueError(
                f"RWR compares images of the same prompt, but with images_per_prompt={group} and {len(set(keys))} "
                f"prompts {alone} of an iteration's {n} images are the only ones of their prompt. Set "
                f"images_per_prompt to {divisor(n, 16)}, or sample at least two images per prompt."
            )

    def weights(self, rollout: Rollout) -> Tensor:
        """Each image's weight in the loss, (n,), averaging 1."""
        if self.config.sparse:
            return top_fraction_weights(rollout.keys, rollout.rewards, self.config.top_fraction)
        return softmax_weights(rollout.keys, rollout.rewards, self.config.beta, self.config.standardise)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Weigh the data set, then fit the denoiser to it with a fresh optimizer."""
        x_0 = rollout.final_latents
        if self.config.reencode_images:
            x_0 = self.policy.model.encode_images(rollout.images)
        weights = self.weights(rollout)
        kept = (weights > 0).nonzero().flatten()
        # Images of weight 0 are left out of the batches; dividing by the kept share keeps the expected loss.
        scaled = weights * (len(kept) / len(weights))
        source = generator(self.config.seed, Stream.UPDATES, self.iteration)
        schedule, optimizer, meter = self.policy.transition.schedule, self.make_optimizer(), Meter(self.ranks)
        for batch in self._batches(kept, source):
            times = schedule.draw_times(len(batch), source)
            noise = torch.randn(len(batch), *x_0.shape[1:], generator=source).to(x_0.device)
            for chunk in self.row_chunks(rollout, batch):
                here, t = rollout.split.local(chunk.images), times[chunk.rows.to(times.device)]
                x_t, target = schedule.noised(x_0[here], noise[chunk.rows], t)
                conditioning = {name: value[here] for name, value in rollout.conditioning.items()}
                output = self.policy.model_output(x_t, t.to(x_0.device), conditioning, guided=self.config.cfg_training)
                loss = weighted_denoising_loss(output, target, scaled[chunk.images])  # w mean_D((target - output)^2)
                self.backward(chunk.weight * loss.sum() / len(batch))
                meter.add({"train/loss": loss}, chunk.weight)
            grad_norm = self.step(optimizer)
            meter.add({"train/grad_norm": grad_norm})
            self.count_rows(len(batch), guided=self.config.cfg_training)
        size = effective_sample_size(weights)
        return meter.means() | {
            "train/effective_sample_size": size,
            "train/effective_sample_share": size / len(weights),
        }

    def _batches(self, kept: Tensor, source: torch.Generator) -> Iterator[Tensor]:
        """Yield image indices (batch_size,) from reshuffled passes over the kept images."""
        size, updates = self.config.batch_size, self.config.updates_per_iteration
        passes = -(-size * updates // len(kept))
        order = torch.cat([torch.randperm(len(kept), generator=source) for _ in range(passes)])
        for update in range(updates):
            yield kept[order[update * size : (update + 1) * size].to(kept.device)]
