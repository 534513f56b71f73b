"""What Stable-Baselines3's BaseAlgorithm needs to run on denoising environments: setting up, and the learning rate."""

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Generic, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn
from torch.optim import Optimizer

from algorithms.config.base import AlgorithmConfig, override
from algorithms.optimization import make_optimizer
from algorithms.sb3.callback_locals import CallbackLocals
from algorithms.sb3.vec_env import DenoiseVecEnv, find_mdp
from diffusion_gym.envs.mdp import DenoisingMDP

Config = TypeVar("Config", bound=AlgorithmConfig)
#: Stable-Baselines3's: the share of ``learn``'s steps that remains, 1 to 0 -> the rate.
Schedule = Callable[[float], float]


class StableBaselinesAlgorithm(BaseAlgorithm, Generic[Config]):
    """Stable-Baselines3's side of an algorithm.

    Whatever sets ``learning_rate`` or ``lr_schedule``, at any time, sets the rate of the next update. A number is the
    configuration's, so checkpoints have it; a schedule cannot be saved and is given again to ``load``.
    """

    config: Config
    _callback_locals: CallbackLocals
    _schedule: Schedule | None = None  # in the place of the configuration's number
    _current_rate: float = math.nan  # of the last update, or of the first to come
    _group_rates: tuple[float, ...] = ()  # as they were left in the optimizer

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Return the environment as a VecEnv; Stable-Baselines3's own wrapping does not know Gymnasium's VectorEnv."""
        if isinstance(env, DenoiseVecEnv):
            return env
        mdp = find_mdp(env)
        return DenoiseVecEnv(mdp, mdp.num_envs)

    @property
    def mdp(self) -> DenoisingMDP:
        """The environment's model, reward, prompts and grid."""
        assert isinstance(self.env, DenoiseVecEnv)
        return self.env.mdp

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the images and updates that follow, and, as in Stable-Baselines3, the global generators."""
        if seed is not None:
            self.config = override(self.config, seed=seed)
            self.seed = seed
        super().set_random_seed(seed)

    def _begin_learning(
        self, total_timesteps: int, callback: MaybeCallback, log_interval: int, reset: bool, name: str, bar: bool
    ) -> tuple[int, BaseCallback]:
        """Check ``learn``'s arguments and prepare as Stable-Baselines3 does; return the total and the callback."""
        check_learn_arguments(total_timesteps, callback, log_interval)
        return self._setup_learn(total_timesteps, callback, reset, name, bar)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """Prepare as Stable-Baselines3 does, without resetting its environment, whose observations are not used."""
        with _unobserved(self):
            total, _ = super()._setup_learn(total_timesteps, None, reset_num_timesteps, tb_log_name)
        return total, self._init_callback(callback, progress_bar)

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
        """Set the optimizer's rate to that of the present progress: 1 at ``learn``'s begin, 0 at ``total_timesteps``.

        Raises:
            ValueError: the schedule gives no rate, or another rate was written into the optimizer.
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
                    f"the optimizer's learning rate was changed to {found!r} in its param_groups, which neither the "
                    f"log nor a checkpoint would hold; set the algorithm's instead: model.learning_rate = {found!r}."
                )
        for group in optimizer.param_groups:
            if group["lr"] == self._current_rate:  # a group with a rate of its own keeps it
                group["lr"] = rate
        self._group_rates = _rates(optimizer)

    def _setup_lr_schedule(self) -> None:
        """Do nothing: the schedule always is :attr:`learning_rate`'s."""


def check_schedule(schedule: object) -> Schedule:
    """Return a schedule that gives a rate at the begin and at the end of training.

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


def check_learn_arguments(total_timesteps: object, callback: object, log_interval: object) -> None:
    """Refuse arguments of ``learn`` before anything is sampled.

    Raises:
        TypeError: a callback of another kind.
        ValueError: a number of steps or an interval that is not an integer in its range.
    """
    if not _is_integer(total_timesteps, 0):
        raise ValueError(
            f"total_timesteps must be an integer of at least 0, got {total_timesteps!r}; for 1e5 write 100_000."
        )
    if not _is_integer(log_interval, 1):
        raise ValueError(f"log_interval must be an integer of at least 1, got {log_interval!r}.")
    for one in callback if isinstance(callback, list) else [callback]:
        if isinstance(one, type):
            raise TypeError(f"the callback {one.__name__} is a class; give an instance of it: {one.__name__}(...).")
        if one is not None and not isinstance(one, BaseCallback) and (isinstance(callback, list) or not callable(one)):
            raise TypeError(
                "callback must be a Stable-Baselines3 callback, a list of them, or a function (locals, globals) -> "
                f"bool, got {type(one).__name__}{' in a list' if isinstance(callback, Sequence) else ''}."
            )


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@contextlib.contextmanager
def _unobserved(algorithm: BaseAlgorithm) -> Iterator[None]:
    env = algorithm.env
    algorithm.env = _Unobserved()  # type: ignore[assignment]
    try:
        yield
    finally:
        algorithm.env = env


class _Unobserved:
    num_envs = 0

    def reset(self) -> Any:
        return None
