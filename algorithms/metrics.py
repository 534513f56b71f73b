"""What the log says: of a rollout its rewards' statistics, of an update averages over rows and ranks."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from algorithms.parallel.ranks import ALONE, Ranks
from algorithms.rollouts import Rollout
from diffusion_gym.naming import log_name
from diffusion_gym.prompts import PromptSet
from diffusion_gym.rewards import RewardFunction, WeightedSum, reward_name

#: Above this many prompts, each prompt's mean would drown the log.
BY_PROMPT = 16
_PART_NAME = 21  # with _below_floor behind it a key still fits into a table


def rollout_metrics(rollout: Rollout, reward: RewardFunction, prompts: PromptSet) -> dict[str, float]:
    """Return statistics of a rollout's rewards and of a combined reward's parts, and of few prompts each one's mean.

    For a part with a floor, also the share of images below it.

    Args:
        rollout: with rewards.
        reward: that gave them.
        prompts: the environment's.
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
    labels = _labels(prompts)
    for key in dict.fromkeys(rollout.keys):
        if key in labels:
            chosen = torch.tensor([other == key for other in rollout.keys])
            metrics[f"reward_by_prompt/{log_name(labels[key])}"] = float(rewards[chosen].mean())
    return metrics


def part_name(reward: str) -> str:
    """Return the name of a combined reward's part in the log; "reward" is the name of the whole."""
    return log_name("reward/" if reward == "reward" else reward, _PART_NAME)


def warn_of_equal_rewards(rollout: Rollout, reward: RewardFunction, warned: set[str]) -> None:
    """Warn, once per name in ``warned``, of a reward or part that gave all images of each prompt the same score."""
    for name, scores in {reward_name(reward): rollout.rewards, **rollout.parts}.items():
        what = None if name in warned else _equal(scores.tolist(), rollout.keys)
        if what is not None:
            warned.add(name)
            warnings.warn(f"the reward {name!r} gave {what}: there is nothing to learn from it.", stacklevel=2)


def _equal(scores: Sequence[float], prompts: Sequence[str]) -> str | None:
    if len(scores) > 1 and len(set(scores)) == 1:
        return f"all {len(scores)} images of a rollout the same score, {scores[0]:g}"
    by_prompt: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, scores, strict=True):
        by_prompt.setdefault(prompt, []).append(score)
    if all(len(group) > 1 and len(set(group)) == 1 for group in by_prompt.values()):
        return "the images of each prompt in a rollout the same score"
    return None


def _labels(prompts: PromptSet) -> dict[str, str]:
    """Return key of a prompt's record -> its name in the log; none where there are too many to log each."""
    return prompts.labels if len(prompts.records) <= BY_PROMPT else {}


def log_names(reward: RewardFunction, prompts: PromptSet) -> dict[str, str]:
    """Return names in the log's keys -> the prompts and reward parts they stand for, where these differ."""
    parts = reward.names if isinstance(reward, WeightedSum) else []
    names = {
        **{log_name(text): text for text in _labels(prompts).values()},
        **{part_name(text): text for text in parts},
    }
    return {name: text for name, text in names.items() if name != text}


class Meter:
    """Sums and maxima by name; nothing is copied to the CPU, or exchanged, before :meth:`means`."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        """Begin empty."""
        self._ranks = ranks
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._maxima: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, rows: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add values to averages over rows.

        Args:
            rows: name -> (m,), or one value (). Of a name that ends in ``_max`` the largest is kept instead.
            weight: of a chunk; with 0 nothing is added.
        """
        if not weight:
            return
        for name, values in rows.items():
            values = values.detach()
            if name.endswith("_max"):
                self._maxima[name].append(values.max())
            else:
                self._sums[name].append(values.sum())
                self._counts[name] += values.numel()

    def means(self) -> dict[str, float]:
        """Return averages and maxima over all ranks, with one copy from the device. Collective."""
        read = [*self._sums.values(), *self._maxima.values()]
        numbers = iter(torch.stack([value for values in read for value in values]).tolist() if read else [])
        sums = {name: sum(next(numbers) for _ in values) for name, values in self._sums.items()}
        maxima = {name: max(next(numbers) for _ in values) for name, values in self._maxima.items()}
        by_rank = self._ranks.gather_objects((sums, dict(self._counts), maxima))
        names = dict.fromkeys(name for theirs, _, _ in by_rank for name in theirs)
        means = {}
        for name in names:
            total = sum(theirs.get(name, 0.0) for theirs, _, _ in by_rank)
            means[name] = total / sum(counts.get(name, 0) for _, counts, _ in by_rank)
        largest = dict.fromkeys(name for _, _, theirs in by_rank for name in theirs)
        return means | {name: max(theirs[name] for *_, theirs in by_rank if name in theirs) for name in largest}
