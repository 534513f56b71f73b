"""What the detectors see of a run: one reading per evaluation, with everything in its log but gold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.analysis.gold import RECOGNISED
from benchmarks.runs.gold_judge import JUDGE, kind_of
from benchmarks.runs.metrics import KL_TO_START, is_distance
from benchmarks.runs.record import Evaluation, Run
from diffusion_gym.rewards.spec import parse_reward

REWARD = "reward"
#: Standard deviation of the rewards over all images; over the images of one prompt (root mean square over prompts); and
#: the share of prompts whose images all have the same reward.
REWARD_SPREAD, PROMPT_SPREAD, NO_SPREAD = "reward_spread", "prompt_spread", "no_spread"
#: Statistics of the pictures, beside which every other metric is one of which more is better.
PICTURES = ("diversity", "clip_diversity", "sharpness", "colourfulness", "flat_area")
#: Columns whose meaning is fixed.
COLUMNS = (REWARD, REWARD_SPREAD, PROMPT_SPREAD, NO_SPREAD, KL_TO_START, *PICTURES)


@dataclass(frozen=True)
class Reading:
    """What one evaluation shows.

    Attributes:
        queries: reward queries so far.
        values: column or metric -> value; only what was measured.
    """

    queries: float
    values: Mapping[str, float]


def is_gold(name: str) -> bool:
    """Return whether a metric is gold, or made of the exact truth, which no detector may see."""
    return name in (RECOGNISED, JUDGE) or kind_of(name) is not None or is_distance(name)


def readings_of(run: Run) -> list[Reading]:
    """Return a run's readings; metrics that are part of its reward are left out, as they say nothing beside it."""
    return [reading_of(line, run.prompts, run.spec.task.reward) for line in run.evaluations]


def reading_of(line: Evaluation, prompts: Sequence[str], reward: str) -> Reading:
    """Return an evaluation's reading.

    Args:
        line: the evaluation.
        prompts: of each of its images.
        reward: what the run is trained on, as text.
    """
    trained = {part.reward.partition("?")[0] for part in parse_reward(reward)}
    values = {
        name: value
        for name, value in line.metrics.items()
        if not is_gold(name) and name.partition("?")[0] not in trained and math.isfinite(value)
    }
    return Reading(line.costs["reward_queries"], {**values, **_of_rewards(line.rewards, prompts)})


def _of_rewards(rewards: Sequence[float], prompts: Sequence[str]) -> dict[str, float]:
    """Return the mean and the spreads of an evaluation's rewards."""
    values = {REWARD: float(np.mean(rewards))}
    if len(rewards) > 1:
        values[REWARD_SPREAD] = float(np.std(rewards, ddof=1))
    by_prompt: dict[str, list[float]] = {}
    for prompt, reward in zip(prompts, rewards, strict=True):
        by_prompt.setdefault(prompt, []).append(reward)
    groups = [group for group in by_prompt.values() if len(group) > 1]
    if groups:
        values[PROMPT_SPREAD] = math.sqrt(sum(float(np.var(group, ddof=1)) for group in groups) / len(groups))
        values[NO_SPREAD] = sum(min(group) == max(group) for group in groups) / len(groups)
    return values
