"""The Python code on a model card: it loads the tuned model into plain diffusers, and draws as the run sampled."""

import inspect
import json
from pathlib import Path
from typing import Any, cast

import torch

from algorithms import DiffusionAlgorithm
from diffusion_gym.models.loading import EMBEDDED
from diffusion_gym.models.pipeline import PipelineModel
from diffusion_gym.models.start import place_of
from diffusion_gym.models.unconditional import UnconditionalPixels
from diffusion_gym.paths import user_path

#: diffusers' scheduler whose step is the sampler's.
_SCHEDULERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "lcm": "LCMScheduler"}
_FLOW = "FlowMatchEulerDiscreteScheduler"
#: diffusers has only a flow's ODE, so the card carries the run's step (diffusion_gym/transitions/flow.py).
_FLOW_STEP = f"""

class Sampler({_FLOW}):
    # {{title}}, as in training; diffusers has only the ODE
    def step(self, model_output, timestep, sample, **kwargs):
        k = self.index_for_timestep(timestep)
        t, after, second = (float(self.sigmas[i]) for i in (k, k + 1, 1))
        x, v, noise = sample.float(), model_output.float(), torch.randn_like(sample, dtype=torch.float32)
{{mean}}
        return (stepped.to(model_output.dtype),)

"""
_FLOW_SAMPLERS = {
    "flow-sde": (
        "The SDE of Flow-GRPO (arXiv 2505.05470, equation 9)",
        """\
        half = {eta}**2 / (2 * (1 - (t if t < 1 - 1e-6 else min(second, 1 - 1e-6))))
        mean = (1 + half * (after - t)) * x + (1 + half * (1 - t)) * (after - t) * v
        stepped = mean + (2 * half * t * (t - after)) ** 0.5 * noise""",
    ),
    "cps": (
        "Coefficient-preserving sampling (arXiv 2509.05952)",
        """\
        std = after * math.sin({eta} * math.pi / 2)
        kept = max(after**2 - std**2, 0) ** 0.5
        stepped = (1 - after) * (x - t * v) + kept * (x + (1 - t) * v) + std * noise""",
    ),
}
#: DDIM with noise levels that differ: diffusers' pipelines pass one eta on to all steps.
_DDIM_STEP = """

class Sampler(DDIMScheduler):
    # the noise level of each step, as in training; diffusers has one for all
    def step(self, model_output, timestep, sample, eta=0.0, generator=None, **kwargs):
        eta = {levels}[self.timesteps.tolist().index(int(timestep))]
        return super().step(model_output, timestep, sample, eta=eta, generator=generator, **kwargs)

"""
_WIDTH = 100

#: Noise levels: one for all steps, or one for each.
Levels = float | tuple[float, ...]


def loading_code(algorithm: DiffusionAlgorithm[Any]) -> str:
    """Return Python code that draws with the tuned model in plain diffusers, as it was sampled in training.

    It runs in the folder of the exported weights. For a family that does not say how its pipeline is called
    (``pipeline_arguments``) it loads the model, and leaves the call to the reader.
    """
    model: Any = algorithm.policy.model
    sampler = used_sampler(algorithm)
    kind = _pipeline_class(model, sampler)
    one_file = model.exports_lora_file(algorithm.policy.lora)
    lines = [
        *_load(model, kind.__name__, one_file),
        *scheduler_lines(model, sampler, _finite_levels(algorithm) if sampler == "ddim" else levels_of(algorithm)),
        *_draw(algorithm, sampler, kind),
    ]
    return "\n".join([*_imports(lines, kind), "", *lines])


def _pipeline_class(model: Any, sampler: str) -> type:
    """Return the pipeline that draws: the model's own, or for pixel models the sampler's."""
    if not isinstance(model, UnconditionalPixels):
        return type(model.pipe)
    import diffusers

    return {"ddim": diffusers.DDIMPipeline, "ddpm": diffusers.DDPMPipeline}[sampler]


def used_sampler(algorithm: DiffusionAlgorithm[Any]) -> str:
    """Return the sampler's name, with "auto" resolved."""
    sampler = algorithm.config.policy.sampler
    return algorithm.policy.transition.schedule.samplers[0] if sampler == "auto" else sampler


def levels_of(algorithm: DiffusionAlgorithm[Any]) -> Levels:
    """Return the noise levels that the policy samples with: one number where all steps have the same."""
    levels = algorithm.policy.noise_levels
    return levels[0] if isinstance(levels, tuple) and len(set(levels)) == 1 else levels


def base_name(model: str) -> str:
    """Return the base model as a card names it: a folder by its last name, since its path is one machine's."""
    return Path(model).absolute().name if is_folder(model) else model


def is_folder(model: str) -> bool:
    """Return whether the model's name is a folder here, not a shipped model's or the hub's name."""
    return model not in EMBEDDED and (user_path(model).exists() or Path(model).is_absolute())


def _imports(lines: list[str], pipeline: type) -> list[str]:
    """Return the imports that the lines need."""
    code = "\n".join(lines)
    schedulers = [name for name in (*_SCHEDULERS.values(), _FLOW) if name in code]
    plain = [f"import {name}" for name in ("math", "torch") if f"{name}." in code]
    assets = ["from diffusion_gym.models.loading import ASSETS"] if "ASSETS" in code else []
    is_own = not pipeline.__module__.startswith("diffusers.")
    names = sorted(schedulers if is_own else [pipeline.__name__, *schedulers])
    own = [f"from {pipeline.__module__} import {pipeline.__name__}"] if is_own else []
    return [*plain, f"from diffusers import {', '.join(names)}", *own, *assets]


def _load(model: Any, pipeline: str, one_file: bool) -> list[str]:
    """Return the lines that load the pipeline with the arguments of the run, and the LoRA into it."""
    source, note = _literal("."), ""
    if one_file and model.name in EMBEDDED:
        source, note = f"ASSETS / {_literal(model.name)}", "  # shipped with Diffusion Gym"
    elif one_file:
        source = _literal(base_name(model.name))
        note = "  # the base model's folder" if is_folder(model.name) else ""
    arguments = {name: value for name, value in model.load_arguments.items() if value != torch.float32}
    if not one_file or arguments.get("variant") is None:
        arguments.pop("variant", None)  # what is exported has none
    method = "from_pretrained"
    if one_file and "config" in arguments:
        method, arguments["config"] = "from_single_file", base_name(arguments["config"])
        note = "  # the base model's file, and the folder with its configurations"
    elif "config" in arguments:  # what is exported is a folder
        arguments = {name: value for name, value in arguments.items() if name not in ("config", "local_files_only")}
    lines = _call(f"pipe = {pipeline}.{method}", [source, *_keywords(arguments)])
    lines[min(1, len(lines) - 1)] += note
    return [*lines, *_start(model), 'pipe.load_lora_weights(".")'] if one_file else lines


def _start(model: Any) -> list[str]:
    """Return the lines that merge the LoRA in which training started, where it was merged then."""
    source = model.settings.start_from
    if source is None or model.settings.start_from_mode != "merge":
        return []
    folder, file = place_of(source)
    place = [_literal(source)]
    if file is not None:
        place = [_literal(Path(folder).absolute().name), f"weight_name={_literal(file)}"]
    return [
        f"pipe.load_lora_weights({', '.join(place)})  # merged in the run, too, before training",
        "pipe.fuse_lora()",
        "pipe.unload_lora_weights()",
    ]


def scheduler_lines(model: Any, sampler: str, levels: Levels) -> list[str]:
    """Return the lines that give the loaded pipeline a sampler's steps."""
    if sampler in _FLOW_SAMPLERS:
        title, mean = _FLOW_SAMPLERS[sampler]
        eta = f"{levels}[k]" if isinstance(levels, tuple) else levels
        step = _FLOW_STEP.format(title=title, mean=mean.format(eta=eta))
        if model.settings.scheduler is not None:
            settings = _scheduler_settings(model, _FLOW)
            return [*step.split("\n"), *_call("pipe.scheduler = Sampler", _keywords(settings))]
        return [*step.split("\n"), "pipe.scheduler = Sampler.from_config(pipe.scheduler.config)"]
    # A new scheduler: from_config of another class drops some settings, and has other defaults for the rest.
    settings = _scheduler_settings(model, _SCHEDULERS[sampler])
    own = _DDIM_STEP.format(levels=levels).split("\n") if sampler == "ddim" and isinstance(levels, tuple) else []
    name = "Sampler" if own else _SCHEDULERS[sampler]
    if sampler in ("ddpm", "lcm") and levels != 1:
        own = [f"# without the run's noise levels of {levels}, which diffusers' {name} does not take"]
    return [*own, *_call(f"pipe.scheduler = {name}", _keywords(settings))]


def _scheduler_settings(model: Any, name: str) -> dict[str, Any]:
    """Return the settings that a scheduler's class of diffusers has other defaults for."""
    import diffusers

    kind = getattr(diffusers, name)
    used = kind.from_config(dict(model.scheduler_config)).config
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind.__init__).parameters.items()}
    return {name: used[name] for name in sorted(defaults.keys() & used.keys()) if used[name] != defaults[name]}


def _draw(algorithm: DiffusionAlgorithm[Any], sampler: str, pipeline: type) -> list[str]:
    """Return the lines that draw a picture and save it."""
    policy, model = algorithm.policy, cast(PipelineModel, algorithm.policy.model)
    guidance = policy.config.guidance_scale if policy.guided or model.embeds_guidance else 1.0
    arguments = model.pipeline_arguments(algorithm.mdp.prompts[0], guidance)
    steps = algorithm.mdp.num_inference_steps
    given = policy.config.negative_prompt
    negative = algorithm.mdp.records[0].negative_prompt if given is None else given
    if arguments is None:
        scales = f"guidance_scale={guidance}" + ("" if negative is None else f", negative_prompt={_literal(negative)}")
        if model.image_conditioning:
            scales += f", image_guidance_scale={policy.config.image_guidance_scale}, and the image to edit"
        return [f"# call it as {pipeline.__name__} is called, with num_inference_steps={steps}, {scales}"]
    if policy.config.guidance_rescale:
        arguments["guidance_rescale"] = policy.config.guidance_rescale
    if negative is not None:
        arguments["negative_prompt"] = negative
    arguments = {**arguments, "num_inference_steps": steps}
    lines = []
    if sampler == "ddim":
        asked, levels = levels_of(algorithm), _finite_levels(algorithm)
        if levels != asked:
            lines = [f"# eta {asked} in the run, where this step of diffusers gives NaN"]
        if not isinstance(levels, tuple):  # the scheduler above has those of each step
            arguments["eta"] = levels
        if "eta" in arguments and "eta" not in inspect.signature(pipeline.__call__).parameters:
            lines = [f"# without the run's eta of {arguments.pop('eta')}, which {pipeline.__name__} does not take"]
    return [*lines, *_call("image = pipe", _keywords(arguments), ".images[0]"), 'image.save("tuned.png")']


def _finite_levels(algorithm: DiffusionAlgorithm[Any]) -> Levels:
    """Return the noise levels, slightly smaller ones where diffusers gives NaN, as at zero terminal SNR and eta 1."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(dict(algorithm.policy.model.scheduler_config))
    scheduler.set_timesteps(algorithm.mdp.num_inference_steps)
    asked, zeros = levels_of(algorithm), torch.zeros(1, 1, 1, 1)
    levels = asked if isinstance(asked, tuple) else [asked] * len(scheduler.timesteps)
    stepped = [
        scheduler.step(zeros, t, zeros, eta=eta, variance_noise=zeros).prev_sample
        for t, eta in zip(scheduler.timesteps, levels, strict=True)
    ]
    if bool(torch.cat(stepped).isfinite().all()):
        return asked
    return tuple(eta * 0.99999 for eta in asked) if isinstance(asked, tuple) else asked * 0.99999


def _keywords(arguments: dict[str, Any]) -> list[str]:
    return [f"{name}={_literal(value)}" for name, value in arguments.items()]


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)  # in double quotes


def _call(function: str, arguments: list[str], end: str = "") -> list[str]:
    """Return a call in one line, or, if that is long, with an argument per line."""
    line = f"{function}({', '.join(arguments)}){end}"
    if len(line) <= _WIDTH:
        return [line]
    return [f"{function}(", *(f"    {argument}," for argument in arguments), f"){end}"]
