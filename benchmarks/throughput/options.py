"""The options of ``throughput``; importable without torch."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from algorithms import AlgorithmConfig, PolicyConfig
from algorithms.config.base import EvaluationConfig
from benchmarks.runs.spec import TaskConfig
from benchmarks.suite import EMBEDDED, MODERN, POLICY, PROMPTS, SETTINGS
from diffusion_gym.choices import DEFAULT_MODEL, ModelDtype
from diffusion_gym.recommended import recommended_for


@dataclass(frozen=True)
class Throughput:
    """Measure sampling and training against the denoiser, VAE, reward and optimizer alone, in the same run.

    The default is the setting of compare on the embedded model; steps and policy follow --model. Floor and program
    take turns; the figures are medians over the pairs. The fastest chunk size is named.
    """

    model: str = DEFAULT_MODEL
    """Embedded model, exact model, folder in diffusers' layout, or hub id."""
    reward: str = "compressibility"
    """A registered reward."""
    prompts: str | None = None
    """A prompt set or a file of prompts; None takes ten-animals on the embedded model, else the model's own."""
    num_inference_steps: int = 10
    """Denoising steps per image."""
    device: str = "auto"
    """Where the model runs: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps."""
    dtype: ModelDtype = "float32"
    """Precision of the frozen networks."""
    algorithm: str = "ddpo-is"
    """The algorithm, with the settings of compare or of its suite "modern"."""
    policy: PolicyConfig = POLICY
    """Sampler and trained weights."""
    images: int = 64
    """Images per iteration."""
    num_envs: int = 32
    """Images side by side; must divide images."""
    pairs: int = 7
    """Iterations that are measured, each beside its floor."""
    threads: int = 1
    """Torch threads; 0 takes all cores."""
    growth: bool = False
    """Also measure how the time grows with images, steps and latent size."""
    profile: bool = False
    """Also print the largest costs of one iteration, by part of the program and by kind of operation."""
    output: Path = Path("runs/throughput.json")
    """The file of the raw numbers, JSON; the tables go beside it, as Markdown."""

    def __post_init__(self) -> None:
        """Refuse mistakes before anything is loaded."""
        self.task()
        if self.algorithm not in (known := {**SETTINGS, **MODERN.settings}):
            raise ValueError(f"unknown algorithm {self.algorithm!r}; expected one of {sorted(known)}.")
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
        return TaskConfig(self.model, self.reward, prompts, self.num_inference_steps, self.device, self.dtype)

    def config(self) -> AlgorithmConfig:
        """Return the algorithm's configuration, without evaluations, which are no part of an iteration."""
        recipe = EMBEDDED if self.algorithm in SETTINGS else MODERN
        chosen = recipe.config(self.algorithm, 0, images_per_iteration=self.images, num_envs=self.num_envs)
        policy = self.policy if recipe is EMBEDDED else dataclasses.replace(self.policy, eta=chosen.policy.eta)
        return dataclasses.replace(chosen, policy=policy, evaluation=EvaluationConfig())
