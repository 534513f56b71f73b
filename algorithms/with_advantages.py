"""What algorithms share that weigh images by advantages: an optimizer that is kept, the baselines, and their state."""

from typing import Any, TypeVar

from torch import Tensor

from algorithms.advantages import PerPromptStatistics, group_advantages, share_without_spread
from algorithms.base import DiffusionAlgorithm
from algorithms.config.algorithms import AdvantageConfig
from algorithms.rollouts import Rollout

A = TypeVar("A", bound=AdvantageConfig)


class WithAdvantages(DiffusionAlgorithm[A]):
    """An algorithm with one optimizer, whose images have advantages; a subclass gives :meth:`update`."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.statistics = PerPromptStatistics(self.config.statistics_buffer, self.config.statistics_min_count)
        self.optimizer = self.make_optimizer()

    def advantages(self, rollout: Rollout) -> Tensor:
        """Return each image's advantage A, (n,), float32; ``config.advantages`` says against which baseline."""
        if self.config.advantages == "running":
            return self.statistics.update(rollout.keys, rollout.rewards)
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
            metrics["train/groups_without_spread"] = share_without_spread(self.groups(rollout), rollout.rewards)
        return metrics

    def extra_state(self) -> dict[str, Any]:
        """Return the per-prompt statistics."""
        return {"statistics": self.statistics.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the per-prompt statistics."""
        self.statistics.load_state_dict(state["statistics"])
