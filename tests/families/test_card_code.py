"""The model card's code draws the run's pictures, in a process that knows nothing of this package."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from algorithms import DDPO, DiffusionAlgorithm
from algorithms.policy import Rows
from benchmarks.runs.loading_code import loading_code, scheduler_lines
from diffusion_gym import LoRAConfig, load_model
from diffusion_gym.models.flux import pack, unpack
from diffusion_gym.models.schedulers import DIFFUSION_SCHEDULERS, read_scheduler_config
from diffusion_gym.transitions import make_schedule, make_transition

STEPS = 3
#: Runs each folder's code in that folder, with torch's generator seeded where the drawing begins.
RUNNER = """
import ast, os, sys, traceback
assert not any(name in sys.modules for name in ("diffusion_gym", "algorithms", "benchmarks"))
for folder in sys.argv[1:]:
    os.chdir(folder)
    names = {"__name__": "__main__"}
    try:
        for statement in ast.parse(open("code.py").read()).body:
            if ast.unparse(statement).startswith("image = "):
                import torch
                torch.manual_seed(0)
            exec(compile(ast.Module([statement], []), "code.py", "exec"), names)
    except Exception:
        print(folder, traceback.format_exc())
"""


@dataclass(frozen=True)
class Case:
    """A run: its family, what of the policy is not the default, its base model's scheduler, and the environment's."""

    family: str
    policy: dict[str, Any] = field(default_factory=dict)
    scheduler: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    make: dict[str, Any] = field(default_factory=dict)
    starts: bool = False
    """From a LoRA that is merged."""


BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CASES = {
    "sd": Case("sd", {"eta": 0.5, "guidance_scale": 3.0}),
    "sd, levels, from a LoRA": Case("sd", {"eta": (1.0, 0.5, 0.0)}, starts=True),
    "sd, one level three times": Case("sd", {"eta": (0.5, 0.5, 0.5)}),
    "sd, guidance 0": Case("sd", {"guidance_scale": 0.0}),
    "sd, rescaled": Case("sd", {"guidance_scale": 5.0, "guidance_rescale": 0.7}),
    "sd, whole, ddpm": Case("sd", {"trainable": "full", "sampler": "ddpm"}),
    "sd, text": Case("sd", {"train": "both", "guidance_scale": 2.0}),
    "sd, Euler": Case("sd", {}, "EulerDiscreteScheduler", BETAS),
    "sd, Euler, whole": Case("sd", {"trainable": "full"}, "EulerDiscreteScheduler", BETAS),
    "sd, PNDM, ddpm": Case("sd", {"sampler": "ddpm"}, "PNDMScheduler", {**BETAS, "skip_prk_steps": True}),
    "sd, DPM-Solver, ddpm": Case("sd", {"sampler": "ddpm"}, "DPMSolverMultistepScheduler", BETAS),
    "sd, half": Case("sd", {}, make={"dtype": "bfloat16"}),
    "sd-v": Case("sd-v", {"guidance_scale": 2.0}),
    "sdxl": Case("sdxl", {"guidance_scale": 3.0, "negative_prompt": "dog"}, make={"height": 24}),
    "sdxl, Euler": Case("sdxl", {"train": "text_encoder"}, "EulerDiscreteScheduler", {**BETAS, "steps_offset": 1}),
    "sd3": Case("sd3", {"eta": 0.7, "guidance_scale": 3.0}, make={"scheduler": "SHIFTED"}),
    "sd3, cps": Case("sd3-dynamic-shift", {"eta": 0.5, "sampler": "cps", "trainable": "full"}),
    "sd3, levels": Case("sd3", {"eta": (0.7, 0.3, 0.0)}),
    "sd3 without t5": Case("sd3-without-t5", {"trainable": "full"}),
    "flux": Case("flux", {"eta": 0.7, "guidance_scale": 3.5}),
    "flux-schnell, guided": Case("flux-schnell", {"eta": 0.7, "guidance_scale": 3.0, "negative_prompt": "dog"}),
    "flux-schnell": Case("flux-schnell", {"sampler": "cps", "eta": 1.0}),
    "pixart-sigma": Case("pixart-sigma", {"eta": 0.5, "guidance_scale": 3.0}),
    "qwen-image": Case("qwen-image", {"eta": 0.7, "guidance_scale": 3.0}),
    "z-image": Case("z-image", {"eta": 0.7, "guidance_scale": 3.3}),
    "flux-2-klein": Case("flux-2-klein", {"eta": 0.7, "guidance_scale": 3.0}),
    "ddpm": Case("ddpm", {"eta": 0.5}),
    "ddpm, levels": Case("ddpm", {"eta": (0.5, 1.0, 0.0)}),
    "ddpm, Euler": Case("ddpm", {"trainable": "full"}, "EulerDiscreteScheduler"),
    "ddpm, Euler, ddpm": Case("ddpm", {"sampler": "ddpm"}, "EulerDiscreteScheduler"),
}


def _algorithm(case: Case, base: Path, make_env: Callable[..., Any]) -> DiffusionAlgorithm[Any]:
    """A run's end: its weights are moved a good way."""
    if case.scheduler is not None:
        settings = {"_class_name": case.scheduler, **case.settings}  # as a hub's file: the other settings are not named
        (base / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
        index = json.loads((base / "model_index.json").read_text())
        (base / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", case.scheduler]}))
    if case.starts:
        model, lora = load_model(str(base)), LoRAConfig(2)
        denoiser = model.build_denoiser(lora)
        for value in denoiser.parameters():
            value.data.add_(0.1 if value.requires_grad else 0.0)
        model.export(denoiser, base.parent / "style", lora)
        case = replace(case, make={"start_from": str(base.parent / "style")})
    if "scheduler" in case.make:
        diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(base.parent / "shifted")
        case = replace(case, make={"scheduler": str(base.parent / "shifted")})
    env = make_env(str(base), STEPS, prompt_tokens="train" in case.policy, **case.make)
    algorithm = DDPO(env, images_per_iteration=4, num_envs=4, chunk_size=1, **case.policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in algorithm.policy.trainable_parameters().values():
            scale = float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter.add_(torch.randn(parameter.shape, generator=generator) * max(scale, 0.02) * 0.3)
    return algorithm


@torch.no_grad()
def _pictures(algorithm: DiffusionAlgorithm[Any]) -> np.ndarray:
    """What the run's policy draws of its first prompt from the noise that the pipeline draws; (H, W, 3), uint8."""
    torch.manual_seed(0)
    policy, model = algorithm.policy, algorithm.policy.model
    given = algorithm.mdp.conditioning_of(algorithm.mdp.prompts[:1])
    conditioning = {name: given[name] for name in policy.conditioning}
    x = torch.randn(1, *model.latent_shape)
    for step in range(STEPS):
        x, _ = policy.sample(Rows(x, torch.tensor([step]), conditioning), _noise(algorithm, x))
    return model.decode(x)[0].permute(1, 2, 0).numpy()


def _block_of_the_page(folder: str) -> str:
    """How the family's page leaves T5 out, with a tiny model for the published one."""
    page = Path(__file__).parents[2] / "docs" / "families" / "stable-diffusion-3.md"
    (block,) = re.findall(r" +```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return textwrap.dedent(block).replace("stabilityai/stable-diffusion-3.5-medium", folder)


def _noise(algorithm: DiffusionAlgorithm[Any], x: Tensor) -> Tensor:
    match type(algorithm.policy.model).__name__:
        case "Flux" | "QwenImage":
            return unpack(torch.randn(pack(x).shape), algorithm.policy.model.latent_shape)
        case "Flux2Klein":
            tokens = x.flatten(2).transpose(1, 2)  # not contiguous, on which torch's random numbers depend
            return torch.randn_like(tokens).transpose(1, 2).reshape(x.shape)
    return torch.randn(x.shape)


@pytest.fixture(scope="module")
def drawn(
    build: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Any], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """``drawn(make_env)``: case -> what the run draws, and what its card's code does; made once."""
    made: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def make(make_env: Callable[..., Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if made:
            return made
        ours, folders = {}, {}
        for name, case in CASES.items():
            root = tmp_path_factory.mktemp("card")
            shutil.copytree(build(case.family).folder, root / "base")
            algorithm = _algorithm(case, root / "base", make_env)
            algorithm.export(root / "tuned")
            (root / "tuned" / "code.py").write_text(loading_code(algorithm))
            (root / "tuned" / "base").symlink_to(root / "base")  # the reader has the base model under its name
            if case.starts:
                (root / "tuned" / "style").symlink_to(root / "style")
            ours[name], folders[name] = _pictures(algorithm), root / "tuned"
        page = tmp_path_factory.mktemp("page")
        (page / "code.py").write_text(_block_of_the_page(build("sd3").folder))
        command = [sys.executable, "-c", RUNNER, *map(str, [*folders.values(), page])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr[-2000:]
        assert (page / "sd3-small" / "model_index.json").is_file()
        for name, folder in folders.items():
            made[name] = ours[name], np.asarray(Image.open(folder / "tuned.png"))
        return made

    return make


@pytest.mark.parametrize("name", CASES)
def test_the_code_draws_the_runs_pictures(drawn: Callable, make_env: Callable, name: str) -> None:
    """Up to rounding, which in half precision is also that of the pipeline's latents; of sd-v eta is hardly less."""
    ours, theirs = drawn(make_env)[name]
    assert ours.std() > 5, "a flat picture would prove nothing"
    most = {"sd, half": 12, "sd-v": 8}.get(name, 2)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= most


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("name", DIFFUSION_SCHEDULERS)
def test_every_scheduler_is_turned_into_the_runs_steps(name: str, sampler: str) -> None:
    """Its settings name the betas alone, as many a file does: what is left out has another default in each class."""
    for other in {"DPMSolverSDEScheduler": ("torchsde",), "LMSDiscreteScheduler": ("scipy",)}.get(name, ()):
        pytest.importorskip(other)
    scheduler = getattr(diffusers, name).from_config(BETAS)
    config = read_scheduler_config("m", name, scheduler.config, DIFFUSION_SCHEDULERS)
    transition = make_transition(make_schedule(config, STEPS), sampler, 0.5)
    pipe = SimpleNamespace(scheduler=scheduler)
    model = SimpleNamespace(scheduler_config=config, pipe=pipe)
    (line,) = ast.parse("\n".join(scheduler_lines(model, sampler, 0.5))).body
    exec(ast.unparse(line), {"pipe": pipe, **vars(diffusers)})
    pipe.scheduler.set_timesteps(STEPS)
    assert type(pipe.scheduler).__name__ == {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}[sampler]
    assert pipe.scheduler.timesteps.tolist() == transition.schedule.timesteps.tolist()
    generator = torch.Generator().manual_seed(3)
    for index, time in enumerate(pipe.scheduler.timesteps):
        x, output, noise = (torch.randn(1, 2, 3, 3, generator=generator) for _ in range(3))
        ours = transition(output, x, torch.tensor([index])).sample(noise)
        with pytest.MonkeyPatch.context() as patch:  # the noise that both draw
            patch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, noise=noise, **__: noise)
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, noise=noise, **__: noise)
            extra = {"eta": 0.5} if sampler == "ddim" else {}
            theirs = pipe.scheduler.step(output, time, x, **extra).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
