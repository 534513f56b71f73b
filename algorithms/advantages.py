"""From rewards to weights of the loss: advantages, running or in groups, of one reward or several; RWR's weights."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.config.fields import check_statistics

_EPSILON = 1e-6  # keeps a constant reward's advantage at 0 instead of 0 / 0
_GROUP_EPSILON = 1e-4  # Flow-GRPO's
_ROUNDING = 1e-6  # of a sum of normalised rewards, which are numbers about 1 made of float32


class PerPromptStatistics:
    """Running mean and std of each prompt's rewards (Black et al. 2023, appendix D.3; float64 throughout).

    A prompt's last ``buffer_size`` rewards are kept, and at least all of the latest call. Prompts seen fewer than
    ``min_count`` times use the statistics of all prompts' buffers together, so that many prompts with few images
    each start from a sensible baseline.
    """

    def __init__(self, buffer_size: int = 32, min_count: int = 16) -> None:
        """Raise ValueError unless 1 <= min_count <= buffer_size."""
        check_statistics(buffer_size, min_count)
        self.buffer_size, self.min_count = buffer_size, min_count
        self._rewards: dict[str, list[float]] = {}

    def update(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Add rewards, and return their advantages ``(r - mean) / (std + 1e-6)``.

        Args:
            prompts: n texts, or keys of prompts (``rollout.keys``).
            rewards: (n,), any real dtype.

        Returns:
            (n,), float32, on the rewards' device.
        """
        values = rewards.detach().cpu().double().tolist()  # in this order: MPS has no float64
        new: dict[str, list[float]] = defaultdict(list)
        for prompt, value in zip(prompts, values, strict=True):
            new[prompt].append(value)
        for prompt, added in new.items():
            kept = max(self.buffer_size, len(added))
            self._rewards[prompt] = (self._rewards.get(prompt, []) + added)[-kept:]
        everything = _mean_std([value for buffer in self._rewards.values() for value in buffer])
        own = {
            prompt: _mean_std(self._rewards[prompt]) for prompt in new if len(self._rewards[prompt]) >= self.min_count
        }
        scaled = []
        for prompt, value in zip(prompts, values, strict=True):
            mean, std = own.get(prompt, everything)
            scaled.append((value - mean) / (std + _EPSILON))
        return torch.tensor(scaled, dtype=torch.float32, device=rewards.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the buffers, JSON-serialisable."""
        return {"rewards": {prompt: list(buffer) for prompt, buffer in self._rewards.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._rewards = {prompt: [float(value) for value in buffer] for prompt, buffer in state["rewards"].items()}


def group_advantages(prompts: Sequence[str], rewards: Tensor, scale: str = "group", others: bool = False) -> Tensor:
    """Return advantages among the iteration's images of a prompt: ``(r - mean) / (std + 1e-4)``, (n,), float32.

    As in Flow-GRPO (Liu et al. 2025, arXiv 2505.05470, equation 4); without a std, and with the mean of the others,
    it is leave-one-out (RLOO, as LOOP has it: Gupta et al. 2025, arXiv 2503.00897). Images whose prompt no other has
    get 0.

    Args:
        prompts: n texts, or keys of prompts (``rollout.keys``).
        rewards: (n,).
        scale: which std divides: "group" (of the prompt's images), "batch" (of all images), or "none".
        others: whether the mean is that of the prompt's other images.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale must be 'group', 'batch' or 'none', got {scale!r}.")
    batch = float(rewards.detach().cpu().double().std(correction=0))

    def relative(values: np.ndarray) -> np.ndarray:
        n = len(values)
        if n == 1:
            return np.zeros(1)
        centred = (values - values.mean()) * (n / (n - 1) if others else 1.0)  # r - mean of the others
        if scale == "none":
            return centred
        return centred / ((values.std() if scale == "group" else batch) + _GROUP_EPSILON)

    return _per_prompt(prompts, rewards, relative)


def gdpo_advantages(prompts: Sequence[str], rewards: Tensor, weights: Sequence[float]) -> Tensor:
    """Return advantages of several rewards, each normalised apart: ``A / (std(A) + 1e-4)``, (n,), float32.

    GDPO (Liu et al. 2026, arXiv 2601.05242): ``A = sum_k w_k (r_k - mean) / (std + 1e-4)`` with mean and std of reward
    k among the iteration's images of a prompt, so that its scale does not matter. The last std is that of all images.
    Images whose prompt no other has get 0, as do those of a group whose rewards cancel out up to rounding.

    Args:
        prompts: n texts, or keys of prompts (``rollout.keys``).
        rewards: (k, n), any real dtype.
        weights: k numbers, of which only the ratios matter.
    """

    def normalised(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / (values.std() + _GROUP_EPSILON)

    total = np.zeros(len(prompts))
    for weight, values in zip(weights, rewards, strict=True):
        total += weight * _in_groups(prompts, values, normalised)
    least = _ROUNDING * float(np.abs(weights).sum())

    def spread(values: np.ndarray) -> np.ndarray:
        return values if np.ptp(values) > least else np.zeros(len(values))

    total = _in_groups(prompts, torch.from_numpy(total), spread)
    total /= total.std() + _GROUP_EPSILON  # its mean over the images is 0, as it is in each group
    return torch.tensor(total.tolist(), dtype=torch.float32, device=rewards.device)


def share_without_spread(prompts: Sequence[str], rewards: Tensor) -> float:
    """Return the share of prompts whose images in this iteration all have the same reward: nothing is learned."""
    found: dict[str, set[float]] = defaultdict(set)
    for prompt, value in zip(prompts, rewards.tolist(), strict=True):
        found[prompt].add(value)
    return sum(len(values) == 1 for values in found.values()) / len(found)


def softmax_weights(prompts: Sequence[str], rewards: Tensor, beta: float, standardise: bool = True) -> Tensor:
    """Weights of RWR: per prompt, a softmax of the rewards over beta (Black et al. 2023, section 4.2 and appendix D.3).

    Args:
        prompts: n texts, or keys of prompts (``rollout.keys``).
        rewards: (n,).
        beta: temperature, smaller is greedier: the reciprocal of the paper's beta, an inverse temperature.
        standardise: over each prompt's images first, so that beta means the same for kilobytes and for scores near 1;
            False takes the rewards as they are, as the paper's code does.

    Returns:
        (n,), float32, averaging 1 over each prompt's images.
    """

    def weigh(values: np.ndarray) -> np.ndarray:
        if standardise:
            mean, std = _mean_std(values.tolist())
            values = (values - mean) / (std + _EPSILON)
        z = values / beta
        unnormalised = np.exp(z - z.max())
        return unnormalised / unnormalised.mean()

    return _per_prompt(prompts, rewards, weigh)


def top_fraction_weights(prompts: Sequence[str], rewards: Tensor, fraction: float) -> Tensor:
    """Weights of sparse RWR: ``1[r >= C]`` (Black et al. 2023, section 4.2 and appendix D.2).

    C is the ``ceil(fraction * count)``-th best reward of each prompt. Images that tie with it are kept too: where
    nearly all earn the same, which of them are fitted is not left to their order.

    Args:
        prompts: n texts, or keys of prompts (``rollout.keys``).
        rewards: (n,).
        fraction: of each prompt's images to keep, in (0, 1].

    Returns:
        (n,), float32, averaging 1 over each prompt's images (so kept images weigh about 1 / fraction without ties).
    """

    def weigh(values: np.ndarray) -> np.ndarray:
        keep = max(1, int(np.ceil(fraction * len(values) - 1e-9)))
        kept = values >= np.sort(values)[-keep]
        return kept * (len(values) / kept.sum())

    return _per_prompt(prompts, rewards, weigh)


def effective_sample_size(weights: Tensor) -> float:
    """Kish's effective sample size ``(sum w)^2 / sum w^2``, from 1 to n."""
    w = weights.cpu().double()  # in this order: MPS has no float64
    return float(w.sum() ** 2 / w.square().sum())


def _per_prompt(prompts: Sequence[str], rewards: Tensor, weigh: Any) -> Tensor:
    return torch.tensor(_in_groups(prompts, rewards, weigh).tolist(), dtype=torch.float32, device=rewards.device)


def _in_groups(prompts: Sequence[str], rewards: Tensor, weigh: Any) -> np.ndarray:
    values = np.array(rewards.detach().cpu().double().tolist())
    groups: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[prompt].append(index)
    weights = np.zeros(len(values))
    for members in groups.values():
        weights[members] = weigh(values[members])
    return weights


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std())
