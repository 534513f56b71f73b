"""The options of ``throughput``; importable without torch."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from algorithms import AlgorithmConfig, PolicyConfig
from algorithms.config.base import EvaluationConfig
from benchmarks.runs.model_options import ModelOptions, check_start
from benchmarks.runs.spec import TaskConfig
from benchmarks.suite import EMBEDDED, MODERN, POLICY, PROMPTS, SETTINGS
from diffusion_gym.choices import DEFAULT_MODEL, ModelDtype, ModelSettings
from diffusion_gym.recommended import recommended_for


@dataclass(frozen=True)
class Throughput(ModelOptions):
    """Measure how fast sampling and training are, against the denoiser, VAE, reward and optimizer on their own.

    Both are timed in turns, and results are medians over the pairs. The default is the setting of compare on the
    embedded model; steps and policy follow --model. The fastest chunk size is named.
    """

    first: ClassVar[tuple[str, ...]] = ("model", "reward", "prompts", "algorithm")

    model: str = DEFAULT_MODEL
    """An embedded or exact model, a diffusers folder, or a hub id."""
    reward: str = "compressibility"
    """A registered reward."""
    prompts: Annotated[
        str | None, tyro.conf.arg(metavar="SET|FILE", help_behavior_hint="(default: ten-animals, or the model's own)")
    ] = None
    """A prompt set or a file of prompts."""
    num_inference_steps: int = 10
    """Denoising steps per image."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, mps, or auto, a CUDA GPU if there is one, else the CPU."""
    dtype: ModelDtype = "float32"
    """Precision of the frozen networks."""
    algorithm: str = "ddpo-is"
    """The algorithm, with the settings of compare or of its suite "modern"."""
    policy: PolicyConfig = POLICY
    """Sampler and trained weights."""
    images: int = 64
    """Images per iteration."""
    num_envs: int = 32
    """Images sampled side by side; must divide images."""
    pairs: int = 7
    """Iterations to time, each paired with its parts on their own."""
    threads: int = 1
    """Torch threads; 0 uses all cores."""
    growth: bool = False
    """Also measure how the time grows with images, steps and latent size."""
    profile: bool = False
    """Also print the largest costs of one iteration, by part of the program and by kind of operation."""
    output: Path = Path("runs/throughput.json")
    """File of the raw numbers (JSON); the tables are written next to it, as Markdown."""

    def __post_init__(self) -> None:
        """Refuse mistakes before anything is loaded."""
        super().__post_init__()
        self.task()
        check_start(self.model, self.start_from)
        if self.algorithm not in (known := {**SETTINGS, **MODERN.settings}):
            raise ValueError(f"unknown algorithm {self.algorithm!r}; expected one of {sorted(known)}.")
        if self.images < 1 or self.num_envs < 1 or self.images % self.num_envs:
            raise ValueError(f"num_envs ({self.num_envs}) must divide images ({self.images}), both at least 1.")
        if self.pairs < 1 or self.threads < 0:
            raise ValueError(f"expected pairs >= 1 and threads >= 0, got {self.pairs} and {self.threads}.")
        self.config()
        if self.output.suffix == ".md":
            raise ValueError(
                f"output {str(self.output)!r} is where the tables go; name the file of the raw numbers, as with .json."
            )

    @classmethod
    def of_model(cls, model: str) -> "Throughput":
        """Return the defaults for a model: the number of steps and the policy that it recommends."""
        policy = AlgorithmConfig.for_model(model).policy
        return cls(model=model, num_inference_steps=recommended_for(model).num_inference_steps, policy=policy)

    def task(self) -> TaskConfig:
        """Return the task."""
        prompts = PROMPTS if self.prompts is None and self.model == DEFAULT_MODEL else self.prompts
        settings = ModelSettings.among(self).given
        return TaskConfig(
            self.model, self.reward, prompts, self.num_inference_steps, self.device, self.dtype, **settings
        )

    def config(self) -> AlgorithmConfig:
        """Return the algorithm's configuration, without evaluations, which are no part of an iteration."""
        recipe = EMBEDDED if self.algorithm in SETTINGS else MODERN
        chosen = recipe.config(self.algorithm, 0, images_per_iteration=self.images, num_envs=self.num_envs)
        policy = self.policy if recipe is EMBEDDED else dataclasses.replace(self.policy, eta=chosen.policy.eta)
        return dataclasses.replace(chosen, policy=policy, evaluation=EvaluationConfig())
