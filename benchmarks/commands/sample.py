"""``sample``: pictures of a model, before and after tuning, from the same noise."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from algorithms import ALGORITHMS, PolicyConfig
from algorithms.config.base import override
from benchmarks.runs.pictures import check_picture_file, grid
from benchmarks.runs.spec import TaskConfig
from diffusion_gym.choices import DEFAULT_MODEL, ModelDtype
from diffusion_gym.prompts import FORMATS, PROMPT_SETS, resolve_prompts
from diffusion_gym.recommended import recommended_for

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from algorithms.policy import DenoisingPolicy
    from diffusion_gym.envs.vector import DenoiseVectorEnv

#: Settings that a run's folder decides; those of them that are the policy's.
_POLICY = ("guidance_scale", "eta")
_BASE_ONLY = ("num_inference_steps", *_POLICY)


def _of_model(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: what the model recommends)")


@dataclass(frozen=True)
class Sample:
    """Draw pictures; with a run's folder, the base model's and, beside them, the tuned model's."""

    prompts: tuple[str, ...] = ("cat", "dog", "a fox riding a bike")
    """Texts; or a prompt set's name or a file of prompts, or one side of its split (animals@held-out)."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: the base model)")] = None
    """A folder written by train or compare."""
    checkpoint: Literal["last", "best"] = "last"
    """Which of the run's weights: its last, or those kept by --keep-best."""
    model: Annotated[
        str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="(default: the run's, or emoji-animals)")
    ] = None
    """The model; with a run, where the run's own model lies now."""
    images: int = 4
    """Pictures a prompt."""
    num_inference_steps: Annotated[int | None, _of_model("INT")] = None
    """Denoising steps, where no run is given."""
    guidance_scale: Annotated[float | None, _of_model("FLOAT")] = None
    """Classifier-free guidance, where no run is given; up to 1 is none."""
    eta: Annotated[float | None, _of_model("FLOAT")] = None
    """The sampler's noise, where no run is given."""
    seed: int = 0
    """Fixes the noise."""
    device: str = "auto"
    """Where the pictures are drawn: auto (a GPU that CUDA knows, or the CPU), cpu, cuda, cuda:1, mps."""
    dtype: Annotated[
        ModelDtype | None, tyro.conf.arg(help_behavior_hint="(default: the run's, or float32 where no run is given)")
    ] = None
    """Precision of the frozen networks."""
    output: Path = Path("samples.png")
    """The picture file."""
    scale: int = 2
    """Size of a pixel: 2 draws each as 2 x 2."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        steps = 1 if self.num_inference_steps is None else self.num_inference_steps
        if self.images < 1 or self.scale < 1 or steps < 1 or not self.prompts:
            raise ValueError(
                "expected at least one prompt, images >= 1, num_inference_steps >= 1 and scale >= 1, got "
                f"{len(self.prompts)}, {self.images}, {steps} and {self.scale}."
            )
        if self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {self.seed}.")
        check_picture_file(self.output)
        override(PolicyConfig(), **self._given(_POLICY))
        given = list(self._given(_BASE_ONLY))
        if self.run is not None and given:
            raise ValueError(f"with a run its own {given[0]} is used; leave out {given[0]}, or leave out the run.")
        if self.checkpoint == "best" and self.run is None:
            raise ValueError("--checkpoint best needs a run that was trained with --keep-best; name it with --run.")

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def base(self) -> tuple[TaskConfig, PolicyConfig]:
        """Return how the base model is sampled: as it recommends for training, except for what is given."""
        model = self.model or DEFAULT_MODEL
        found = recommended_for(model)
        advised = {name: value for name, value in found.settings("").items() if name in _POLICY}
        steps = self.num_inference_steps or found.num_inference_steps
        config = override(PolicyConfig(trainable="full"), **{**advised, **self._given(_POLICY)})
        return TaskConfig(model, num_inference_steps=steps), config


def sample(options: Sample) -> int:
    """Write the picture; returns the exit status."""
    from algorithms.checkpoints.published import check_output, published
    from benchmarks.runs.folder import BEST, CHECKPOINT

    file = None if options.run is None else options.run / (BEST if options.checkpoint == "best" else CHECKPOINT)
    if options.checkpoint == "best" and file is not None and not file.is_file():
        raise ValueError(
            f"{str(options.run)!r} holds no {BEST}; expected a run that was trained with --keep-best. Leave out "
            "--checkpoint best to draw with its last weights."
        )
    check_output(options.output)
    with published(options.output.parent) as fresh:  # now: pictures that cannot be written are not drawn
        picture, said = _sample(options, file)
        picture.save(fresh / options.output.name)
    print(f"{options.output}: {said}")
    return 0


def _sample(options: Sample, file: Path | None) -> tuple[Image.Image, str]:
    """Draw; return the picture, and what it shows. ``file`` holds the tuned weights."""
    import torch

    from algorithms.policy import DenoisingPolicy
    from benchmarks.runs.run import read_run
    from diffusion_gym.envs.config import build_mdp
    from diffusion_gym.envs.vector import DenoiseVectorEnv

    prompts = _prompts(options.prompts)
    if options.run is None:
        task, config = options.base()
    else:
        spec = read_run(options.run).spec
        task, config = spec.task, spec.config.policy
    mdp = build_mdp(
        options.model or task.model,
        "compressibility",  # not the run's reward, which pictures do not need
        prompts,
        task.num_inference_steps,
        1,
        options.device,
        options.dtype or task.dtype,
        task.vae_tiling,
        config.trains_text,
    )
    texts = [prompt for prompt in prompts for _ in range(options.images)]
    env = DenoiseVectorEnv.sharing(mdp, min(len(texts), config.chunk_size))
    policies = [DenoisingPolicy(mdp.model, task.num_inference_steps, config)]
    averaged: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if file is not None:
        # Prompts that were held out of training may be drawn here, so that they are no longer told apart.
        algorithm = ALGORITHMS[spec.algorithm].cls.load(file, env, held_out_prompts=None)
        policies.append(algorithm.policy)
        averaged = algorithm.averaged()
    with averaged:
        drawn = [_draw(env, policy, texts, options.seed) for policy in policies]
    rows = torch.stack(drawn, 1) if len(drawn) == 2 else drawn[0][:, None]
    per_prompt = rows.reshape(len(prompts), options.images, len(drawn), *drawn[0].shape[1:]).transpose(1, 2)
    picture = grid(per_prompt.flatten(0, 2), options.images * len(drawn), options.scale)
    sides = "left: base, right: tuned" if len(drawn) == 2 else "one row a prompt"
    return picture, f"{len(prompts)} prompts x {options.images} pictures ({sides})"


def _prompts(given: tuple[str, ...]) -> Sequence[str]:
    """Return texts; a single word or sentence is one, and not the name of a set that does not exist."""
    source = given[0].removesuffix("@train").removesuffix("@held-out")
    if len(given) == 1 and (source in PROMPT_SETS or Path(source).suffix.lower() in FORMATS or _is_file(source)):
        return resolve_prompts(given[0])
    return given


def _is_file(text: str) -> bool:
    with contextlib.suppress(OSError):  # a sentence may be longer than any file's name
        return Path(text).is_file()
    return False


def _draw(env: DenoiseVectorEnv, policy: DenoisingPolicy, texts: list[str], seed: int) -> Tensor:
    """Return the policy's pictures, (n, 3, H, W), uint8, on the CPU."""
    from algorithms.memory import fit_chunk_size
    from algorithms.rollouts import collect

    rollout = fit_chunk_size(policy, lambda: collect(env, policy, texts, seed, whole_trajectory=False))
    return rollout.images.cpu()
