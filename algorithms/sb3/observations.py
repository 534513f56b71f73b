"""Observations from outside, as ``predict`` gets them, checked and made into tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.models import DiffusionModel


def observation_tensors(
    observation: object, model: DiffusionModel, conditioning: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], bool]:
    """Return an observation as rows on the model's device, and whether it was that of one environment.

    Args:
        observation: name -> array, of one environment or, with a leading dimension n, of several.
        model: whose observation it should be.
        conditioning: name -> shape of one row of the denoiser's other inputs.

    Raises:
        TypeError: no mapping of arrays.
        ValueError: a part is missing, has another shape or number of rows, or is not finite.
    """
    shapes: dict[str, tuple[int, ...]] = {"latent": model.latent_shape, "timestep": (1,), **conditioning}
    if not isinstance(observation, Mapping):
        raise TypeError(f"the observation must map {sorted(shapes)} to arrays, got {type(observation).__name__}.")
    missing = set(shapes) - set(observation)
    if missing:
        raise ValueError(f"the observation lacks {sorted(missing)}; it has {sorted(observation)}.")
    tensors = {name: _tensor(name, observation[name], model.device) for name in shapes}
    single = tensors["latent"].ndim == len(model.latent_shape)
    if single:
        tensors = {name: value[None] for name, value in tensors.items()}
    n = len(tensors["latent"])
    for name, value in tensors.items():
        if value.shape != (n, *shapes[name]):
            found = tuple(value.shape[1:] if single else value.shape)
            raise ValueError(
                f"the observation's {name} must have shape {shapes[name]}, or (n, ...) for n environments at once, in "
                f"all parts alike; got {found}."
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"the observation's {name} holds NaN or infinity; expected what the environment gave.")
    return tensors, single


def _tensor(name: str, value: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"the observation's {name} must be an array of numbers: {error}") from error
