"""Saving and restoring an algorithm between two iterations, bit for bit."""

import contextlib
import copy
import os
import platform
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import gymnasium
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from algorithms.checkpoints.file import (
    Checkpoint,
    Place,
    check_place,
    checkpoint_path,
    name_of,
    read_checkpoint,
    write_checkpoint,
)
from algorithms.checkpoints.published import published
from algorithms.checkpoints.tensors import (
    Groups,
    check_tensors,
    copy_into,
    flatten,
    get_tensors,
    set_tensors,
    unflatten,
)
from algorithms.config.base import from_dict, to_dict
from algorithms.optimization import GradientSteps
from algorithms.parallel.ranks import Ranks
from algorithms.policy import DenoisingPolicy
from algorithms.sb3.algorithm import Config, StableBaselinesAlgorithm
from algorithms.sb3.callback_locals import CallbackLocals
from algorithms.sb3.vec_env import describe_env, rebuild_env
from algorithms.weight_average import WeightAverage
from diffusion_gym.models.fingerprint import Fingerprint, difference, fingerprint
from diffusion_gym.paths import user_path
from diffusion_gym.rewards import WeightedSum

Self = TypeVar("Self", bound="SavedAlgorithm[Any]")
#: What the state of every checkpoint holds.
_STATE = {"algorithm", "config", "env", "model", "iteration", "num_timesteps", "steps", "costs", "extra"}


class SavedAlgorithm(StableBaselinesAlgorithm[Config]):
    """The state of an algorithm, and Stable-Baselines3's get_parameters, set_parameters, save and load.

    A checkpoint is the state at an iteration's start: weights, moments, averages, counters, costs, statistics. Random
    numbers need no state: they are keyed by their purpose (see ``seeding.py``).
    """

    config_class: type[Config]
    config: Config
    ranks: Ranks
    policy: DenoisingPolicy  # type: ignore[assignment]
    average: WeightAverage | None
    gradient_steps: GradientSteps
    iteration: int
    costs: dict[str, Any]
    updating: bool
    _committed_timesteps: int

    def extra_state(self) -> dict[str, Any]:
        """Return a subclass's own state beside weights and optimizer, JSON-serialisable."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`extra_state` returned."""

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return a subclass's own tensors by name, such as a second set of weights; loading writes into them."""
        return {}

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the policy has the weights that are evaluated and exported: the moving average."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def _state(self) -> dict[str, Any]:
        return {
            "algorithm": type(self).__name__,
            "config": to_dict(self.config),
            "env": describe_env(self.mdp),
            "model": fingerprint(self.mdp.model),
            "iteration": self.iteration,
            "num_timesteps": self._committed_timesteps,
            "steps": self.gradient_steps.state_dict(),
            "costs": self.costs,
            "chunk_size": self.policy.chunk_size,
            "noise_levels": self.policy.noise_levels,
            "schedule": repr(self.learning_rate) if callable(self.learning_rate) else None,
            "reward": self.mdp.reward.state_dict() if isinstance(self.mdp.reward, WeightedSum) else None,
            "extra": self.extra_state(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        """A second algorithm in the same state, with an environment and a model of its own, and without the logger."""
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        kept = {name: value for name, value in vars(self).items() if name not in ("_logger", "_callback_locals")}
        clone.__dict__.update(copy.deepcopy(kept, memo), _callback_locals=CallbackLocals(), _custom_logger=False)
        return clone

    def __reduce__(self) -> Any:
        """Refuse to be pickled: TypeError."""
        raise TypeError(
            f"{type(self).__name__} cannot be pickled; save(path) writes a checkpoint, or save(io.BytesIO()) one in "
            "memory, from which load() builds it again, in another process too."
        )

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All that training changes, by name: the policy's weights; a subclass adds networks of its own, as a critic's.

        The moving average and exports are of the policy's alone.
        """
        return self.policy.trainable_parameters()

    def get_parameters(self) -> Groups:
        """Return copies of all tensors: groups "policy", "optimizer", "average" and "extra" of name -> tensor.

        Collective: call on every rank.
        """
        return self._get_parameters()

    def _get_parameters(self, device: str | None = None, copy: bool = True) -> Groups:
        others = {"average": {} if self.average is None else self.average.tensors, "extra": self.extra_tensors()}
        with self.ranks.ending_together():
            return get_tensors(self.trained_parameters(), getattr(self, "optimizer", None), others, device, copy)

    def set_parameters(  # type: ignore[override]
        self,
        load_path_or_dict: Place | Groups,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Set weights, moments, averages and extra tensors from a checkpoint or from :meth:`get_parameters`'s result.

        Where no averages are given, the moving average begins again at the new weights.

        Raises:
            ValueError: names or shapes that are not this policy's.
        """
        given = (
            load_path_or_dict
            if isinstance(load_path_or_dict, dict)
            else unflatten(read_checkpoint(load_path_or_dict).tensors)
        )
        unknown = sorted(set(given) - {"policy", "optimizer", "average", "extra"})
        if unknown:
            raise ValueError(f"unknown group {unknown[0]!r}; expected policy, optimizer, average or extra.")
        averaged = self.policy.trainable_parameters()
        if self.average is not None and "average" in given:
            check_tensors(given["average"], averaged)
        if "extra" in given:
            check_tensors(given["extra"], self.extra_tensors())
        set_tensors(self.trained_parameters(), getattr(self, "optimizer", None), given, exact_match)
        if self.average is not None:
            self.average.load(given.get("average", averaged))
        if "extra" in given:
            copy_into(self.extra_tensors(), given["extra"])

    def save(  # type: ignore[override]
        self, path: Place, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """Write a checkpoint to ``path`` (with ``.zip``), atomically, or into an open binary file.

        It is safetensors and JSON, no pickle; a schedule of the learning rate is not in it, and given again to `load`.

        Collective: call on every rank; the first writes, and the others wait until it has.

        A file there that is not a checkpoint is not replaced. ``exclude`` and ``include`` are Stable-Baselines3's; a
        checkpoint has fixed content, so they are refused.
        """
        if exclude or include:
            raise ValueError("a Diffusion Gym checkpoint has fixed content; exclude and include are not supported.")
        check_place(path, "writable")
        if self.updating:
            warnings.warn(
                "an update was interrupted, so the weights are between two iterations; to resume exactly, load the "
                "last checkpoint instead.",
                stacklevel=2,
            )
        target = checkpoint_path(path) if isinstance(path, str | os.PathLike) else path
        # Written from where they are, without a copy; sharded ones are gathered in main memory.
        tensors = flatten(self._get_parameters("cpu" if self.ranks.sharded else None, copy=False))
        self.ranks.first(lambda: write_checkpoint(target, self._state(), tensors))

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write the tuned weights in diffusers' own format: a LoRA for ``load_lora_weights``, or a pipeline folder.

        With ``ema_decay`` they are the averaged weights. Collective: call on every rank; the first writes.

        Raises:
            ValueError: a file in the way that no export wrote, or that was changed since; nothing is replaced then.
        """
        target = user_path(folder)
        with self.averaged():
            with self.ranks.ending_together():
                denoiser: Any = self.policy.whole_denoiser()

            def write() -> None:
                with published(target) as fresh:
                    self.policy.model.export(denoiser, fresh, self.policy.lora)

            self.ranks.first(write)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[Self],
        path: Place,
        env: str | gymnasium.Env | gymnasium.vector.VectorEnv | VecEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Rebuild an algorithm from a checkpoint; ``learn(..., reset_num_timesteps=False)`` resumes bit for bit.

        Args:
            path: what :meth:`save` wrote; a binary file that is open is read from its begin.
            env: the environment, whose model may have moved; None rebuilds the saved one (possible if its reward was
                given by name).
            device: for a rebuilt environment, "auto" is the device it was saved on; else as the constructor's.
            custom_objects: Stable-Baselines3's name for what replaces saved values, here fields of the configuration;
                its ``lr_schedule`` is a ``learning_rate``.
            kwargs: ``verbose``, ``tensorboard_log``, or fields of the configuration to change; the ``learning_rate``
                may be a schedule, and must be given where the saved one was.

        Raises:
            TypeError: a name that is no field of the configuration.
            ValueError: a missing, damaged or foreign checkpoint, an environment of another model, or no learning rate
                in place of a schedule.
        """
        custom = dict(custom_objects or {})
        if "lr_schedule" in custom:
            custom.setdefault("learning_rate", custom.pop("lr_schedule"))
        kwargs = {**custom, **kwargs}
        checkpoint = read_checkpoint(path)
        state = checkpoint.state
        lacking = sorted(_STATE - set(state))
        if lacking:
            raise ValueError(f"{name_of(path)} is not a checkpoint of an algorithm: its state lacks {lacking[0]!r}.")
        if state["algorithm"] != cls.__name__:
            raise ValueError(f"{name_of(path)} is a checkpoint of {state['algorithm']}, not of {cls.__name__}.")
        if state.get("schedule") and "learning_rate" not in kwargs:
            raise ValueError(
                f"{name_of(path)} was trained with a schedule of the learning rate, {state['schedule']}, which no file "
                "can hold; give it again, load(path, learning_rate=schedule), or a number in its place."
            )
        config = from_dict(cls.config_class, state["config"])
        if env is None:
            env = rebuild_env(state["env"], device)
        elif str(device) != "auto":
            kwargs["device"] = device
        # As in Stable-Baselines3: checks that only a new training needs are left out.
        algorithm = cls(env, config, _init_setup_model=False, **kwargs)  # type: ignore[arg-type, call-arg]
        algorithm._setup_model()
        algorithm._restore(checkpoint, set(kwargs))
        return algorithm

    def _restore(self, checkpoint: Checkpoint, given: Collection[str]) -> None:
        """Restore a checkpoint's state, except the sizes and noise levels whose options ``load`` was ``given``."""
        state = checkpoint.state
        self._check_model(state["env"]["model"], state["model"])
        self.load_extra_state(state["extra"])  # first: extra tensors may depend on it
        groups = unflatten(checkpoint.tensors)
        check_tensors(groups.get("extra", {}), self.extra_tensors())
        self.set_parameters(groups)
        if not {"chunk_size", "policy"} & set(given):
            self.policy.chunk_size = state["chunk_size"]  # what memory allowed in the saved run
        if not {"eta", "policy"} & set(given):
            levels = state["noise_levels"]  # as they were changed between iterations
            self.policy.set_noise_levels(tuple(levels) if isinstance(levels, list) else levels)
        self.gradient_steps.load_state_dict(state["steps"])
        if isinstance(self.mdp.reward, WeightedSum) and state["reward"]:
            self.mdp.reward.load_state_dict(state["reward"])
        self.iteration = state["iteration"]
        self.num_timesteps = self._committed_timesteps = state["num_timesteps"]
        self._n_updates, self.costs = self.gradient_steps.made, state["costs"]

    def _check_model(self, name: str, saved: Fingerprint) -> None:
        """Raise ValueError for a model that the checkpoint was not trained on, wherever it is stored."""
        reason = difference(saved, fingerprint(self.mdp.model))
        if reason is not None:
            raise ValueError(
                f"the checkpoint was trained on the model {name!r}, the environment has {self.mdp.model.name!r}, which "
                f"is another: {reason}."
            )
