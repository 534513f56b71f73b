"""``sample``: pictures of a model, before and after tuning, from the same noise."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from algorithms import ALGORITHMS, PolicyConfig
from algorithms.config.base import override
from benchmarks.runs.model_options import ModelOptions, check_start
from benchmarks.runs.pictures import check_picture_file, grid
from benchmarks.runs.spec import TaskConfig
from diffusion_gym.choices import DEFAULT_MODEL, ModelDtype, ModelSettings, StartMode
from diffusion_gym.prompts import FORMATS, PROMPT_SETS, Prompt, load_prompts
from diffusion_gym.recommended import recommended_for

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from algorithms.policy import DenoisingPolicy
    from diffusion_gym.envs.vector import DenoiseVectorEnv

#: The policy's settings among the options; with a run, and likewise the number of steps, they are the run's.
_POLICY = ("guidance_scale", "eta", "negative_prompt", "guidance_rescale", "image_guidance_scale")


def _option(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Sample(ModelOptions):
    """Draw pictures with a model, or with a run's model before and after tuning, side by side.

    With a run, the settings of model and sampler are the run's.
    """

    first: ClassVar[tuple[str, ...]] = (
        *("prompts", "run", "checkpoint", "model", "images"),
        *("num_inference_steps", "guidance_scale", "eta", "negative_prompt"),
    )
    details: ClassVar[tuple[str, ...]] = ("guidance_rescale", "image_guidance_scale")

    prompts: tuple[str, ...] = ("cat", "dog", "a fox riding a bike")
    """Texts; or the name of a prompt set or a file of prompts, or one side of its split (animals@held-out)."""
    run: Annotated[Path | None, _option("PATH", "the base model")] = None
    """A folder written by train or compare."""
    checkpoint: Literal["last", "best"] = "last"
    """Which weights of the run: the last ones, or those that --keep-best kept."""
    model: Annotated[str | None, _option("STR", "the run's, or emoji-animals")] = None
    """The model. With a run: where the run's model is now, if it was moved."""
    images: int = 4
    """Pictures per prompt."""
    num_inference_steps: Annotated[int | None, _option("INT", "the model's recommendation")] = None
    """Denoising steps per image, without a run."""
    guidance_scale: Annotated[float | None, _option("FLOAT", "the model's recommendation")] = None
    """Classifier-free guidance, without a run; 1 or less is none."""
    eta: Annotated[float | None, _option("FLOAT", "the model's recommendation")] = None
    """Noise of the sampler, without a run; 0 is none."""
    negative_prompt: Annotated[str | None, _option("STR", "none")] = None
    """What guidance leads away from, without a run."""
    guidance_rescale: Annotated[float | None, _option("FLOAT", "the model's recommendation, or 0")] = None
    """Share of the guided prediction with the std of the conditional one, without a run; 0 to 1."""
    image_guidance_scale: Annotated[float | None, _option("FLOAT", "the model's recommendation, or 1")] = None
    """How closely a model that edits keeps to the prompt's image, without a run; 1 is none."""
    start_from_mode: Annotated[StartMode, tyro.conf.Fixed, tyro.conf.Suppress] = field(default="merge", kw_only=True)
    """Pictures are the same in both modes."""
    seed: int = 0
    """Fixes the noise."""
    device: str = "auto"
    """Where the pictures are drawn: cpu, cuda, cuda:1, mps, or auto, a CUDA GPU if there is one, else the CPU."""
    dtype: Annotated[
        ModelDtype | None, tyro.conf.arg(help_behavior_hint="(default: the run's, or float32 without a run)")
    ] = None
    """Precision of the frozen networks."""
    output: Path = Path("samples.png")
    """File of the picture."""
    scale: int = 2
    """Enlargement: 2 draws each pixel as 2 x 2."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        super().__post_init__()
        steps = 1 if self.num_inference_steps is None else self.num_inference_steps
        if self.images < 1 or self.scale < 1 or steps < 1 or not self.prompts:
            raise ValueError(
                "expected at least one prompt, images >= 1, num_inference_steps >= 1 and scale >= 1, got "
                f"{len(self.prompts)}, {self.images}, {steps} and {self.scale}."
            )
        if self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {self.seed}.")
        check_picture_file(self.output)
        given = [*self._given(("num_inference_steps", *_POLICY)), *ModelSettings.among(self).given]
        if self.run is not None and given:
            raise ValueError(f"with a run its own {given[0]} is used; leave out {given[0]}, or leave out the run.")
        if self.run is None:
            task, _ = self.base()
            check_start(task.model, task.start_from)
        if self.checkpoint == "best" and self.run is None:
            raise ValueError("--checkpoint best needs a run that was trained with --keep-best; name it with --run.")

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def base(self) -> tuple[TaskConfig, PolicyConfig]:
        """Return how the base model is sampled: as it recommends for training, except for what is given."""
        model = self.model or DEFAULT_MODEL
        found = recommended_for(model)
        advised = {name: value for name, value in found.settings("").items() if name in _POLICY}
        steps = self.num_inference_steps or found.num_inference_steps
        config = override(PolicyConfig(trainable="full"), **{**advised, **self._given(_POLICY)})
        return TaskConfig(model, num_inference_steps=steps, **ModelSettings.among(self).given), config


def sample(options: Sample) -> int:
    """Write the picture; return the exit status."""
    from algorithms.checkpoints.published import check_output, published
    from benchmarks.runs.folder import BEST, CHECKPOINT

    file = None if options.run is None else options.run / (BEST if options.checkpoint == "best" else CHECKPOINT)
    if options.checkpoint == "best" and file is not None and not file.is_file():
        raise ValueError(
            f"{str(options.run)!r} holds no {BEST}; expected a run that was trained with --keep-best. Leave out "
            "--checkpoint best to draw with its last weights."
        )
    check_output(options.output)
    with published(options.output.parent) as fresh:  # first, so that nothing is drawn that cannot be written
        picture, caption = _sample(options, file)
        picture.save(fresh / options.output.name)
    print(f"{options.output}: {caption}")
    return 0


def _sample(options: Sample, file: Path | None) -> tuple[Image.Image, str]:
    """Return the picture and its caption; ``file`` holds the tuned weights."""
    import torch

    from algorithms.policy import DenoisingPolicy
    from benchmarks.runs.run import read_run
    from diffusion_gym.envs.config import build_mdp
    from diffusion_gym.envs.vector import DenoiseVectorEnv

    prompts = _prompts(options.prompts)
    spec = None if options.run is None else read_run(options.run).spec
    task, config = options.base() if spec is None else (spec.task, spec.config.policy)
    mdp = build_mdp(
        options.model or task.model,
        "compressibility",  # not the run's reward, which pictures do not need
        prompts,
        task.num_inference_steps,
        1,
        options.device,
        options.dtype or task.dtype,
        ModelSettings.among(task).given,
        config.trains_text,
    )
    drawn_prompts = [record for record in mdp.records for _ in range(options.images)]
    env = DenoiseVectorEnv.sharing(mdp, min(len(drawn_prompts), config.chunk_size))
    policies = [DenoisingPolicy(mdp.model, task.num_inference_steps, config, mdp.negative_prompts)]
    averaged: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if spec is not None and file is not None:
        # Prompts that were held out of training may be drawn here, so that they are no longer separate.
        algorithm = ALGORITHMS[spec.algorithm].cls.load(file, env, held_out_prompts=None)
        policies.append(algorithm.policy)
        averaged = algorithm.averaged()
    with averaged:
        drawn = [_draw(env, policy, drawn_prompts, options.seed) for policy in policies]
    rows = torch.stack(drawn, 1)
    per_prompt = rows.reshape(len(prompts), options.images, len(drawn), *drawn[0].shape[1:]).transpose(1, 2)
    picture = grid(per_prompt.flatten(0, 2), options.images * len(drawn), options.scale)
    sides = "left: base, right: tuned" if len(drawn) == 2 else "one row per prompt"
    return picture, f"{len(prompts)} prompts x {options.images} pictures ({sides})"


def _prompts(given: tuple[str, ...]) -> Sequence[str | Prompt]:
    """Return the prompts that a single word names as a set or a file; otherwise the given texts."""
    source = given[0].removesuffix("@train").removesuffix("@held-out")
    if len(given) == 1 and (source in PROMPT_SETS or Path(source).suffix.lower() in FORMATS or _is_file(source)):
        return load_prompts(given[0]).records
    return given


def _is_file(text: str) -> bool:
    with contextlib.suppress(OSError):  # a sentence may be longer than any file's name
        return Path(text).is_file()
    return False


def _draw(env: DenoiseVectorEnv, policy: DenoisingPolicy, prompts: list[Prompt], seed: int) -> Tensor:
    """Return the policy's pictures, (n, 3, H, W), uint8, on the CPU."""
    from algorithms.memory import fit_chunk_size
    from algorithms.sampling import collect

    rollout = fit_chunk_size(policy, lambda: collect(env, policy, prompts, seed, whole_trajectory=False))
    return rollout.images.cpu()
