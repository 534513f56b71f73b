"""Evaluation on fixed prompts and fixed noise: the same latents and step noise for every run and algorithm."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.config import EvaluationConfig
from algorithms.policy import DenoisingPolicy
from algorithms.rollouts import Rollout, collect
from algorithms.seeding import Stream
from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.envs.vector import DenoiseVectorEnv


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        iteration: how many iterations had been trained.
        prompts: n texts, going through the environment's prompts in turn.
        rewards: (n,), float32, on the CPU.
        images: (n, 3, H, W), uint8, on the CPU.
    """

    iteration: int
    prompts: list[str]
    rewards: Tensor
    images: Tensor

    def metrics(self) -> dict[str, float]:
        """Mean, std and standard error over the images."""
        n = len(self.rewards)
        std = float(self.rewards.std(correction=1)) if n > 1 else 0.0
        return {
            "eval/reward_mean": float(self.rewards.mean()),
            "eval/reward_std": std,
            "eval/reward_stderr": std / math.sqrt(n),
        }


def evaluate(
    mdp: DenoisingMDP, policy: DenoisingPolicy, config: EvaluationConfig, num_envs: int, iteration: int
) -> Evaluation:
    """Denoise ``config.images`` images with the stochastic sampler and score them."""
    env = DenoiseVectorEnv.sharing(mdp, math.gcd(config.images, num_envs))
    prompts = [mdp.prompts[i % len(mdp.prompts)] for i in range(config.images)]
    streams = (Stream.EVALUATION_LATENTS, Stream.EVALUATION_NOISE)
    with torch.no_grad():
        rollout = collect(env, policy, prompts, config.seed, whole_trajectory=False, streams=streams)
    return Evaluation(iteration, prompts, rollout.rewards.cpu(), rollout.images.cpu())


def rollout_metrics(rollout: Rollout, by_prompt: bool) -> dict[str, float]:
    """Return the rewards' statistics over a training rollout, and each prompt's mean where it is wanted."""
    rewards = rollout.rewards
    metrics = {
        "rollout/ep_rew_mean": float(rewards.mean()),
        "rollout/reward_std": float(rewards.std(correction=0)),
        "rollout/reward_min": float(rewards.min()),
        "rollout/reward_max": float(rewards.max()),
    }
    for prompt in dict.fromkeys(rollout.prompts) if by_prompt else ():
        chosen = torch.tensor([text == prompt for text in rollout.prompts], device=rewards.device)
        metrics[f"reward_by_prompt/{prompt}"] = float(rewards[chosen].mean())
    return metrics
