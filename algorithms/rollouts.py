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

from algorithms.parallel.split import Split
from algorithms.policy import DenoisingPolicy, Rows
from algorithms.reference import Reference
from algorithms.sb3.callback_locals import Step
from algorithms.scoring import Scoring
from algorithms.seeding import TRAINING_STREAMS, Noise, Streams
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.models import Conditioning
from diffusion_gym.prompt_records import Prompt, PromptLike, as_prompt
from diffusion_gym.rewards import Scores

#: Called after every step of the environments; False stops.
OnStep = Callable[[Step], bool]


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """Training is to stop in a rollout or an evaluation, which is dropped."""


@dataclass(frozen=True)
class SampledChunk:
    """Transitions of one step that were sampled in one forward pass, and are scored again in one.

    Attributes:
        images: positions of its m images among those kept on this rank.
        rows: x_t, step and conditioning, m rows.
        next_latents: (m, c, h, w), float32, x_{t-1} as it was sampled.
        log_prob: (m,), float32, log-density of x_{t-1} under the policy that sampled, as :attr:`Rollout.log_probs`.
        weight: multiplies the chunk's loss: 1, or 0 where the pass only keeps ranks in step.
    """

    images: slice
    rows: Rows
    next_latents: Tensor
    log_prob: Tensor
    weight: int


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
            *([] if self.kl_to_start is None else [self.kl_to_start]),
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

    def all_chunks(self, size: int) -> list[slice]:
        """Return :meth:`chunks` of all updates: all images kept here."""
        return [chunk for update in range(self.updates) for chunk in self.chunks(update, size)]

    def rows(self, images: slice | Tensor, step: int) -> Rows:
        """Return one step's rows of images, by their positions here; of a slice they share the rollout's memory."""
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
        mine = [(images, step) for images in chunks for step in (steps if draw is None else draw(images))]
        for (images, step), weight in self.split.in_step(mine, (slice(0, 1), steps[0])):
            rows, next_latents = self.rows(images, step), self.latents[step + 1, images]
            yield SampledChunk(images, rows, next_latents, self.log_probs[step, images], weight)

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
        prompts: Sequence[PromptLike],
        whole_trajectory: bool,
        device: torch.device | str | None = None,
        split: Split | None = None,
        round_size: int | None = None,
        updates: int = 1,
        measures_kl: bool = False,
    ) -> "Rollout":
        """Allocate storage for one image per prompt, on the policy's device or on another such as "meta".

        Raises:
            ValueError: the number of updates does not divide that of the images.
        """
        if len(prompts) % updates:
            raise ValueError(
                f"{len(prompts)} images cannot be assigned to {updates} updates equally; choose a divisor."
            )
        split = Split.alone(len(prompts)) if split is None else split
        model, n, steps = policy.model, len(split.kept), policy.num_inference_steps

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=model.device if device is None else device)

        return cls(
            latents=new(steps + 1 if whole_trajectory else 1, n, *model.latent_shape),
            log_probs=new(steps if whole_trajectory else 0, n),
            conditioning={name: new(n, *shape, dtype=dtype) for name, (shape, dtype) in policy.conditioning.items()},
            records=[as_prompt(prompt, "a prompt") for prompt in prompts],
            rewards=new(len(prompts)),
            images=new(n, *model.image_shape, dtype=torch.uint8),
            split=split,
            round_size=n if round_size is None else round_size,
            updates=updates,
            kl_to_start=new(n).zero_() if measures_kl else None,
        )


def collect(
    env: DenoiseVectorEnv,
    policy: DenoisingPolicy,
    prompts: Sequence[PromptLike],
    seed: int,
    images: Sequence[int] | None = None,
    *,
    updates: int = 1,
    whole_trajectory: bool = True,
    streams: Streams = TRAINING_STREAMS,
    on_step: OnStep | None = None,
    score_beside: bool = False,
    reference: Reference | None = None,
    split: Split | None = None,
) -> Rollout:
    """Denoise and score one image per prompt, ``env.num_envs`` images at a time. Collective.

    Args:
        env: its reward and prompt encoder are used.
        policy: on the environment's model.
        prompts: n texts or records.
        seed: keys all noise, with the image's number: any split over ranks and rounds draws the same.
        images: the run's number of each image; None counts from 0.
        updates: how many updates the images are assigned to, equally many neighbours to each.
        whole_trajectory: store all latents and log-probabilities, or the finished latents alone.
        streams: of the initial latents and of the steps' noise.
        on_step: called after every step of the environments; False stops.
        score_beside: score each round's images in a thread while the next round is sampled; same results.
        reference: the starting model, if the KL to it is to be measured: one more forward per row.
        split: which images are sampled on this rank; None is all of them.

    Raises Interrupted where ``on_step`` returned False; RewardError or RankError where a rank failed.
    """
    split, kl = split or Split.alone(len(prompts)), reference is not None
    records = env.mdp.usable(prompts)  # all prompts on every rank: one that cannot be encoded fails on all at once
    rollout = Rollout.empty(policy, records, whole_trajectory, None, split, env.num_envs, updates, kl)
    noise = Noise(seed, streams, range(len(prompts)) if images is None else images)
    with Scoring(env.mdp.reward, score_beside) as scoring:

        def sample() -> tuple[bool, Scores]:
            going = True
            for start in range(0, len(split.kept), env.num_envs):
                step = on_step if going else None
                going &= _sample_round(env, policy, rollout, start, noise, scoring, step, reference)
            return going, scoring.result()

        going, scores = split.ranks.call(sample)
    if not split.ranks.all(going):
        raise Interrupted
    return rollout.rewarded(scores)


def _sample_round(
    env: DenoiseVectorEnv,
    policy: DenoisingPolicy,
    rollout: Rollout,
    start: int,
    noise: Noise,
    scoring: Scoring,
    on_step: OnStep | None,
    reference: Reference | None,
) -> bool:
    """Sample the images kept here from ``start`` on, one in each environment; False where ``on_step`` did.

    Several ranks finish the rollout first, so that they stop together.
    """
    kept, alone = rollout.split.kept[start : start + env.num_envs], rollout.split.ranks.size == 1
    mine, records = slice(start, start + len(kept)), [rollout.records[i] for i in kept]
    if env.num_envs != len(kept) or not env.mdp.trusted:
        env = DenoiseVectorEnv.sharing(env.mdp, len(kept), trusted=True)
    observation, _ = env.reset(seed=noise.seeds(kept), options={"prompts": records})
    rollout.latents[0, mine] = observation["latent"]
    for name, stored in rollout.conditioning.items():
        stored[mine] = observation[name]
    chunks = [chunk for chunk in rollout.all_chunks(policy.chunk_size) if mine.start <= chunk.start < mine.stop]
    sources, going = noise.sources(kept), True
    for t in range(env.num_inference_steps):
        z = torch.stack([torch.randn(rollout.latents.shape[2:], generator=source) for source in sources])
        z = z.to(rollout.latents.device, non_blocking=True)
        after = t + 1 if rollout.is_whole else 0
        with torch.no_grad():
            for chunk in chunks:
                rows = rollout.rows(chunk, t)
                gaussian = policy.distribution(rows)  # p(x_{t-1} | x_t, c)
                if rollout.kl_to_start is not None and reference is not None:
                    rollout.kl_to_start[chunk] += reference.kl(rows, gaussian)
                x = gaussian.sample(z[chunk.start - start : chunk.stop - start])
                rollout.latents[after, chunk] = x  # of an endpoint rollout in the place of x_t
                if rollout.is_whole:
                    rollout.log_probs[t, chunk] = gaussian.relative_log_prob(x)
        observation, _, _, _, info = env.step(rollout.latents[after, mine])
        scores = None
        if t == env.num_inference_steps - 1:
            rollout.images[mine] = info["image"]
            scores = scoring.submit(rollout.images[mine], records)
            if alone:
                scoring.check()
        going = going and (on_step is None or on_step(Step(observation["latent"], observation, info, scores)))
        if alone and not going:
            raise Interrupted
    return going
