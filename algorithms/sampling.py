"""Sampling: the policy denoises images in the environment, the reward scores them, and a rollout keeps them."""

import contextlib
from collections.abc import Callable, Sequence

import torch

from algorithms.parallel.split import Split
from algorithms.policy import DenoisingPolicy
from algorithms.reference import Reference
from algorithms.rollouts import Rollout
from algorithms.sb3.callback_locals import Step
from algorithms.scoring import Scoring
from algorithms.seeding import TRAINING_STREAMS, Noise, StepNoise, Streams
from algorithms.windows import Windows
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.errors import Interrupted
from diffusion_gym.prompt_records import PromptLike
from diffusion_gym.rewards import Scores

#: Called after every step of the environments; False stops.
OnStep = Callable[[Step], bool]
#: Makes a context in which the policy has the weights that sample.
Weights = Callable[[], contextlib.AbstractContextManager[None]]


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
    weights: Weights = contextlib.nullcontext,
    on_step: OnStep | None = None,
    score_beside: bool = False,
    reference: Reference | None = None,
    split: Split | None = None,
    keeps_means: bool = False,
    windows: Windows | None = None,
    noise: Noise | None = None,
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
        weights: gives the policy the weights that sample, for each step's forward passes alone, so that callbacks see,
            and save, those in training.
        on_step: called after every step of the environments; False stops.
        score_beside: score each round's images in a thread while the next round is sampled; same results.
        reference: the starting model, if the KL to it is to be measured: one more forward per row.
        split: which images are sampled on this rank; None is all of them.
        keeps_means: store the mean of every step beside the latents.
        windows: of the images kept on this rank, where not all steps are drawn alike; with whole trajectories.
        noise: the random numbers; None is each image's own, by ``seed``, ``streams`` and ``images``.

    Raises Interrupted where ``on_step`` returned False; RewardError or RankError where a rank failed.
    """
    split, kl = split or Split.alone(len(prompts)), reference is not None
    records = env.mdp.usable(prompts)  # all prompts on every rank: one that cannot be encoded fails on all at once
    rollout = Rollout.empty(
        policy, records, whole_trajectory, None, split, env.num_envs, updates, kl, keeps_means, windows
    )
    if noise is None:
        noise = Noise(seed, streams, range(len(prompts)) if images is None else images)
    with Scoring(env.mdp.reward, score_beside) as scoring:

        def sample() -> tuple[bool, Scores]:
            going = True
            for start in range(0, len(split.kept), env.num_envs):
                step = on_step if going else None
                going &= _sample_round(env, policy, rollout, start, noise, weights, scoring, step, reference)
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
    weights: Weights,
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
    step_noise, going = StepNoise(noise, kept, rollout.latents.shape[2:]), True
    for t in range(env.num_inference_steps):
        shared = None if rollout.windows is None else rollout.windows.shared(t)
        z = step_noise.draw(None if shared is None else shared[mine])
        z = z.to(rollout.latents.device, non_blocking=True)
        after = t + 1 if rollout.is_whole else 0
        with torch.no_grad(), weights():
            for p in rollout.passes(mine, t, policy.chunk_size):
                rows = rollout.rows(p.rows, t)
                gaussian = policy.distribution(rows, p.transition)  # p(x_{t-1} | x_t, c)
                if rollout.kl_to_start is not None and reference is not None:
                    kl = reference.kl(rows, gaussian, p.transition)
                    rollout.kl_to_start[p.images] += kl if p.copies is None else kl[p.copies]
                if p.copies is not None:
                    gaussian = gaussian.select(p.copies)
                x = gaussian.sample(z[p.within(start)])
                rollout.latents[after, p.images] = x  # of an endpoint rollout in the place of x_t
                if rollout.is_whole:
                    rollout.log_probs[t, p.images] = gaussian.relative_log_prob(x)
                if rollout.means is not None:
                    rollout.means[t, p.images] = gaussian.mean
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
