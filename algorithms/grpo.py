"""GRPO and its relatives: DDPO with advantages in groups, trained at few steps, where the groups may branch.

Liu et al. 2025 (Flow-GRPO, arXiv 2505.05470) take each image's advantage among the images of its prompt. MixGRPO
(arXiv 2507.21802) and Flow-GRPO-Fast have noise, and a loss, in a window of few steps. Branched groups are one image
until the window (TempFlow-GRPO, arXiv 2508.04324), so that their rewards differ by that noise alone; and because they
are one row there, sampling takes ``(s + 1) / G + T - s - 1`` forwards per image and training 3 / G.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from algorithms.base import Requirements
from algorithms.chunks import SampledChunk
from algorithms.config.grpo import GRPOConfig as GRPOConfig
from algorithms.ddpo import DDPO
from algorithms.losses import importance_sampling_loss, masked_loss, output_scales, ratio_statistics
from algorithms.parallel.split import Split
from algorithms.rollouts import Rollout
from algorithms.seeding import TRAINING_STREAMS, Noise, Stream, generator
from algorithms.windows import Windows
from diffusion_gym.transitions import Gaussian, Transition


class GRPO(DDPO):
    """``GRPO("DiffusionDenoise-v0", window=1, branched=True, eta=0.0).learn(100_000)``."""

    config: GRPOConfig
    config_class = GRPOConfig

    @classmethod
    def requires(cls, config: GRPOConfig) -> Requirements:  # type: ignore[override]
        """Return what DDPO needs; with a window the policy's own steps may be without noise."""
        needs = super().requires(config)
        means = config.proximal == "mask" or config.centred_ratio
        return replace(needs, density=not config.window, means=means)

    def _setup_model(self) -> None:
        """Also find the steps that may lie in a window.

        Raises:
            ValueError: fewer than the window has, a stride past all of them, or ranks that would fall out of step.
        """
        config = self.config
        if self.ranks.sharded and config.window and config.images_per_prompt % self.ranks.size:
            raise ValueError(
                f"with windows and sharded weights (FSDP) images_per_prompt ({config.images_per_prompt}) must be a "
                f"multiple of the number of ranks ({self.ranks.size}), so that all ranks make equally many forward "
                "passes; choose another, or launch with --multi_gpu."
            )
        super()._setup_model()
        levels = [config.window_eta] * self.policy.num_inference_steps
        self._in_window = self.policy.with_noise(levels) if config.window else None
        steps = self.noisy.has_density.nonzero().flatten().tolist()
        low, high = (round(share * len(steps)) for share in config.window_range)
        #: The steps that may lie in a window.
        self.steps = steps[low:high]
        places = len(self.steps) - config.window + 1
        if places < 1:
            raise ValueError(
                f"a window of {config.window} steps does not fit in window_range {config.window_range}: of "
                f"{self.policy.num_inference_steps} steps {len(steps)} can have noise, {len(self.steps)} of them "
                "there. Take a smaller window, a wider range or more steps."
            )
        if config.window_stride >= max(2, places):
            raise ValueError(
                f"window_stride ({config.window_stride}) would not move the window, which has {places} places here; "
                "take a smaller stride, a smaller window or more steps."
            )

    @property
    def noisy(self) -> Transition:
        """What the trained steps are drawn with: a window's own noise, or without windows the policy's."""
        return self.policy.transition if self._in_window is None else self._in_window

    @property
    def step_weights(self) -> Tensor:
        """(T,), the factor of each step's loss."""
        if self.config.step_weight == "likelihood":
            return torch.ones_like(self.noisy.std)
        scales = output_scales(self.noisy)
        steps = self.steps if self.config.window else self.policy.trainable_steps
        return scales[steps].mean() / scales

    # -- sampling -----------------------------------------------------------------------------------------------------

    def assign(self) -> Tensor:
        """Deal the groups out to the updates at random, and keep each whole."""
        size = self.config.images_per_prompt
        source = generator(self.config.seed, Stream.UPDATES, self.iteration)
        groups = torch.randperm(self.config.images_per_iteration // size, generator=source)
        images = groups[:, None] * size + torch.arange(size)
        return images.reshape(self.config.updates_per_iteration, -1)

    def windows(self, images: Sequence[int], split: Split) -> Windows | None:
        """Place the groups' windows."""
        if not self.config.window:
            return None
        kept = torch.arange(len(images))[split.kept.start :: split.kept.step]
        groups = kept // self.config.images_per_prompt
        return Windows(
            self._places(len(images) // self.config.images_per_prompt)[groups],
            groups,
            self.config.window,
            self.config.branched,
            self.noisy,
        )

    def _places(self, groups: int) -> Tensor:
        """Return the first step of each group's window, (groups,), int64.

        At random they are evenly spread over the places: group by group at equal distances from a random start, in a
        random order, so that each group's is uniform and an iteration has all of them alike.
        """
        config = self.config
        places = torch.tensor(self.steps[: len(self.steps) - config.window + 1])
        if config.window_place == "sliding":
            places = places[:: config.window_stride]
            return places[self.iteration // config.window_every % len(places)].expand(groups)
        source = generator(config.seed, Stream.UPDATES, self.iteration, 0, 0)
        shares = (torch.rand(1, generator=source) + torch.randperm(groups, generator=source) / groups) % 1
        return places[(shares * len(places)).long().clamp(max=len(places) - 1)]

    def noise(self, images: Sequence[int]) -> Noise:
        """Return noise that branched groups share outside their window, and opposite pairs."""
        config = self.config
        shared = config.images_per_prompt if config.branched else 1
        return Noise(config.seed, TRAINING_STREAMS, images, shared, config.antithetic)

    # -- training -----------------------------------------------------------------------------------------------------

    def groups(self, rollout: Rollout) -> list[str]:
        """Return the images' prompts, or the groups that branched apart: two of one prompt began with other noise."""
        if not self.config.branched:
            return super().groups(rollout)
        return [str(image // self.config.images_per_prompt) for image in range(len(rollout))]

    def chunks(self, rollout: Rollout, update: int) -> Iterator[SampledChunk]:
        """Yield an update's transitions in windows, or all with noise."""
        if rollout.windows is None:
            return super().chunks(rollout, update)
        return rollout.window_chunks(update, self.policy.chunk_size)

    @property
    def _steps_with_density(self) -> int:
        return self.config.window or super()._steps_with_density

    @property
    def _steps_per_image(self) -> int:
        return self.config.window or super()._steps_per_image

    def surrogate(
        self, chunk: SampledChunk, new: Tensor, gaussian: Gaussian, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clipped or masked loss of a chunk's images, weighted by their step; see :meth:`DDPO.surrogate`."""
        config, dimensions, reduction = self.config, gaussian.dimensions, self.config.log_prob_reduction
        weight, old, seen = self.step_weights[chunk.step], chunk.log_prob, dict[str, Tensor]()
        kl = None if chunk.mean is None else gaussian.kl(replace(gaussian, mean=chunk.mean))
        if config.centred_ratio:  # log ratio + |mu - mu_old|^2 / (2 s^2), which is 0 on average, times s
            assert kl is not None
            new, old = (new - old + kl) * gaussian.std, torch.zeros_like(old)
        if config.proximal == "mask":
            assert kl is not None
            loss, masked = masked_loss(new, old, advantages, dimensions, reduction, kl, config.mask_kl)
            seen = {"train/masked": masked.float(), "train/kl_to_old": kl, "train/clip_fraction": torch.zeros_like(kl)}
        else:
            loss = importance_sampling_loss(new, old, advantages, dimensions, reduction, config.clip_range)
            seen["train/clip_fraction"] = ratio_statistics(new, old, advantages, config.clip_range).clipped
        return weight * loss, seen
