"""Online preference learning: D3PO's loss (Yang et al. 2023, arXiv 2311.13231) on the policy's own images.

The reward decides which image of a prompt's group is the best and which the worst. Each denoising step of the best is
then made likelier, relative to the starting model, than that of the worst:

    -log sigmoid(beta (log rho_best - log rho_worst)),   rho = p(x_{t-1} | x_t, c) / p_start(x_{t-1} | x_t, c)
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config.preference import OnlinePreferenceConfig as OnlinePreferenceConfig
from algorithms.losses import preference_loss
from algorithms.metrics import Meter
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator
from algorithms.with_advantages import rewards_apart, spread_metrics


class OnlinePreference(DiffusionAlgorithm[OnlinePreferenceConfig]):
    """``OnlinePreference("DiffusionDenoise-v0", beta=0.1).learn(100_000)``."""

    config_class = OnlinePreferenceConfig

    @classmethod
    def requires(cls, config: OnlinePreferenceConfig) -> Requirements:
        """Return whole trajectories of steps with a density, and the starting model.

        Not several ranks: the best and the worst of a group may lie on different ones, and their losses are coupled.
        """
        apart = config.advantages == "gdpo"
        return replace(super().requires(config), trajectory=True, density=True, reference=True, several_rewards=apart)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.optimizer = self.make_optimizer()

    def ranked_by(self, rollout: Rollout) -> Tensor:
        """Return what ranks the images of each group, (n,): rewards, or several, each normalised by itself."""
        if self.config.advantages == "group":
            return rollout.rewards
        return rewards_apart(self.mdp.reward, self.groups(rollout), rollout)

    def groups(self, rollout: Rollout) -> list[str]:
        """Return the names of the n images' groups."""
        return [str(image // self.config.images_per_prompt) for image in range(len(rollout))]

    def pairs(self, rollout: Rollout) -> Tensor:
        """Return best and worst image (groups, 2), int64, of each group of images in a row with one prompt.

        The first of several that tie; of a group whose images all tie, the same image twice.
        """
        rewards = self.ranked_by(rollout).reshape(-1, self.config.images_per_prompt)
        first = torch.arange(len(rewards), device=rewards.device) * self.config.images_per_prompt
        return torch.stack([first + rewards.argmax(1), first + rewards.argmin(1)], 1)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Make each update on its share of the groups; groups whose images all tie are left out."""
        meter, pairs, compared = Meter(self.ranks), self.pairs(rollout), self.ranked_by(rollout)
        source = generator(self.config.seed, Stream.UPDATES, self.iteration)
        order = torch.randperm(len(pairs), generator=source).to(pairs.device)
        tied = compared[pairs[:, 0]] == compared[pairs[:, 1]]
        for share in order.chunk(self.config.updates_per_iteration):
            chosen = pairs[share[~tied[share]]]
            if len(chosen) == 0:
                continue
            for loss in self._losses(rollout, chosen, meter):
                self.backward(loss.sum() / (len(chosen) * len(self.policy.trainable_steps)))
            meter.add({"train/grad_norm": self.step(self.optimizer)})
            rows = chosen.numel() * len(self.policy.trainable_steps)
            self.count_rows(rows, reference=rows)
        spread = spread_metrics(self.groups(rollout), compared, rollout)
        return meter.means() | spread | {"train/groups_without_spread": float(tied.float().mean())}

    def _losses(self, rollout: Rollout, pairs: Tensor, meter: Meter) -> Iterator[Tensor]:
        """Yield the losses of each step of some pairs (p, 2), with gradients; a pair is in one forward pass.

        Policy and start score the same rows in the same pass, so rho is exactly 1 until the first update.
        """
        assert self.reference is not None
        dimensions, steps = rollout.latents[0, 0].numel(), self.policy.trainable_steps.tolist()
        for chunk in pairs.split(max(1, self.policy.chunk_size // 2)):
            images = chunk.T.flatten()  # all best, then all worst
            for step in steps:
                rows, x = rollout.rows(images, step), rollout.latents[step + 1, images]
                log_prob, now = self.policy.log_prob(rows, x)
                start = self.reference.distribution(rows)
                log_rho = log_prob - start.relative_log_prob(x)
                best, worst = log_rho.chunk(2)
                loss = preference_loss(best, worst, self.config.beta, dimensions, self.config.log_prob_reduction)
                yield loss
                meter.add(
                    {
                        "train/loss": loss,
                        "train/log_ratio_abs": log_rho.abs(),
                        "train/margin": best - worst,
                        "train/accuracy": (best > worst).float(),
                        "train/kl_to_start": now.kl(start) * len(steps),  # nats per image
                    }
                )
