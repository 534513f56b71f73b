"""Drawing images with a solver of diffusers: no policy, but the sampler that a tuned model is used with."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algorithms.parallel.split import Split
from algorithms.policy import DenoisingPolicy
from algorithms.rollouts import Rollout
from algorithms.sampling import OnStep
from algorithms.sb3.callback_locals import Step
from algorithms.seeding import Noise
from diffusion_gym.envs.results import Scored
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.errors import Interrupted
from diffusion_gym.models.base import Conditioning, DiffusionModel
from diffusion_gym.models.schedulers import make_solver
from diffusion_gym.prompt_records import Prompt
from diffusion_gym.rewards import Scores


def new_solver(model: DiffusionModel, scheduler: str, num_inference_steps: int) -> Any:
    """Return a scheduler of diffusers on its grid.

    Raises:
        ValueError: one that cannot draw with this model, or that does not take this number of steps.
    """
    came_with = str(model.scheduler_config.get("_class_name", "DDIMScheduler"))
    solver = make_solver(model.name, scheduler, model.solver_config, came_with)
    try:
        solver.set_timesteps(num_inference_steps, device=model.device)
    except Exception as error:  # diffusers and NumPy raise many unrelated types
        name = type(solver).__name__
        raise ValueError(f"{name} does not take num_inference_steps={num_inference_steps}: {error}") from error
    return solver


@torch.no_grad()
def solve(
    env: DenoiseVectorEnv,
    policy: DenoisingPolicy,
    scheduler: str,
    prompts: Sequence[Prompt],
    noise: Noise,
    split: Split,
    on_step: OnStep | None = None,
) -> Rollout:
    """Draw and score one image per prompt as diffusers' pipelines do, ``env.num_envs`` side by side. Collective.

    Args:
        env: its reward and prompt encoder are used.
        policy: its denoiser, guidance, number of steps and chunks.
        scheduler: see :func:`diffusion_gym.models.schedulers.make_solver`.
        prompts: n records.
        noise: gives the initial latents, and what a stochastic solver draws, image by image.
        split: which images are drawn on this rank.
        on_step: called after every step; False stops.

    Raises:
        Interrupted: ``on_step`` returned False.
        RewardError, RankError, ValueError: as :func:`algorithms.sampling.collect`.
    """
    rollout = Rollout.empty(policy, env.mdp.usable(prompts), whole_trajectory=False, split=split)

    def draw() -> tuple[bool, Scores]:
        rounds, going = [], True
        for start in range(0, len(split.kept), env.num_envs):
            kept = split.kept[start : start + env.num_envs]
            scored, going = _round(env, policy, scheduler, [rollout.records[i] for i in kept], noise, kept, on_step)
            rollout.images[start : start + len(kept)] = scored.images
            rounds.append(scored)
            if not going:  # ranks stop together: the images that are left stay empty
                break
        parts = {name: torch.cat([each.parts[name] for each in rounds]) for name in rounds[0].parts}
        return going, Scores(torch.cat([each.rewards for each in rounds]), parts)

    going, scores = split.ranks.call(draw)
    if not split.ranks.all(going):
        raise Interrupted
    return rollout.rewarded(scores)


def _round(
    env: DenoiseVectorEnv,
    policy: DenoisingPolicy,
    scheduler: str,
    records: Sequence[Prompt],
    noise: Noise,
    which: Sequence[int],
    on_step: OnStep | None,
) -> tuple[Scored, bool]:
    """Draw and score images side by side; beside them whether to draw the next ones."""
    if env.num_envs != len(records):
        env = DenoiseVectorEnv.sharing(env.mdp, len(records), trusted=True)
    observation, _ = env.reset(seed=noise.seeds(which), options={"prompts": records})
    conditioning = {name: observation[name] for name in policy.conditioning}
    solver, going = new_solver(policy.model, scheduler, policy.num_inference_steps), True
    draws: dict[str, Any] = {}
    if "generator" in inspect.signature(solver.step).parameters:
        draws["generator"] = noise.sources(which)
    x = observation["latent"] * solver.init_noise_sigma
    for t in solver.timesteps:
        output = _predicted(policy, solver.scale_model_input(x, t), t, conditioning)
        x = solver.step(output, t, x, **draws, return_dict=False)[0]
        going = going and (on_step is None or on_step(Step(x, observation, {}, None)))
    return env.mdp.score(x, records), going


def _predicted(policy: DenoisingPolicy, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Return the guided prediction at one time, ``chunk_size`` rows at a time."""
    outputs = []
    for start in range(0, len(x), policy.chunk_size):
        part = slice(start, start + policy.chunk_size)
        rows = {name: value[part] for name, value in conditioning.items()}
        outputs.append(policy.model_output(x[part], t.expand(len(x[part])), rows))
    return torch.cat(outputs)
