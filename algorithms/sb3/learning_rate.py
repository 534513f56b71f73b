"""The learning rate as Stable-Baselines3's users set it: a number or a schedule, at the start or by a callback."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Generic, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule
from torch import nn
from torch.optim import Optimizer

from algorithms.config.base import AlgorithmConfig
from algorithms.optimizers import make_optimizer

Config = TypeVar("Config", bound=AlgorithmConfig)
#: Stable-Baselines3's: the share of ``learn``'s steps that remains, 1 to 0 -> the rate.
Schedule = Callable[[float], float]


class ScheduledAlgorithm(BaseAlgorithm, Generic[Config]):
    """Whatever sets ``learning_rate`` or ``lr_schedule``, at any time, sets the rate of the next update.

    A number is the configuration's, so checkpoints have it; a schedule cannot be saved and is given again to ``load``.
    """

    config: Config
    _schedule: Schedule | None = None  # in the place of the configuration's number
    _current_rate: float = math.nan  # of the last update, or of the first to come
    _group_rates: tuple[float, ...] = ()  # as they were left in the optimizer

    @property
    def learning_rate(self) -> float | Schedule:
        """AdamW's step size, or a schedule of it.

        Raises, where it is set:
            TypeError: neither a number nor a function.
            ValueError: a number that is not positive and finite, or a schedule that gives one that is negative or not
                finite.
        """
        return self.config.learning_rate if self._schedule is None else self._schedule

    @learning_rate.setter
    def learning_rate(self, value: float | Schedule) -> None:
        while isinstance(value, FloatSchedule):
            value = value.value_schedule
        if isinstance(value, ConstantSchedule):
            value = value.val
        if isinstance(value, Real) and not isinstance(value, bool):
            self.config, self._schedule = replace(self.config, learning_rate=float(value)), None
        else:
            self._schedule = check_schedule(value)
        if math.isnan(self._current_rate):
            self._current_rate = _checked(self.lr_schedule, 1.0)

    @property
    def lr_schedule(self) -> Schedule:
        """:attr:`learning_rate` as a schedule; setting it is setting that."""
        return FloatSchedule(self.learning_rate)

    @lr_schedule.setter
    def lr_schedule(self, value: Schedule) -> None:
        self.learning_rate = value

    @abstractmethod
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All that training changes, by name."""

    def make_optimizer(self) -> Optimizer:
        """Return a fresh optimizer over the trained weights, at the present learning rate."""
        optimizer = make_optimizer(self.trained_parameters().values(), self.config, self._current_rate)
        self._group_rates = _rates(optimizer)
        return optimizer

    def update_learning_rate(self, total_timesteps: int) -> None:
        """Bring the optimizer to the rate of the present progress: 1 at ``learn``'s begin, 0 at ``total_timesteps``.

        Raises:
            ValueError: the schedule gives no rate, or somebody wrote another one into the optimizer.
        """
        # Iterations are whole, so there may be more steps than the total.
        self._update_current_progress_remaining(min(self.num_timesteps, total_timesteps), max(total_timesteps, 1))
        rate = _checked(self.lr_schedule, self._current_progress_remaining)
        if hasattr(self, "optimizer"):
            self._set_rate(self.optimizer, rate)
        self._current_rate = rate

    def _set_rate(self, optimizer: Optimizer, rate: float) -> None:
        for found, left in zip(_rates(optimizer), self._group_rates, strict=False):
            if found not in (left, rate):
                raise ValueError(
                    f"the optimizer's learning rate was changed to {found!r} in its param_groups, where neither the "
                    f"log nor a checkpoint sees it; set the algorithm's instead: model.learning_rate = {found!r}."
                )
        for group in optimizer.param_groups:
            if group["lr"] == self._current_rate:  # a group with a rate of its own keeps it
                group["lr"] = rate
        self._group_rates = _rates(optimizer)

    def _setup_lr_schedule(self) -> None:
        """Do nothing: the schedule always is :attr:`learning_rate`'s."""


def check_schedule(schedule: object) -> Schedule:
    """Return a schedule, refusing what is none, at its begin and its end.

    Raises:
        TypeError: not a function of one number.
        ValueError: it gives a rate that is negative or not finite.
    """
    if not callable(schedule):
        raise TypeError(
            "the learning rate must be a number, or a function of the remaining progress (1 to 0), got "
            f"{type(schedule).__name__} {schedule!r}."
        )
    for progress in (1.0, 0.0):
        _checked(schedule, progress)
    return schedule


def _checked(schedule: Schedule, progress: float) -> float:
    try:
        rate = float(schedule(progress))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the learning rate's schedule must turn the remaining progress (1 to 0) into a number; at {progress:g} it "
            f"failed: {error}."
        ) from error
    if not 0 <= rate < math.inf:
        raise ValueError(
            f"the learning rate's schedule gave {rate!r} at remaining progress {progress:g}; it must give a finite "
            "number of at least 0."
        )
    return rate


def _rates(optimizer: Optimizer) -> tuple[float, ...]:
    return tuple(group["lr"] for group in optimizer.param_groups)
