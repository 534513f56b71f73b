"""One iteration of an algorithm, as any user would run it, with the time and the memory of its two phases."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

import diffusion_gym
from algorithms import ALGORITHMS, DiffusionAlgorithm
from benchmarks.runs.clock import Seconds
from benchmarks.throughput.options import Throughput
from benchmarks.throughput.peak_memory import PeakMemory
from diffusion_gym.models import DiffusionModel, ModelSettings, load_model


@dataclass
class Rows:
    """What the denoiser is asked in one iteration, in rows; with guidance a row passes through it twice."""

    sampled: int = 0
    """While images are sampled."""
    trained: int = 0
    """In training, with a gradient."""
    compared: int = 0
    """In training, without a gradient: of an old policy or of the start."""
    passes: Mapping[str, list[int]] = field(default_factory=dict)
    """By the names above: the rows of each forward pass, in order; empty where they were not recorded."""


def build(options: Throughput, model: DiffusionModel | None = None) -> DiffusionAlgorithm[Any]:
    """Make the environment and the algorithm."""
    task = options.task()
    env = gymnasium.make(
        diffusion_gym.ENV_ID,
        model=model or load_model(task.model, task.device, task.dtype, **ModelSettings.among(task).given),
        reward=task.reward,
        prompts=task.prompts,
        num_inference_steps=task.num_inference_steps,
        prompt_tokens=options.policy.trains_text,
    )
    return ALGORITHMS[options.algorithm].cls(env, options.config())


def iterate(algorithm: DiffusionAlgorithm[Any]) -> dict[str, Seconds]:
    """Learn for one iteration; return the time of sampling and training."""
    return _measured(algorithm).seconds


def iterate_in_memory(algorithm: DiffusionAlgorithm[Any]) -> dict[str, float]:
    """Learn for one iteration; return the peak megabytes of sampling and training."""
    return _measured(algorithm, memory=True).megabytes


def iterate_counting(algorithm: DiffusionAlgorithm[Any]) -> Rows:
    """Learn for one iteration; return the denoiser's rows."""
    passes: dict[str, list[int]] = {"sampled": [], "trained": [], "compared": []}
    phases = _Phases(algorithm.mdp.model.device, memory=False)

    def count(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        kind = "trained" if output.requires_grad else "compared" if "sampling" in phases.seconds else "sampled"
        passes[kind].append(len(output) // algorithm.policy.forwards_per_row)

    handle = algorithm.policy.denoiser.register_forward_hook(count)
    try:
        _learn(algorithm, phases)
    finally:
        handle.remove()
    return Rows(**{kind: sum(sizes) for kind, sizes in passes.items()}, passes=passes)


def _measured(algorithm: DiffusionAlgorithm[Any], memory: bool = False) -> "_Phases":
    phases = _Phases(algorithm.mdp.model.device, memory)
    _learn(algorithm, phases)
    return phases


def _learn(algorithm: DiffusionAlgorithm[Any], phases: "_Phases") -> None:
    steps = algorithm.config.images_per_iteration * algorithm.policy.num_inference_steps
    algorithm.learn(steps, phases, reset_num_timesteps=False)


class _Phases(BaseCallback):
    """Measures the time, and if asked for the peak memory, of an iteration's two phases."""

    def __init__(self, device: torch.device, memory: bool) -> None:
        super().__init__()
        self.device, self.memory = device, memory
        self.seconds: dict[str, Seconds] = {}
        self.megabytes: dict[str, float] = {}

    def _on_training_start(self) -> None:
        self._begin()

    def _on_rollout_end(self) -> None:
        self._end("sampling")
        self._begin()

    def _on_training_end(self) -> None:
        self._end("training")

    def _on_step(self) -> bool:
        return True

    def _begin(self) -> None:
        if self.memory:
            self._peak = PeakMemory(self.device).__enter__()
        self._started = Seconds.now(self.device)

    def _end(self, phase: str) -> None:
        self.seconds[phase] = Seconds.now(self.device) - self._started
        if self.memory:
            self._peak.__exit__()
            self.megabytes[phase] = self._peak.megabytes
