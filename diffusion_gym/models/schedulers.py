"""Supported schedulers of diffusers, and how their configurations are read.

A scheduler's configuration says how the model was trained: its noise schedule, its prediction and its grid. The steps
are this package's own Gaussians, whichever solver the model came with.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_gym.choices import PIPELINE, SOLVERS
from diffusion_gym.paths import user_path

_FILE = "scheduler_config.json"

#: Schedulers of discrete-time diffusion models; all describe the same table of ``a_t``, and differ in their solvers.
#: The last has a grid and Gaussian steps of its own (``transitions/consistency.py``).
DIFFUSION_SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "LCMScheduler",
)
#: Schedulers of flow-matching models.
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def read_scheduler_config(
    name: str, scheduler_class: str, config: Mapping[str, Any], accepted: Sequence[str]
) -> dict[str, Any]:
    """Return a scheduler's configuration, as a step's Gaussian is made from it.

    Args:
        name: the model's, for errors.
        scheduler_class: the scheduler's class in diffusers.
        config: its configuration.
        accepted: the classes that the model's family takes.

    Raises:
        ValueError: a scheduler whose steps have no Gaussian density that this package knows.
    """
    if scheduler_class not in accepted:
        raise ValueError(
            f"the scheduler of {name!r} is a {scheduler_class}, whose steps have no Gaussian density that is known for "
            f"this kind of model; expected one of {', '.join(accepted)}. A folder's scheduler is replaced with "
            f"{accepted[0]}.from_config(...).save_pretrained('FOLDER/scheduler')."
        )
    read = {key: value for key, value in config.items() if not key.startswith("_")} | {"_class_name": scheduler_class}
    if scheduler_class in FLOW_SCHEDULERS:
        return read
    problem = _not_a_table(read)
    if problem is not None:
        raise ValueError(
            f"the {scheduler_class} of {name!r} has {problem}, so its steps have no Gaussian density that is known "
            f"here. Expected a discrete-time diffusion model, such as one sampled with a DDIMScheduler."
        )
    if "clip_sample" not in read:
        read["clip_sample"] = False  # solvers without this setting do not clip; DDIM's own default would
    return read


def named_scheduler(name: str, scheduler: str, own: Mapping[str, Any], accepted: Sequence[str]) -> Any:
    """Return a scheduler other than the one that a model comes with.

    Args:
        name: the model's, for errors.
        scheduler: a class, which gets the model's own settings, or a folder with a scheduler's configuration.
        own: the configuration of the model's scheduler.
        accepted: the classes that the model's family takes.

    Raises:
        ValueError: neither of them.
    """
    import diffusers

    folder = user_path(scheduler)
    places = [place for place in (folder, folder / "scheduler") if (place / _FILE).is_file()]
    if scheduler in accepted:
        return getattr(diffusers, scheduler).from_config(own)
    if not places:
        raise ValueError(
            f"scheduler {scheduler!r} must be a class whose steps have a Gaussian density with {name!r} "
            f"({', '.join(accepted)}), or a folder with a {_FILE}."
        )
    found = scheduler_class(places[0] / _FILE)
    if found not in accepted:
        raise ValueError(
            f"the folder {scheduler!r} holds a {found} for {name!r}; expected one of {', '.join(accepted)}."
        )
    return getattr(diffusers, found).from_pretrained(places[0])


def scheduler_class(file: Path) -> Any:
    """Return the class that a scheduler's configuration names. Raises ValueError for any other file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(file)!r} is not a scheduler's configuration ({error}); expected the file that diffusers' "
            "save_pretrained writes."
        ) from error


def _not_a_table(config: Mapping[str, Any]) -> str | None:
    """Return the setting under which the noise schedule is not a table of a_t that DDIM can build."""
    if config.get("timestep_type") == "continuous":
        return "timestep_type='continuous'"
    if config.get("use_flow_sigmas"):
        return "use_flow_sigmas=True"
    beta_schedule = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is None and beta_schedule not in _BETA_SCHEDULES:
        return f"beta_schedule={beta_schedule!r} (known are {', '.join(_BETA_SCHEDULES)})"
    return None


def make_solver(name: str, scheduler: str, config: Mapping[str, Any], came_with: str) -> Any:
    """Return a new scheduler of diffusers that draws with a diffusion model, on the model's own noise schedule.

    Args:
        name: the model's, for errors.
        scheduler: a class of :data:`SOLVERS`, or "pipeline" for the one that the model comes with.
        config: the configuration that ``from_config`` is given.
        came_with: the class of the scheduler that the model comes with.

    Raises:
        ValueError: a scheduler that cannot draw for evaluations, or needs a package that is not installed.
    """
    import diffusers

    chosen = came_with if scheduler == PIPELINE else scheduler
    if chosen not in SOLVERS:
        raise ValueError(
            f"{name!r} comes with a {chosen}, which cannot draw the images of an evaluation; name one of "
            f"{', '.join(SOLVERS)}."
        )
    try:
        return getattr(diffusers, chosen).from_config(dict(config))
    except ImportError as error:
        raise ValueError(f"{chosen} needs a package that is not installed: {' '.join(str(error).split())}") from error
