"""``sample``: pictures of a model, before and after tuning, from the same noise."""

from dataclasses import dataclass
from pathlib import Path

import torch

from algorithms import ALGORITHMS, PolicyConfig
from algorithms.policy import DenoisingPolicy
from algorithms.rollouts import collect
from benchmarks.pictures import grid
from benchmarks.runs import read_run
from diffusion_gym.envs.config import build_mdp
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.prompts import resolve_prompts


@dataclass(frozen=True)
class Sample:
    """Draw pictures; with a run's folder, each prompt's row shows the base model's and then the tuned model's."""

    prompts: tuple[str, ...] = ("cat", "dog", "a fox riding a bike")
    """Texts, or one prompt set's name or file."""
    run: Path | None = None
    """A folder written by train or compare."""
    model: str = "emoji-animals"
    """The model, where no run is given."""
    images: int = 4
    """Pictures a prompt."""
    num_inference_steps: int = 10
    """Denoising steps, where no run is given."""
    guidance_scale: float = 1.0
    """Classifier-free guidance, where no run is given."""
    eta: float = 1.0
    """Noise of DDIM, where no run is given."""
    seed: int = 0
    """Fixes the noise."""
    output: Path = Path("samples.png")
    """The picture file."""
    scale: int = 2
    """Pixels a pixel."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if self.images < 1 or self.scale < 1 or not self.prompts:
            raise ValueError("expected at least one prompt, images >= 1 and scale >= 1.")
        PolicyConfig(guidance_scale=self.guidance_scale, eta=self.eta)


def sample(options: Sample) -> int:
    """Write the picture; returns the exit status."""
    named = options.prompts[0] if len(options.prompts) == 1 else options.prompts
    try:
        prompts = resolve_prompts(named)
    except ValueError:
        prompts = options.prompts  # a single text that is no set and no file
    if options.run is None:
        model, steps = options.model, options.num_inference_steps
        config = PolicyConfig(trainable="full", guidance_scale=options.guidance_scale, eta=options.eta)
    else:
        spec = read_run(options.run).spec
        model, steps, config = spec.task.model, spec.task.num_inference_steps, spec.config.policy
    mdp = build_mdp(model, "compressibility", prompts, steps, 1, "cpu", "float32")
    env = DenoiseVectorEnv.sharing(mdp, options.images)  # without the run's reward, which pictures do not need
    policies = [DenoisingPolicy(mdp.model, steps, config)]
    if options.run is not None:
        policies.append(ALGORITHMS[spec.algorithm].cls.load(options.run / "checkpoint.zip", env).policy)
    texts = [prompt for prompt in prompts for _ in range(options.images)]
    drawn = [collect(env, policy, texts, options.seed, whole_trajectory=False).images for policy in policies]
    rows = torch.stack(drawn, 1) if len(drawn) == 2 else drawn[0][:, None]
    per_prompt = rows.reshape(len(prompts), options.images, len(drawn), *drawn[0].shape[1:]).transpose(1, 2)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    grid(per_prompt.flatten(0, 2), options.images * len(drawn), options.scale).save(options.output)
    sides = "left: base, right: tuned" if len(drawn) == 2 else "one row a prompt"
    print(f"{options.output}: {len(prompts)} prompts x {options.images} pictures ({sides})")
    return 0
