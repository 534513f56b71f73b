"""Rollouts: the policy denoises images in the environment, the reward scores them, and the trajectories are stored.

Each rank samples its own images and keeps their latents; every rank has the prompts and rewards of all images.

Images are assigned to updates before they are sampled, and a forward pass never takes images of two updates. So an
update scores the very chunks that were sampled: the same images, in the same order and number, at the same step, from
the same memory. Kernels then round as they did in sampling, and before the first step of the optimizer every
importance ratio is exactly 1, on any processor whose kernels are deterministic.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from algorithms.chunks import Pass, SampledChunk
from algorithms.parallel.split import Split
from algorithms.policy import DenoisingPolicy, Rows
from algorithms.windows import Windows
from diffusion_gym.models import Conditioning
from diffusion_gym.prompt_records import Prompt
from diffusion_gym.rewards import Scores


@dataclass(frozen=True)
class Rollout:
    """n finished images, m of which are kept on this rank (all of them in one process), on the model's device.

    Attributes:
        latents: (T + 1, m, c, h, w), float32, from noise to x_0; of an endpoint rollout (1, m, c, h, w), x_0 alone.
        log_probs: (T, m), float32, joint log-density of each step relative to its mean, nats (see
            :meth:`Gaussian.relative_log_prob`); NaN where it has none; empty for endpoints.
        conditioning: name -> (m, ...), one row per image: the denoiser's inputs beside latents and time.
        records: n prompts.
        rewards: (n,), float32.
        images: (m, 3, H, W), uint8.
        split: which of the n images are kept here.
        round_size: images that were sampled side by side on this rank.
        updates: how many updates the images are assigned to, equally many neighbours to each.
        parts: of a combined reward, name -> (n,), float32: each reward's own scores.
        kl_to_start: (n,), float32, where it was measured: the sum over the steps of the exact KL to the starting model,
            nats.
        windows: which steps have noise of their own, where not all are drawn alike.
        means: (T, m, c, h, w), float32, of the Gaussians that were drawn from, where they are kept.
    """

    latents: Tensor
    log_probs: Tensor
    conditioning: Conditioning
    records: list[Prompt]
    rewards: Tensor
    images: Tensor
    split: Split
    round_size: int
    updates: int = 1
    parts: dict[str, Tensor] = field(default_factory=dict)
    kl_to_start: Tensor | None = None
    windows: Windows | None = None
    means: Tensor | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.records)

    @cached_property
    def prompts(self) -> list[str]:
        """N texts, which several records may share."""
        return [record.text for record in self.records]

    @cached_property
    def keys(self) -> list[str]:
        """What tells the n records apart, for statistics and groups; of a prompt that is only a text the text."""
        return [record.key for record in self.records]

    @property
    def is_whole(self) -> bool:
        """Whether all latents are kept, or the finished ones alone."""
        return len(self.log_probs) > 0

    @property
    def final_latents(self) -> Tensor:
        """x_0, (m, c, h, w)."""
        return self.latents[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (
            self.latents,
            self.log_probs,
            *self.conditioning.values(),
            self.rewards,
            self.images,
            *self.parts.values(),
            *(tensor for tensor in (self.kl_to_start, self.means) if tensor is not None),
        )
        return sum(tensor.nbytes for tensor in tensors)

    def assigned(self, update: int) -> range:
        """Return the images of an update, of all ranks."""
        size = len(self) // self.updates
        return range(update * size, (update + 1) * size)

    def chunks(self, update: int, size: int, rank: int | None = None) -> list[slice]:
        """Return the positions of an update's images on this rank (or another), one slice per forward pass.

        Args:
            update: from 0.
            size: images per chunk.
            rank: this one if None.
        """
        return self.split.runs(self.assigned(update), size, self.round_size, rank)

    def passes(self, images: slice, step: int, size: int) -> Iterator[Pass]:
        """Yield the forward passes that sample one step of images kept here.

        Args:
            images: of whole rounds.
            step: from 0, the noisiest.
            size: rows per pass.
        """
        for update in range(self.updates):
            for chunk in self.chunks(update, size if self.windows is None else len(self)):
                if not images.start <= chunk.start < images.stop:
                    continue
                if self.windows is None:
                    yield Pass(chunk, chunk)
                else:  # the images of one update and round
                    for inside in (True, False):
                        yield from self.windows.passes(chunk, step, size, inside)

    def rows_sampled(self, steps: int) -> int:
        """Return how many rows all ranks' forward passes take to sample the images in T ``steps``. Collective."""
        if self.windows is None:
            return len(self) * steps
        regions = [region for update in range(self.updates) for region in self.chunks(update, len(self))]
        mine = sum(self.windows.num_rows(region, step) for region in regions for step in range(steps))
        return sum(self.split.ranks.gather_objects(mine))

    def rows_in_windows(self, update: int) -> int:
        """Return how many rows all ranks' forward passes take for an update's transitions in windows. Collective."""
        assert self.windows is not None
        steps, regions = range(len(self.log_probs)), self.chunks(update, len(self))
        mine = sum(self.windows.num_rows(region, step, inside=True) for region in regions for step in steps)
        return sum(self.split.ranks.gather_objects(mine))

    def rows(self, images: slice | Tensor, step: int) -> Rows:
        """Return one step's rows of a chunk of images; they may share the rollout's memory."""
        latents = self.latents[step if self.is_whole else -1, images]
        index = torch.full((len(latents),), step, dtype=torch.long, device=latents.device)
        return Rows(latents, index, {name: value[images] for name, value in self.conditioning.items()})

    def sampled_chunks(
        self, update: int, size: int, steps: Sequence[int], draw: Callable[[slice], Sequence[int]] | None = None
    ) -> Iterator[SampledChunk]:
        """Yield this rank's transitions of an update, each chunk as it was sampled.

        Args:
            update: from 0.
            size: images per chunk.
            steps: the steps that are trained on.
            draw: returns those of one chunk's images instead, equally many of ``steps`` for each chunk.
        """
        chunks = self.chunks(update, size)
        mine = [(Pass(images, images), step) for images in chunks for step in (steps if draw is None else draw(images))]
        yield from self._sampled(mine, steps[0])

    def window_chunks(self, update: int, size: int) -> Iterator[SampledChunk]:
        """Yield this rank's transitions of an update that lie in windows, each chunk as it was sampled."""
        assert self.windows is not None
        steps, regions = range(len(self.log_probs)), self.chunks(update, len(self))
        mine = [(p, step) for r in regions for step in steps for p in self.windows.passes(r, step, size, inside=True)]
        yield from self._sampled(mine, 0)

    def _sampled(self, passes: Sequence[tuple[Pass, int]], blank: int) -> Iterator[SampledChunk]:
        """Yield the chunks of passes and their steps; ``blank`` is the step of those that only keep ranks in step."""
        one = slice(0, 1)
        for (p, step), weight in self.split.in_step(passes, (Pass(one, one), blank)):
            yield SampledChunk(
                p.images,
                self.rows(p.rows, step),
                self.latents[step + 1, p.images],
                self.log_probs[step, p.images],
                weight,
                step,
                p.copies,
                p.transition,
                None if self.means is None else self.means[step, p.images],
            )

    def rewarded(self, scores: Scores) -> "Rollout":
        """Return the rollout with scores and KL of all ranks' images, given those of the images here. Collective."""
        return replace(
            self,
            rewards=self.split.gather(scores.rewards).to(self.rewards),
            parts={name: self.split.gather(part) for name, part in scores.parts.items()},
            kl_to_start=None if self.kl_to_start is None else self.split.gather(self.kl_to_start),
        )

    @classmethod
    def empty(
        cls,
        policy: DenoisingPolicy,
        records: Sequence[Prompt],
        whole_trajectory: bool,
        device: torch.device | str | None = None,
        split: Split | None = None,
        round_size: int | None = None,
        updates: int = 1,
        measures_kl: bool = False,
        keeps_means: bool = False,
        windows: Windows | None = None,
    ) -> "Rollout":
        """Allocate storage for one image per record, on the policy's device or on another such as "meta".

        Raises:
            ValueError: the number of updates does not divide that of the images.
        """
        if len(records) % updates:
            raise ValueError(
                f"{len(records)} images cannot be assigned to {updates} updates equally; choose a divisor."
            )
        split = Split.alone(len(records)) if split is None else split
        model, n, steps = policy.model, len(split.kept), policy.num_inference_steps

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=model.device if device is None else device)

        return cls(
            latents=new(steps + 1 if whole_trajectory else 1, n, *model.latent_shape),
            log_probs=new(steps if whole_trajectory else 0, n),
            conditioning={name: new(n, *shape, dtype=dtype) for name, (shape, dtype) in policy.conditioning.items()},
            records=list(records),
            rewards=new(len(records)),
            images=new(n, *model.image_shape, dtype=torch.uint8),
            split=split,
            round_size=n if round_size is None else round_size,
            updates=updates,
            kl_to_start=new(n).zero_() if measures_kl else None,
            means=new(steps, n, *model.latent_shape) if keeps_means else None,
            windows=windows,
        )
