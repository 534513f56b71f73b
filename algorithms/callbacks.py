"""Stable-Baselines3 callbacks against overoptimisation: stop in time, and keep the best checkpoint.

Each decides from the evaluations alone, which are the same in a run that was resumed.
"""

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback

from algorithms.config.base import check_kl_limit, check_patience
from algorithms.evaluation import Evaluation

if TYPE_CHECKING:
    from algorithms.base import DiffusionAlgorithm

#: What an evaluation is judged by; more is better. NaN says that it could not be measured.
EvaluationMetric = Callable[[Evaluation], float]


def mean_reward(evaluation: Evaluation) -> float:
    """Return the mean reward on held-out prompts if they are evaluated, else on the training prompts."""
    judged = evaluation if evaluation.held_out is None else evaluation.held_out
    return float(judged.rewards.double().mean())


class Best:
    """Keeps the best of a metric's values.

    Attributes:
        value: the largest; minus infinity before the first.
        since: how many values came after it.
    """

    def __init__(self, earlier: Sequence[float] = ()) -> None:
        """Args: earlier: values of the evaluations before, of a resumed run."""
        self.value, self.since = -math.inf, 0
        for value in earlier:
            self.improved_by(value)

    def improved_by(self, value: float) -> bool:
        """Add a value, and return whether it is a new best; an equal value is not, and NaN is ignored."""
        if math.isnan(value):
            return False
        better = value > self.value
        self.value, self.since = (value, 0) if better else (self.value, self.since + 1)
        return better


class EvaluationCallback(BaseCallback):
    """Checks each evaluation once, before the next rollout and at the end; with a ``reason``, training stops.

    Attributes:
        reason: why training stops, in words; None while it continues.
    """

    def __init__(self) -> None:
        """Begin without a reason to stop."""
        super().__init__()
        self.reason: str | None = None
        self._seen: Evaluation | None = None

    @abstractmethod
    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Check an evaluation; set ``reason`` to stop."""

    @property
    def algorithm(self) -> "DiffusionAlgorithm[Any]":
        """The algorithm that is learning."""
        return self.model  # type: ignore[return-value]

    def _init_callback(self) -> None:
        if self.algorithm.config.evaluation.images == 0:
            raise ValueError(
                f"{type(self).__name__} decides at evaluations, of which there are none; set evaluation.images, for "
                "example to 64."
            )

    def _on_rollout_start(self) -> None:
        self._look()

    def _on_training_end(self) -> None:
        self._look()

    def _on_step(self) -> bool:
        return self.reason is None

    def _look(self) -> None:
        evaluation = self.algorithm.last_evaluation
        if evaluation is not None and evaluation is not self._seen:
            self._seen = evaluation
            self.on_evaluation(evaluation)


class StopAtKL(EvaluationCallback):
    """Stops once the policy is further from its start than a limit (needs ``kl_to_start`` or a KL penalty)."""

    def __init__(self, limit: float) -> None:
        """Args: limit: of ``eval/kl_to_start``, nats per image.

        Raises:
            ValueError: a limit that is not positive and finite.
        """
        check_kl_limit(limit)
        super().__init__()
        self.limit = limit

    def _init_callback(self) -> None:
        super()._init_callback()
        if self.algorithm.kl_reference is None:
            raise ValueError("StopAtKL needs the KL to the starting model, which is not measured; set kl_to_start.")

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Stop if the KL is over the limit."""
        assert evaluation.kl_to_start is not None
        kl = float(evaluation.kl_to_start.double().mean())
        if not kl <= self.limit:  # also where it is NaN
            self.reason = (
                f"the KL to the starting model is {kl:.4g} nats per image at iteration {evaluation.iteration}, over "
                f"the limit of {self.limit:g}"
            )


class StopWhenMetricFalls(EvaluationCallback):
    """Stops after so many evaluations in a row without a new best."""

    def __init__(
        self,
        metric: EvaluationMetric = mean_reward,
        patience: int = 3,
        name: str = "reward",
        earlier: Sequence[float] = (),
    ) -> None:
        """Set up for a metric, preferably one that is held out of training.

        Args:
            metric: what is watched.
            patience: evaluations in a row without improvement that are allowed.
            name: of the metric, for the reason.
            earlier: its values at the evaluations before, of a resumed run.

        Raises:
            ValueError: a patience that is no integer of at least 1.
        """
        check_patience(patience)
        super().__init__()
        self.metric, self.patience, self.name, self.best = metric, patience, name, Best(earlier)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Count evaluations since the best one."""
        self.best.improved_by(self.metric(evaluation))
        if self.best.since >= self.patience:
            self.reason = (
                f"{self.name} was not better than its best, {self.best.value:.6g}, in {self.best.since} evaluations in "
                f"a row, up to iteration {evaluation.iteration}"
            )


class KeepBest(EvaluationCallback):
    """Saves a checkpoint whenever a metric has a new best; it replaces the last one atomically."""

    def __init__(
        self, path: str | os.PathLike[str], metric: EvaluationMetric = mean_reward, earlier: Sequence[float] = ()
    ) -> None:
        """Set up for a metric, preferably one that is held out of training.

        Args:
            path: of the checkpoint.
            metric: what is watched.
            earlier: its values at the evaluations before, of a resumed run.
        """
        super().__init__()
        self.path, self.metric, self.best = path, metric, Best(earlier)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Save if the evaluation is the best."""
        value = self.metric(evaluation)
        if self.best.improved_by(value):
            self.save_best(evaluation, value)

    def save_best(self, evaluation: Evaluation, value: float) -> None:
        """Write the checkpoint of a new best evaluation."""
        self.algorithm.save(self.path)
