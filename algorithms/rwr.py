"""Reward-weighted regression and its sparse form (Black et al. 2023, section 4.2; Lee et al. 2023).

The update is the denoising loss the model was pretrained with, on its own samples, weighted by their rewards. It
needs the finished images alone: where they came from in the chain is forgotten.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from algorithms.advantages import effective_sample_size, softmax_weights, top_fraction_weights
from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config.algorithms import RWRConfig as RWRConfig
from algorithms.config.base import divisor
from algorithms.losses import weighted_denoising_loss
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator, prompt_order
from algorithms.update_metrics import Meter


class RWR(DiffusionAlgorithm[RWRConfig]):
    """``RWR("DiffusionDenoise-v0", trainable="full").learn(100_000)``."""

    config_class = RWRConfig
    requires: ClassVar[Requirements] = Requirements(whole_trajectory=False, stochastic=False)
    splits_over_ranks = True

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
            ValueError: as :class:`DiffusionAlgorithm`; images with none of the same prompt to be weighed against; or a
                distilled model whose prediction without guidance is to be fitted.
        """
        super().__init__(env, config, _init_setup_model=_init_setup_model, **arguments)
        if not self.config.cfg_training and self.mdp.model.embeds_guidance:
            raise ValueError(
                f"cfg_training=False fits the prediction without guidance, but {self.mdp.model.name} is distilled: it "
                "takes the scale as an input and has no other prediction. Leave cfg_training at True."
            )
        if _init_setup_model:  # a checkpoint may also be loaded beside other prompts, to draw pictures of them
            self._check_company()

    def _check_company(self) -> None:
        """Refuse a first iteration with an image alone with its prompt, which weighs 1 whatever its reward."""
        config, texts = self.config, self.mdp.prompts
        n, group = config.images_per_iteration, config.images_per_prompt
        order = prompt_order(config.seed, len(texts), group, 0, n, self.mdp.prompt_weights)
        alone = sum(count == 1 for count in Counter(texts[index] for index in order).values())
        if alone:
            raise ValueError(
                f"RWR weighs an image against the others of its prompt, but with images_per_prompt={group} and "
                f"{len(set(texts))} prompts {alone} of an iteration's {n} images have no other, and their rewards "
                f"would mean nothing. Set images_per_prompt to {divisor(n, 16)}, or sample two images or more a prompt."
            )

    def weights(self, rollout: Rollout) -> Tensor:
        """Each image's weight in the loss, (n,), averaging 1."""
        if self.config.sparse:
            return top_fraction_weights(rollout.prompts, rollout.rewards, self.config.top_fraction)
        return softmax_weights(rollout.prompts, rollout.rewards, self.config.beta, self.config.standardise)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Weigh the data set, then fit the denoiser to it with a fresh optimizer."""
        x_0 = rollout.final_latents
        if self.config.reencode_images:
            x_0 = self.policy.model.encode_images(rollout.images)
        weights = self.weights(rollout)
        kept = (weights > 0).nonzero().flatten()
        # Images of weight 0 are left out of the batches; dividing by the kept share keeps the expected loss.
        weights = weights * (len(kept) / len(weights))
        source = generator(self.config.seed, Stream.UPDATES, self.iteration)
        optimizer = self.make_optimizer()
        meter = Meter(self.ranks)
        for batch in self._batches(kept, source):
            norm = self.gradient_step(optimizer, self._losses(rollout, x_0, weights, batch, source, meter))
            meter.add("train/grad_norm", norm)
            self.count_training_rows(len(batch), guided=self.config.cfg_training)
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

    def _losses(
        self, rollout: Rollout, x_0: Tensor, weights: Tensor, batch: Tensor, source: torch.Generator, meter: Meter
    ) -> Iterator[Tensor]:
        """Yield each chunk's share of the mean loss over the batch, at times drawn as the model was trained."""
        schedule = self.policy.transition.schedule
        times = schedule.draw_times(len(batch), source)
        noise = torch.randn(len(batch), *x_0.shape[1:], generator=source).to(x_0.device)
        for part in self.parts(rollout, batch):
            here, t = rollout.split.local(part.images), times[part.rows.to(times.device)]
            x_t, target = schedule.noised(x_0[here], noise[part.rows], t)
            conditioning = {name: value[here] for name, value in rollout.conditioning.items()}
            output = self.policy.model_output(x_t, t.to(x_0.device), conditioning, guided=self.config.cfg_training)
            if not part.weight:
                yield 0 * output.sum()
                continue
            loss = weighted_denoising_loss(output, target, weights[part.images])
            meter.add_rows("train/loss", loss.detach())
            yield part.weight * loss.sum() / len(batch)
