"""Small runs of an algorithm that is checked: how it is built and trained, and all that two runs can differ in."""

import contextlib
import io
import json
import random
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch import Tensor, nn

import diffusion_gym
from algorithms.base import FORWARDS_PER_TRAINED_ROW, DiffusionAlgorithm
from algorithms.config.base import AlgorithmConfig, EvaluationConfig, override
from diffusion_gym.rewards import RewardSpec, RewardTerm, WeightedSum, resolve_reward

#: Two prompts per iteration of four, two rounds of sampling, and chunks of unequal size.
SMALL: Mapping[str, Any] = {
    "trainable": "full",
    "images_per_iteration": 16,
    "images_per_prompt": 8,
    "num_envs": 8,
    "chunk_size": 3,
    "learning_rate": 0.05,
}
#: What learning, and a gradient, is measured with.
LEARNING: Mapping[str, Any] = {
    **SMALL,
    "images_per_iteration": 64,
    "images_per_prompt": 16,
    "num_envs": 64,
    "chunk_size": 512,
}
ITERATIONS = 3


@dataclass(frozen=True)
class Subject:
    """What is checked, and how it is built."""

    cls: type[DiffusionAlgorithm[Any]]
    config: AlgorithmConfig
    flow: bool
    settings: Mapping[str, Any]

    def build(
        self,
        small: Mapping[str, Any] = SMALL,
        model: str = "mixture",
        reward: RewardSpec = "exact-quadratic",
        **changes: Any,
    ) -> DiffusionAlgorithm[Any]:
        """Return a new algorithm; the user's settings come before the check's small ones, and changes before both.

        Only changes make it evaluate: evaluations are not billed, and not the same lines in a run that is resumed.
        """
        config = override(self.config, **{**small, **self.settings, **changes})
        config = replace(config, evaluation=changes.get("evaluation", EvaluationConfig()))
        return self.cls(self.env(model, reward), config)

    def env(self, model: str = "mixture", reward: RewardSpec = "exact-quadratic") -> gymnasium.Env:
        """Return an environment of 4 steps, on the mixture with a prompt for each component."""
        prompts = ["north", "east", "south", "west"] if model == "mixture" else ["anywhere"]
        config = override(self.config, **{**SMALL, **self.settings})
        if self.cls.requires(config).several_rewards:  # one reward in two terms, which add up to it
            reward = WeightedSum([RewardTerm(resolve_reward(reward), weight) for weight in (0.75, 0.25)])
        name = f"exact-{'flow-' if self.flow else ''}{model}"
        return gymnasium.make(diffusion_gym.ENV_ID, model=name, reward=reward, prompts=prompts, num_inference_steps=4)

    def require(self, kept: bool, message: str) -> None:
        """Raise AssertionError with the class's name and the message unless the promise is kept."""
        if not kept:
            raise AssertionError(f"{self.cls.__name__}: {message}")


@dataclass
class Run:
    """A finished run: the algorithm, the lines of its log, and the forwards that its denoiser did."""

    algorithm: DiffusionAlgorithm[Any]
    lines: list[dict[str, Any]]
    forwards: int = 0


def run(subject: Subject, seed: int = 0, callback: BaseCallback | None = None, **changes: Any) -> Run:
    """Train small; ``seed`` is that of the global generators, on which nothing may depend."""
    with global_generators(seed):
        algorithm = subject.build(**changes)
        made = Run(algorithm, logged(algorithm))

        def count(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            made.forwards += len(output) * (FORWARDS_PER_TRAINED_ROW if output.requires_grad else 1)

        algorithm.policy.denoiser.register_forward_hook(count)
        learn(algorithm, ITERATIONS, callback)
    return made


def learn(algorithm: DiffusionAlgorithm[Any], iterations: int, callback: BaseCallback | None = None) -> None:
    """Train on until ``iterations`` are done in all."""
    images = (iterations - algorithm.iteration) * algorithm.config.images_per_iteration
    algorithm.learn(images * algorithm.mdp.num_inference_steps, callback, reset_num_timesteps=algorithm.iteration == 0)


class SaveInSecond(BaseCallback):
    """Saves at the first step of the second rollout, and stops."""

    def __init__(self, file: io.BytesIO) -> None:
        """Args: file: open for writing; empty where no callback was called in the second rollout."""
        super().__init__()
        self._file = file

    def _on_step(self) -> bool:
        if self.model.iteration == 1:  # type: ignore[attr-defined]
            self.model.save(self._file)
            return False
        return True


class _Lines(KVWriter):
    """Keeps the log's lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.lines.append(dict(key_values))

    def close(self) -> None:
        """Do nothing."""


def logged(algorithm: DiffusionAlgorithm[Any]) -> list[dict[str, Any]]:
    """Return a list to which each line of the log is added from now on."""
    writer = _Lines()
    algorithm.set_logger(Logger(None, [writer]))
    return writer.lines


@contextlib.contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Seed all global generators inside a ``with`` block, and restore them."""
    before, numpy_before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)


def state(algorithm: DiffusionAlgorithm[Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all that must be equal, by names for a message; nothing that is measured in time."""
    tensors = {
        f"{name} of {part}": value
        for part, found in algorithm.get_parameters().items()
        for name, value in found.items()
    }
    log = {f"{name} in line {i} of the log": value for i, line in enumerate(lines) for name, value in line.items()}
    counters = {"extra_state()": algorithm.extra_state(), "num_timesteps": algorithm.num_timesteps, **algorithm.costs}
    return {name: value for name, value in {**log, **counters, **tensors}.items() if "seconds" not in name}


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return what differs first between two states, or None."""
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other:
            return f"only one has {name}"
        first, second = one[name], other[name]
        if isinstance(first, Tensor):
            if not torch.equal(first, second):
                return f"{name} differs by up to {float((first - second).abs().max()):g}"
        elif (texts := [json.dumps(value, sort_keys=True) for value in (first, second)])[0] != texts[1]:
            return f"{name} is {textwrap.shorten(texts[0], 60)} and {textwrap.shorten(texts[1], 60)}"
    return None
