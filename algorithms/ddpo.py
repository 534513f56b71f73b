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
    """Share of each image's denoising steps that is trained on, drawn anew for each image."""
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

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """DDPO-SF without importance sampling."""
        return "ddpo-is" if changes.get("importance_sampling", True) else "ddpo-sf"


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
