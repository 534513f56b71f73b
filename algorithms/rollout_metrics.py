"""What the log says of a rollout: its rewards' statistics, of all images, of each prompt and of each reward's part."""

import warnings
from collections.abc import Mapping, Sequence

import torch

from algorithms.rollouts import Rollout
from diffusion_gym.naming import log_name
from diffusion_gym.rewards import RewardFunction, WeightedSum, reward_name

#: Above this many prompts, each prompt's mean would drown the log.
BY_PROMPT = 16
_PART_NAME = 21  # with _below_floor behind it a key still fits into a table


def rollout_metrics(rollout: Rollout, reward: RewardFunction, by_prompt: bool) -> dict[str, float]:
    """Return statistics of a rollout's rewards and of a combined reward's parts; with ``by_prompt`` each prompt's mean.

    For a part with a floor, also the share of images below it.
    """
    rewards = rollout.rewards.cpu().double()  # large rewards overflow float32 once they are summed or squared
    metrics = {
        "rollout/ep_rew_mean": float(rewards.mean()),
        "rollout/reward_std": float(rewards.std(correction=0)),
        "rollout/reward_min": float(rewards.min()),
        "rollout/reward_max": float(rewards.max()),
    }
    floors: Mapping[str, float] = reward.floors if isinstance(reward, WeightedSum) else {}
    for name, scores in ((name, part.cpu().double()) for name, part in rollout.parts.items()):
        key = f"reward/{part_name(name)}"
        metrics |= {f"{key}_mean": float(scores.mean()), f"{key}_std": float(scores.std(correction=0))}
        if name in floors:
            metrics[f"{key}_below_floor"] = float((scores < floors[name]).float().mean())
    for prompt in dict.fromkeys(rollout.prompts) if by_prompt else ():
        chosen = torch.tensor([text == prompt for text in rollout.prompts])
        metrics[f"reward_by_prompt/{log_name(prompt)}"] = float(rewards[chosen].mean())
    return metrics


def part_name(reward: str) -> str:
    """Return the name of a combined reward's part in the log; "reward" is the name of the whole."""
    return log_name("reward/" if reward == "reward" else reward, _PART_NAME)


def warn_of_equal_rewards(rollout: Rollout, reward: RewardFunction, warned: set[str]) -> None:
    """Warn, once per name in ``warned``, of a reward or part that gave all images of each prompt the same score."""
    for name, scores in {reward_name(reward): rollout.rewards, **rollout.parts}.items():
        what = None if name in warned else _equal(scores.tolist(), rollout.prompts)
        if what is not None:
            warned.add(name)
            warnings.warn(f"the reward {name!r} gave {what}: there is nothing in it to learn from.", stacklevel=2)


def _equal(scores: Sequence[float], prompts: Sequence[str]) -> str | None:
    if len(scores) > 1 and len(set(scores)) == 1:
        return f"all {len(scores)} images of a rollout the same score, {scores[0]:g}"
    by_prompt: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, scores, strict=True):
        by_prompt.setdefault(prompt, []).append(score)
    if all(len(group) > 1 and len(set(group)) == 1 for group in by_prompt.values()):
        return "the images of each prompt in a rollout the same score"
    return None


def log_names(reward: RewardFunction, prompts: Sequence[str]) -> dict[str, str]:
    """Return names in the log's keys -> the prompts and reward parts they stand for, where these differ."""
    parts = reward.names if isinstance(reward, WeightedSum) else []
    shown = prompts if len(prompts) <= BY_PROMPT else []
    names = {**{log_name(text): text for text in shown}, **{part_name(text): text for text in parts}}
    return {name: text for name, text in names.items() if name != text}
