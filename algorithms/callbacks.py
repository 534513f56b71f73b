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
    """Return the mean reward on held-out prompts where they are evaluated, else on those of training."""
    judged = evaluation if evaluation.held_out is None else evaluation.held_out
    return float(judged.rewards.double().mean())


class Best:
    """The best of a metric's values so far.

    Attributes:
        value: the largest; minus infinity before the first.
        since: how many values came after it.
    """

    def __init__(self, earlier: Sequence[float] = ()) -> None:
        """Args: earlier: values of evaluations before, of a run that goes on."""
        self.value, self.since = -math.inf, 0
        for value in earlier:
            self.improved_by(value)

    def improved_by(self, value: float) -> bool:
        """Take in a value; whether it is a new best. An equal one is not; NaN is left out."""
        if math.isnan(value):
            return False
        better = value > self.value
        self.value, self.since = (value, 0) if better else (self.value, self.since + 1)
        return better


class EvaluationCallback(BaseCallback):
    """Looks at each evaluation once, before the next rollout and at the end; with a ``reason``, training stops.

    Attributes:
        reason: why training is to stop, in words; None lets it go on.
    """

    def __init__(self) -> None:
        """Begin without a reason to stop."""
        super().__init__()
        self.reason: str | None = None
        self._seen: Evaluation | None = None

    @abstractmethod
    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Look at an evaluation; set ``reason`` to stop."""

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
    """Stop once the policy is further from its start than a limit (needs ``kl_to_start`` or a KL penalty)."""

    def __init__(self, limit: float) -> None:
        """Args: limit: of ``eval/kl_to_start``, nats an image.

        Raises:
            ValueError: a limit that is not positive and finite.
        """
        check_kl_limit(limit)
        super().__init__()
        self.limit = limit

    def _init_callback(self) -> None:
        super()._init_callback()
        if self.algorithm.reference is None:
            raise ValueError("StopAtKL needs the KL to the starting model, which is not measured; set kl_to_start.")

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Compare."""
        assert evaluation.kl_to_start is not None
        kl = float(evaluation.kl_to_start.double().mean())
        if not kl <= self.limit:  # also where it is NaN
            self.reason = (
                f"the KL to the starting model is {kl:.4g} nats an image at iteration {evaluation.iteration}, over the "
                f"limit of {self.limit:g}"
            )


class StopWhenMetricFalls(EvaluationCallback):
    """Stop once so many evaluations in a row have not been better than the best before them."""

    def __init__(
        self,
        metric: EvaluationMetric = mean_reward,
        patience: int = 3,
        name: str = "reward",
        earlier: Sequence[float] = (),
    ) -> None:
        """Watch a metric, best one that is held out of training.

        Args:
            metric: what is watched.
            patience: evaluations in a row that are borne.
            name: of the metric, for the reason.
            earlier: its values at the evaluations before, of a run that goes on.

        Raises:
            ValueError: a patience that is no integer of at least 1.
        """
        check_patience(patience)
        super().__init__()
        self.metric, self.patience, self.name, self.best = metric, patience, name, Best(earlier)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Count how long the best one is past."""
        self.best.improved_by(self.metric(evaluation))
        if self.best.since >= self.patience:
            self.reason = (
                f"{self.name} was not better than its best, {self.best.value:.6g}, in {self.best.since} evaluations in "
                f"a row, up to iteration {evaluation.iteration}"
            )


class KeepBest(EvaluationCallback):
    """Save a checkpoint whenever a metric is better than ever before; it replaces the last one atomically."""

    def __init__(
        self, path: str | os.PathLike[str], metric: EvaluationMetric = mean_reward, earlier: Sequence[float] = ()
    ) -> None:
        """Watch a metric, best one that is held out of training.

        Args:
            path: of the checkpoint.
            metric: what is watched.
            earlier: its values at the evaluations before, of a run that goes on.
        """
        super().__init__()
        self.path, self.metric, self.best = path, metric, Best(earlier)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Save, if it is the best."""
        value = self.metric(evaluation)
        if self.best.improved_by(value):
            self.save_best(evaluation, value)

    def save_best(self, evaluation: Evaluation, value: float) -> None:
        """Write the checkpoint of a new best evaluation."""
        self.algorithm.save(self.path)
