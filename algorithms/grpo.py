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
from algorithms.losses import importance_sampling_loss, masked_loss, output_scales
from algorithms.parallel.split import Split
from algorithms.rollouts import Rollout
from algorithms.seeding import TRAINING_STREAMS, Noise, Stream, generator
from algorithms.windows import Windows
from diffusion_gym.transitions import Gaussian


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
            ValueError: fewer than the window has.
        """
        super()._setup_model()
        config, policy = self.config, self.policy
        #: What steps in the window are drawn with; without a window, and outside it, the policy's.
        self.noisy = policy.with_noise(config.window_eta) if config.window else policy.transition
        steps = self.noisy.has_density.nonzero().flatten().tolist()
        low, high = (round(share * len(steps)) for share in config.window_range)
        #: The steps that may lie in a window.
        self.steps = steps[low:high]
        if len(self.steps) < config.window:
            raise ValueError(
                f"a window of {config.window} steps does not fit in window_range {config.window_range}: of "
                f"{policy.num_inference_steps} steps {len(steps)} can have noise, {len(self.steps)} of them there. "
                "Take a smaller window, a wider range or more steps."
            )
        scales = output_scales(self.noisy)
        equal = scales[self.steps].mean() / scales
        #: (T,), the factor of each step's loss.
        self.step_weights = equal if config.step_weight == "equal" else torch.ones_like(scales)

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
            moved = self.iteration // config.window_every * config.window_stride
            return places[moved % len(places)].expand(groups)
        source = generator(config.seed, Stream.UPDATES, self.iteration, 0, 0)
        shares = (torch.rand(1, generator=source) + torch.randperm(groups, generator=source) / groups) % 1
        return places[(shares * len(places)).long().clamp(max=len(places) - 1)]

    def noise(self, images: Sequence[int]) -> Noise:
        """Return noise that branched groups share before their window, and opposite pairs."""
        config = self.config
        shared = config.images_per_prompt if config.branched else 1
        return Noise(config.seed, TRAINING_STREAMS, images, shared, config.antithetic)

    # -- training -----------------------------------------------------------------------------------------------------

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
            seen = {"train/masked": masked.float(), "train/kl_to_old": kl}
        else:
            loss = importance_sampling_loss(new, old, advantages, dimensions, reduction, config.clip_range)
        return weight * loss, seen
