"""What a run is: the task, the algorithm, the budget; frozen dataclasses that are also the command line."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from algorithms import ALGORITHMS, AlgorithmConfig
from algorithms.config import from_dict, to_dict
from benchmarks.metrics import check_metric
from diffusion_gym.prompts import resolve_prompts
from diffusion_gym.rewards import check_reward


@dataclass(frozen=True)
class TaskConfig:
    """What is tuned toward what."""

    model: str = "emoji-animals"
    """Embedded model, exact model, folder in diffusers' layout, or hub id."""
    reward: str = "compressibility"
    """A registered reward, with options as name?key=value&key=value; a function of yours as path/to/file.py:function;
    or several as name:weight,name:weight; behind a name also :normalise and :floor=X (docs/rewards)."""
    prompts: str | None = None
    """A prompt set, or a file with one prompt (or, in .jsonl, one prompt and its weight) a line; either with @train or
    @held-out behind it for one side of its split; by default the model's own."""
    num_inference_steps: int = 10
    """Denoising steps an image. The paper uses 50 for Stable Diffusion."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen networks."""
    metrics: tuple[str, ...] = ()
    """Measured at each evaluation beside the reward: diversity, recognised (embedded model only), or any reward, as
    clip_score, by its mean."""

    def __post_init__(self) -> None:
        """Refuse unknown names before any weight is loaded."""
        check_reward(self.reward)
        if self.prompts is not None:
            resolve_prompts(self.prompts)
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}.")
        for metric in self.metrics:
            check_metric(metric)


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's numbers, on one device with one number of threads."""

    algorithm: str
    """Registered name."""
    config: AlgorithmConfig
    """The algorithm's configuration."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The task."""
    reward_queries: int = 2048
    """Reward queries to train for, rounded up to whole iterations."""

    def __post_init__(self) -> None:
        """Refuse an impossible budget or an unknown algorithm."""
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; expected one of {sorted(ALGORITHMS)}.")
        if self.reward_queries < 1:
            raise ValueError(f"reward_queries must be at least 1, got {self.reward_queries}.")

    @property
    def total_queries(self) -> int:
        """Reward queries of the whole iterations that the budget is rounded up to."""
        size = self.config.images_per_iteration
        return -(-self.reward_queries // size) * size

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON."""
        return {
            "algorithm": self.algorithm,
            "config": to_dict(self.config),
            "task": dataclasses.asdict(self.task),
            "reward_queries": self.reward_queries,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunSpec":
        """Rebuild a specification."""
        return cls(
            data["algorithm"],
            from_dict(type(ALGORITHMS[data["algorithm"]].config), data["config"]),
            from_dict(TaskConfig, data["task"]),
            data["reward_queries"],
        )
