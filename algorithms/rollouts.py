"""Rollouts: the policy denoises images in the environment, and what the algorithm needs of it is kept.

Each rank denoises its own images and keeps their latents; prompts and rewards are kept of all images on every rank.

Images are assigned to updates before they are sampled, and a forward pass never takes images of two updates. So an
update scores the very chunks that were sampled: the same images, in the same order and number, at the same step, from
the same memory. Kernels then round as they did, and before the first step of the optimizer every importance ratio is
exactly 1, on any processor whose kernels are deterministic.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from algorithms.parallel.split import Chunk, Split
from algorithms.policy import DenoisingPolicy, Rows
from algorithms.reference import Reference
from algorithms.sb3.callback_locals import Step
from algorithms.scoring import RolloutScorer
from algorithms.seeding import Stream, derive_seed, generator
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.models import Conditioning
from diffusion_gym.transitions import Gaussian


@dataclass(frozen=True)
class Rollout:
    """n finished images, m of which lie here (all in one process). Time-major, on the model's device.

    Attributes:
        latents: (T + 1, m, c, h, w), float32, from noise to x_0; of an endpoint rollout (1, m, c, h, w), x_0 alone.
        log_probs: (T, m), float32, joint log-density of each step relative to its mean, nats (see
            :meth:`Gaussian.relative_log_prob`); NaN where it has none; empty for endpoints.
        conditioning: name -> (m, ...), once an image: what the policy's denoiser is given.
        prompts: n texts.
        rewards: (n,), float32.
        images: (m, 3, H, W), uint8.
        split: which of the n images lie here.
        round_size: images that were denoised side by side here.
        updates: how many updates the images are assigned to, equally many neighbours to each.
        parts: of a combined reward, name -> (n,), float32: each reward's own scores.
        kl_to_start: (n,), float32, where it was measured: the sum over the steps of the exact KL to the starting model,
            nats.
    """

    latents: Tensor
    log_probs: Tensor
    conditioning: Conditioning
    prompts: list[str]
    rewards: Tensor
    images: Tensor
    split: Split
    round_size: int
    updates: int = 1
    parts: dict[str, Tensor] = field(default_factory=dict)
    kl_to_start: Tensor | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.prompts)

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
            *([] if self.kl_to_start is None else [self.kl_to_start]),
        )
        return sum(tensor.nbytes for tensor in tensors)

    def assigned(self, update: int) -> range:
        """The images of an update, of all ranks."""
        size = len(self) // self.updates
        return range(update * size, (update + 1) * size)

    def chunks(self, update: int, size: int, rank: int | None = None) -> list[slice]:
        """Where an update's images lie on this rank (or another), in the chunks that one forward pass takes.

        Args:
            update: from 0.
            size: largest number of images of a chunk.
            rank: this one if None.
        """
        return self.split.runs(self.assigned(update), size, self.round_size, rank)

    def all_chunks(self, size: int) -> list[slice]:
        """:meth:`chunks` of all updates, which are all images here."""
        return [chunk for update in range(self.updates) for chunk in self.chunks(update, size)]

    def rows(self, images: slice, step: int) -> Rows:
        """One step's transitions of a chunk of images, which may share the rollout's memory."""
        latents = self.latents[step if self.is_whole else -1, images]
        index = torch.full((len(latents),), step, dtype=torch.long, device=latents.device)
        return Rows(latents, index, {name: value[images] for name, value in self.conditioning.items()})

    def training_chunks(self, update: int, size: int, steps: Callable[[slice], Sequence[int]]) -> Iterator[Chunk]:
        """Yield this rank's transitions of an update, each chunk as it was sampled.

        As with :meth:`Split.parts` every rank yields equally many, and the last one synchronises gradients.

        Args:
            update: from 0.
            size: largest number of images of a chunk.
            steps: which steps of a chunk are trained on, equally many of each.
        """
        ranks = self.split.ranks
        mine = [(images, step) for images in self.chunks(update, size) for step in steps(images)]
        most = max(len(self.chunks(update, size, rank)) for rank in range(ranks.size))
        passes = most * len(steps(slice(0, 1)))
        for number in range(passes):
            synchronises = number == passes - 1 and not ranks.votes
            if number < len(mine):
                yield Chunk(*mine[number], ranks.size, synchronises)
            else:
                yield Chunk(slice(0, 1), 0, 0, synchronises)
        if ranks.votes:
            yield Chunk(slice(0, 1), 0, 0, True)

    @classmethod
    def empty(
        cls,
        policy: DenoisingPolicy,
        prompts: Sequence[str],
        whole_trajectory: bool,
        device: torch.device | str | None = None,
        split: Split | None = None,
        round_size: int | None = None,
        updates: int = 1,
    ) -> "Rollout":
        """Allocate the storage for one image a prompt; on the policy's device, if no other (as "meta") is named."""
        split = Split.alone(len(prompts)) if split is None else split
        model, n, steps = policy.model, len(split.kept), policy.num_inference_steps

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=model.device if device is None else device)

        return cls(
            latents=new(steps + 1 if whole_trajectory else 1, n, *model.latent_shape),
            log_probs=new(steps if whole_trajectory else 0, n),
            conditioning={name: new(n, *shape, dtype=dtype) for name, (shape, dtype) in policy.conditioning.items()},
            prompts=list(prompts),
            rewards=new(len(prompts)),
            images=new(n, *model.image_shape, dtype=torch.uint8),
            split=split,
            round_size=n if round_size is None else round_size,
            updates=updates,
        )


@torch.no_grad()
def rescore(rollout: Rollout, policy: DenoisingPolicy) -> None:
    """Compute the stored log-densities again, in the policy's present chunks; its weights must be those that sampled.

    Steps without a density, and rollouts of endpoints, stay as they are.
    """
    if not rollout.is_whole:
        return
    for images in rollout.all_chunks(policy.chunk_size):
        for step in policy.trainable_steps.tolist():
            rows, next_latents = rollout.rows(images, step), rollout.latents[step + 1, images]
            rollout.log_probs[step, images] = policy.log_prob(rows, next_latents)[0]


OnStep = Callable[[Step], bool]


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """Training is to stop in the middle of a rollout, an update or an evaluation, which then never happened."""


@dataclass(frozen=True)
class _KL:
    """Adds up the KL to the starting model over a rollout's steps.

    Attributes:
        reference: the starting model.
        nats: (m,), float32, of the images here, so far.
    """

    reference: Reference
    nats: Tensor

    def add(self, images: slice, rows: Rows, gaussian: Gaussian) -> None:
        """Add one step's of a chunk."""
        self.nats[images] += self.reference.kl(rows, gaussian)


def collect(
    env: DenoiseVectorEnv,
    policy: DenoisingPolicy,
    prompts: Sequence[str],
    seed: int,
    images: Sequence[int] | None = None,
    *,
    updates: int = 1,
    whole_trajectory: bool = True,
    streams: tuple[Stream, Stream] = (Stream.INITIAL_LATENTS, Stream.STEP_NOISE),
    on_step: OnStep | None = None,
    score_beside: bool = False,
    reference: Reference | None = None,
    split: Split | None = None,
) -> Rollout:
    """Denoise ``len(prompts)`` images in rounds of ``env.num_envs``, the last one of as many as are left.

    Noise is keyed by (seed, image), so any split over environments, updates and ranks draws the same noise.

    Args:
        env: torch output, autoreset disabled.
        policy: on the environment's model.
        prompts: one text an image.
        seed: the run's seed.
        images: the run's number of each image, from 0; None counts from 0.
        updates: how many updates the images are assigned to, equally many neighbours to each; a forward pass takes
            images of one update, at most ``policy.chunk_size``.
        whole_trajectory: keep all latents and log-probs, or the endpoints alone.
        streams: of the initial latents and of the steps' noise.
        on_step: called after every step of the environments; False stops.
        score_beside: score each round's images in a thread while the next round is sampled; same results.
        reference: the starting model, if the KL to it is to be measured; a forward more a row.
        split: which images are denoised here; None is all of them. Every rank must collect at the same time.

    Raises:
        ValueError: the number of updates does not divide that of the images.
        Interrupted: ``on_step`` returned False, here or on another rank.
        RewardError: the reward failed, here or on another rank.
        RankError: another rank is lost.
    """
    if len(prompts) % updates:
        raise ValueError(f"{len(prompts)} images cannot be assigned to {updates} updates equally; choose a divisor.")
    split = Split.alone(len(prompts)) if split is None else split
    numbers = range(len(prompts)) if images is None else images
    env.mdp.prompt_cache(prompts)  # all of them on every rank: one that cannot be encoded fails on all at once
    rollout = Rollout.empty(policy, prompts, whole_trajectory, split=split, round_size=env.num_envs, updates=updates)
    kl = None if reference is None else _KL(reference, torch.zeros(len(split.kept), device=rollout.rewards.device))
    scorer, ordinary = RolloutScorer(score_beside), env.mdp.scorer
    env.mdp.scorer = scorer
    try:
        for start in range(0, len(split.kept), env.num_envs):
            left = len(split.kept) - start
            fitting = env if left >= env.num_envs else DenoiseVectorEnv.sharing(env.mdp, left, late_checks=True)
            _round(fitting, policy, rollout, start, seed, numbers, streams, on_step, scorer, kl)
        scores = split.ranks.call(scorer.result)
    finally:
        env.mdp.scorer = ordinary
        scorer.close()
    rollout.rewards.copy_(split.gather(scores.rewards))
    rollout.parts.update({name: split.gather(part) for name, part in scores.parts.items()})
    return rollout if kl is None else replace(rollout, kl_to_start=split.gather(kl.nats))


def _round(
    env: DenoiseVectorEnv,
    policy: DenoisingPolicy,
    rollout: Rollout,
    start: int,
    seed: int,
    numbers: Sequence[int],
    streams: tuple[Stream, Stream],
    on_step: OnStep | None,
    scorer: RolloutScorer,
    kl: _KL | None,
) -> None:
    """One episode in every environment, written to the rollout's images here from ``start`` on."""
    mine = slice(start, start + env.num_envs)
    kept = rollout.split.kept[mine]
    seeds = [derive_seed(seed, streams[0], numbers[i]) for i in kept]
    observation, _ = env.reset(seed=seeds, options={"prompts": [rollout.prompts[i] for i in kept]})
    sources = [generator(seed, streams[1], numbers[i]) for i in kept]
    for name, stored in rollout.conditioning.items():
        stored[mine] = observation[name]
    rollout.latents[0, mine] = observation["latent"]
    chunks = [chunk for chunk in rollout.all_chunks(policy.chunk_size) if mine.start <= chunk.start < mine.stop]

    for t in range(env.num_inference_steps):
        noise = torch.stack([torch.randn(rollout.latents.shape[2:], generator=source) for source in sources])
        noise = noise.to(rollout.latents.device, non_blocking=True)

        def step(t: int = t, noise: Tensor = noise) -> tuple[dict[str, Any], bool]:
            after = t + 1 if rollout.is_whole else -1
            for chunk in chunks:
                with torch.no_grad():
                    rows = rollout.rows(chunk, t)
                    gaussian = policy.distribution(rows)
                    if kl is not None:
                        kl.add(chunk, rows, gaussian)
                    x = gaussian.sample(noise[chunk.start - start : chunk.stop - start])
                    rollout.latents[after, chunk] = x
                    if rollout.is_whole:
                        rollout.log_probs[t, chunk] = gaussian.relative_log_prob(x)
            observation, _, _, _, info = env.step(rollout.latents[after, mine])
            scorer.check()
            if on_step is None:
                return info, True
            ended = t == env.num_inference_steps - 1
            return info, on_step(Step(observation["latent"], observation, info, scorer.latest if ended else None))

        info, going = rollout.split.ranks.call(step)
        if not rollout.split.ranks.all(going):
            raise Interrupted
    rollout.images[mine] = info["image"]
