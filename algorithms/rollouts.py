"""Rollouts: the policy denoises images in the environment, and what the algorithm needs of it is kept.

Of several ranks each denoises its own images and keeps what is large; prompts and rewards are those of all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from algorithms.policy import DenoisingPolicy, Rows
from algorithms.reference import Reference
from algorithms.scoring import RolloutScorer
from algorithms.seeding import Stream, derive_seed, generator
from algorithms.split import Split
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.models import Conditioning
from diffusion_gym.transitions import Gaussian


@dataclass(frozen=True)
class Rollout:
    """n finished images, m of which lie here (all in one process). Time-major, on the model's device.

    Attributes:
        latents: (T + 1, m, c, h, w), float32, from noise to x_0; of an endpoint rollout (1, m, c, h, w), x_0 alone.
        log_probs: (T, m), float32, joint log-density of each step; NaN where it has none; empty for endpoints.
        conditioning: name -> (m, ...), once an image: what the policy's denoiser is given.
        prompts: n texts.
        rewards: (n,), float32.
        images: (m, 3, H, W), uint8.
        split: which of the n images lie here.
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
    parts: dict[str, Tensor] = field(default_factory=dict)
    kl_to_start: Tensor | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.prompts)

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

    def rows(self, images: Tensor, steps: Tensor) -> tuple[Rows, Tensor, Tensor]:
        """Fold time into the batch: the transitions (images[i], steps[i]).

        Args:
            images: (k,), int64, indices among all n of images that lie here.
            steps: (k,), int64, indices of steps.

        Returns:
            The rows, their next latents (k, c, h, w) and their stored log-densities (k,).
        """
        here = self.split.local(images)
        rows = Rows(self.latents[steps, here], steps, {name: value[here] for name, value in self.conditioning.items()})
        return rows, self.latents[steps + 1, here], self.log_probs[steps, here]

    @classmethod
    def empty(
        cls,
        policy: DenoisingPolicy,
        prompts: Sequence[str],
        whole_trajectory: bool,
        device: torch.device | str | None = None,
        split: Split | None = None,
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
        )


@torch.no_grad()
def rescore(rollout: Rollout, policy: DenoisingPolicy) -> None:
    """Compute the stored log-densities again, in the policy's present chunks; its weights must be those that sampled.

    Steps without a density, and rollouts of endpoints, stay as they are.
    """
    images = rollout.split.kept.to(rollout.latents.device)
    for step in policy.trainable_steps.tolist() if len(rollout.log_probs) else ():
        rows, next_latents, _ = rollout.rows(images, torch.full_like(images, step))
        for part, chunk in policy.chunks(rows):
            rollout.log_probs[step, part] = policy.log_prob(chunk, next_latents[part])[0]


OnStep = Callable[[Tensor], bool]


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

    def adder(self, images: slice) -> Callable[[slice, Rows, Gaussian], None]:
        """Return what :meth:`DenoisingPolicy.sample` is to do with each chunk of these images' rows."""

        def add(part: slice, chunk: Rows, gaussian: Gaussian) -> None:
            self.nats[images][part] += self.reference.kl(chunk, gaussian)[: part.stop - part.start]

        return add


def collect(
    env: DenoiseVectorEnv,
    policy: DenoisingPolicy,
    prompts: Sequence[str],
    seed: int,
    first_image: int = 0,
    *,
    whole_trajectory: bool = True,
    streams: tuple[Stream, Stream] = (Stream.INITIAL_LATENTS, Stream.STEP_NOISE),
    on_step: OnStep | None = None,
    score_beside: bool = False,
    reference: Reference | None = None,
    split: Split | None = None,
) -> Rollout:
    """Denoise ``len(prompts)`` images in rounds of ``env.num_envs``, the last one of as many as are left.

    Noise is keyed by (seed, global image index), so any split over environments and ranks draws the same images.

    Args:
        env: torch output, autoreset disabled.
        policy: on the environment's model.
        prompts: one text an image.
        seed: the run's seed.
        first_image: global index of the first image.
        whole_trajectory: keep all latents and log-probs, or the endpoints alone.
        streams: of the initial latents and of the steps' noise.
        on_step: called after every step of the environments with ``dones`` (n,); False stops.
        score_beside: score each round's images in a thread while the next round is sampled; same results.
        reference: the starting model, if the KL to it is to be measured; a forward more a row.
        split: which images are denoised here; None is all of them. Every rank must collect at the same time.

    Raises:
        Interrupted: ``on_step`` returned False, here or on another rank.
        RewardError: the reward failed, here or on another rank.
        RankError: another rank is lost.
    """
    split = Split.alone(len(prompts)) if split is None else split
    env.mdp.prompt_cache(prompts)  # all of them on every rank: one that cannot be encoded fails on all at once
    rollout = Rollout.empty(policy, prompts, whole_trajectory, split=split)
    kl = None if reference is None else _KL(reference, torch.zeros(len(split.kept), device=rollout.rewards.device))
    scorer, ordinary = RolloutScorer(score_beside), env.mdp.scorer
    env.mdp.scorer = scorer
    try:
        for start in range(0, len(split.kept), env.num_envs):
            left = len(split.kept) - start
            fitting = env if left >= env.num_envs else DenoiseVectorEnv.sharing(env.mdp, left)
            _round(fitting, policy, rollout, start, seed, first_image, streams, on_step, scorer, kl)
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
    first_image: int,
    streams: tuple[Stream, Stream],
    on_step: OnStep | None,
    scorer: RolloutScorer,
    kl: _KL | None,
) -> None:
    """One episode in every environment, written to the rollout's images here from ``start`` on."""
    n, mine, whole = env.num_envs, slice(start, start + env.num_envs), len(rollout.log_probs) > 0
    images = rollout.split.kept[mine].tolist()
    seeds = [derive_seed(seed, streams[0], first_image + i) for i in images]
    observation, _ = env.reset(seed=seeds, options={"prompts": [rollout.prompts[i] for i in images]})
    sources = [generator(seed, streams[1], first_image + i) for i in images]
    conditioning = {name: observation[name] for name in rollout.conditioning}
    for name, value in conditioning.items():
        rollout.conditioning[name][mine] = value
    x = observation["latent"]
    if whole:
        rollout.latents[0, mine] = x

    for t in range(env.num_inference_steps):
        noise = torch.stack([torch.randn(x.shape[1:], generator=source) for source in sources]).to(x.device)
        rows = Rows(x, torch.full((n,), t, dtype=torch.long, device=x.device), conditioning)

        def step(rows: Rows = rows, noise: Tensor = noise) -> tuple[Tensor, Tensor, dict[str, Any], bool]:
            x, log_prob = policy.sample(rows, noise, None if kl is None else kl.adder(mine))
            _, _, dones, _, info = env.step(x)
            scorer.check()
            return x, log_prob, info, on_step is None or on_step(dones)

        x, log_prob, info, going = rollout.split.ranks.call(step)
        if whole:
            rollout.latents[t + 1, mine], rollout.log_probs[t, mine] = x, log_prob
        if not rollout.split.ranks.all(going):
            raise Interrupted
    rollout.latents[-1, mine] = x
    rollout.images[mine] = info["image"]
