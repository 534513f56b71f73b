"""One iteration of an algorithm, as any user would run it, with the time and the memory of its two phases."""

from typing import Any

import gymnasium
import torch
from stable_baselines3.common.callbacks import BaseCallback

import diffusion_gym
from algorithms import ALGORITHMS, DiffusionAlgorithm
from benchmarks.runs.clock import Seconds
from benchmarks.throughput.options import Throughput
from benchmarks.throughput.peak_memory import PeakMemory
from diffusion_gym.models import DiffusionModel, load_model


def build(options: Throughput, model: DiffusionModel | None = None) -> DiffusionAlgorithm[Any]:
    """Make the environment and the algorithm."""
    task = options.task()
    env = gymnasium.make(
        diffusion_gym.ENV_ID,
        model=model or load_model(task.model, task.device, task.dtype),
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


def _measured(algorithm: DiffusionAlgorithm[Any], memory: bool = False) -> "_Phases":
    phases = _Phases(algorithm.mdp.model.device, memory)
    steps = algorithm.config.images_per_iteration * algorithm.policy.num_inference_steps
    algorithm.learn(steps, phases, reset_num_timesteps=False)
    return phases


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
