"""What algorithms share that weigh images by advantages: an optimizer that is kept, the baselines, and their state."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from algorithms.advantages import PerPromptStatistics, gdpo_advantages, group_advantages, share_without_spread
from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config.algorithms import AdvantageConfig
from algorithms.metrics import part_name
from algorithms.rollouts import Rollout
from diffusion_gym.rewards import RewardFunction, WeightedSum

A = TypeVar("A", bound=AdvantageConfig)


class WithAdvantages(DiffusionAlgorithm[A]):
    """An algorithm with one optimizer, whose images have advantages; a subclass gives :meth:`update`."""

    @classmethod
    def requires(cls, config: A) -> Requirements:
        """Return several rewards where each is normalised by itself."""
        return replace(super().requires(config), several_rewards=config.advantages == "gdpo")

    def _setup_model(self) -> None:
        super()._setup_model()
        self.statistics = PerPromptStatistics(self.config.statistics_buffer, self.config.statistics_min_count)
        self.optimizer = self.make_optimizer()

    def advantages(self, rollout: Rollout) -> Tensor:
        """Return each image's advantage A, (n,), float32; ``config.advantages`` says against which baseline."""
        if self.config.advantages == "running":
            return self.statistics.update(rollout.keys, rollout.rewards)
        if self.config.advantages == "gdpo":
            return rewards_apart(self.mdp.reward, self.groups(rollout), rollout)
        others = self.config.advantages == "leave-one-out"
        return group_advantages(self.groups(rollout), rollout.rewards, self.config.advantage_scale, others)

    def groups(self, rollout: Rollout) -> list[str]:
        """Return what n images are compared by, unless advantages are running: those of one name are a group."""
        return rollout.keys

    def clipped_advantages(self, rollout: Rollout) -> Tensor:
        """Return :meth:`advantages` within plus and minus ``config.advantage_clip``."""
        return self.advantages(rollout).clamp(-self.config.advantage_clip, self.config.advantage_clip)

    def advantage_metrics(self, rollout: Rollout, advantages: Tensor) -> dict[str, float]:
        """Return what the log says of advantages."""
        metrics = {
            "train/advantage_mean": float(advantages.mean()),
            "train/advantage_abs_mean": float(advantages.abs().mean()),
        }
        if self.config.advantages != "running":
            apart = self.config.advantages == "gdpo"
            metrics |= spread_metrics(self.groups(rollout), advantages if apart else rollout.rewards, rollout)
        return metrics

    def extra_state(self) -> dict[str, Any]:
        """Return the per-prompt statistics."""
        return {"statistics": self.statistics.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the per-prompt statistics."""
        self.statistics.load_state_dict(state["statistics"])


def rewards_apart(reward: RewardFunction, groups: Sequence[str], rollout: Rollout) -> Tensor:
    """Return GDPO's advantages (n,), float32, of a combined reward's terms within groups, one name per image."""
    assert isinstance(reward, WeightedSum)
    values, weights = reward.apart(rollout.parts)
    return gdpo_advantages(groups, values, weights)


def spread_metrics(groups: Sequence[str], compared: Tensor, rollout: Rollout) -> dict[str, float]:
    """Return the share of groups in which all images are alike: in what is compared, and in each combined reward.

    Args:
        groups: one name per image.
        compared: (n,), what the images of a group are compared by.
        rollout: with rewards.
    """
    parts = {f"reward/{part_name(name)}_no_spread": scores for name, scores in rollout.parts.items()}
    values = {"train/groups_without_spread": compared, **parts}
    return {name: share_without_spread(groups, scores) for name, scores in values.items()}
