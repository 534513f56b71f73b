"""How an iteration's time grows with images, steps and latent size, one at a time."""

import dataclasses
import statistics
from typing import Any

from algorithms.rollouts import Rollout
from benchmarks.throughput.iteration import build, iterate
from benchmarks.throughput.options import Throughput
from benchmarks.throughput.tables import PHASES
from diffusion_gym.models import DiffusionModel, ModelSettings, load_model
from diffusion_gym.prompt_records import Prompt

_CHUNK = 8  # divides every number of rows in the table, so that no row is padding
_IMAGES = 16
_REPEATS = 3


def measure_growth(options: Throughput) -> list[dict[str, Any]]:
    """Return a row for each of three numbers of images, of steps, and sizes of latents."""
    policy = dataclasses.replace(options.policy, chunk_size=_CHUNK)
    small = dataclasses.replace(options, images=_IMAGES, num_envs=_IMAGES, policy=policy)
    half_the_steps = small.num_inference_steps // 2
    model = load_model(options.model, options.device, options.dtype, **ModelSettings.among(options).given)
    rows = [_grown("images", dataclasses.replace(small, images=n * _IMAGES), model) for n in (1, 2, 4)]
    for n in (1, 2, 4):
        steps = dataclasses.replace(small, num_inference_steps=n * half_the_steps)
        rows.append(_grown("steps", steps, model))
    if model.latent_shape[1:] != (1, 1):  # points in the plane have no size to vary
        rows += [_grown("latent size", small, resized(model, n)) for n in (1, 2, 4)]
    return rows


def _grown(axis: str, options: Throughput, model: DiffusionModel) -> dict[str, Any]:
    algorithm = build(options, model)
    iterate(algorithm)
    runs = [iterate(algorithm) for _ in range(_REPEATS)]
    seconds = {phase: statistics.median(run[phase].wall for run in runs) for phase in PHASES}
    return {
        "axis": axis,
        "images": options.images,
        "steps": options.num_inference_steps,
        "latent_shape": list(model.latent_shape),
        "seconds": seconds,
        "milliseconds_an_image": {phase: 1e3 * value / options.images for phase, value in seconds.items()},
        "rollout_megabytes": Rollout.empty(algorithm.policy, [Prompt("")] * options.images, True).nbytes / 1e6,
    }


def resized(model: DiffusionModel, factor: int) -> DiffusionModel:
    """Return the model on latents ``factor`` times as high and wide; the networks are convolutional and shared."""
    other: DiffusionModel = object.__new__(type(model))
    other.__dict__.update(vars(model))
    (c, h, w), (_, height, width) = model.latent_shape, model.image_shape
    other.latent_shape, other.image_shape = (c, h * factor, w * factor), (3, height * factor, width * factor)
    return other
