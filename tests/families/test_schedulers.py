"""Schedulers that models come with: their grids, read as diffusers' DDIMScheduler reads them, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from algorithms import DenoisingPolicy, PolicyConfig
from algorithms.policy import Rows
from diffusion_gym import load_model
from diffusion_gym.models.fingerprint import difference, fingerprint
from diffusion_gym.models.schedulers import (
    DIFFUSION_SCHEDULERS,
    FLOW_SCHEDULERS,
    named_scheduler,
    read_scheduler_config,
)

STEPS, SEED = 4, 9
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture
def with_scheduler(build: Callable[[str], Any], tmp_path: Path) -> Callable[..., str]:
    """``with_scheduler(name, steps_offset=0)``: the tiny SDXL (whose pipeline changes no setting) with another one."""

    def make(name: str = "DDIMScheduler", **changes: Any) -> str:
        folder = tmp_path / "pipeline"
        shutil.copytree(build("sdxl").folder, folder)
        given = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        if name != "DDIMScheduler":  # as a model of that solver states it: with the solver's own settings alone
            given = {key: value for key, value in given.items() if key.startswith(("beta", "steps_offset"))}
        scheduler = getattr(diffusers, name).from_config({**given, **changes})
        shutil.rmtree(folder / "scheduler")
        scheduler.save_pretrained(folder / "scheduler")
        index = folder / "model_index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", name]}))
        return str(folder)

    return make


def test_a_scheduler_named_apart_from_the_models(build: Callable[[str], Any], tmp_path: Path) -> None:
    """A class has the model's settings, a folder its own; the fingerprint knows; others are refused."""
    folder = build("sdxl").folder
    own, euler = load_model(folder), load_model(folder, scheduler="EulerDiscreteScheduler")
    assert type(euler.pipe.scheduler).__name__ == "EulerDiscreteScheduler"  # type: ignore[attr-defined]
    assert torch.equal(own.schedule(STEPS).timesteps, euler.schedule(STEPS).timesteps)
    diffusers.DDIMScheduler(timestep_spacing="trailing").save_pretrained(tmp_path / "scheduler")
    for place in (tmp_path, tmp_path / "scheduler"):
        other = load_model(folder, scheduler=str(place))
        assert other.schedule(STEPS).timesteps.tolist() == [999, 749, 499, 249]
    assert "its scheduler's" in str(difference(fingerprint(own), fingerprint(other)))
    for name, message in (
        (
            "FlowMatchEulerDiscreteScheduler",
            r"must be a class .* \(DDIMScheduler, .*\), or a folder with a scheduler_config\.json",
        ),
        (str(tmp_path / "flow"), "holds a FlowMatchEulerDiscreteScheduler for .*; expected one of DDIMScheduler"),
    ):
        diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "flow")
        with pytest.raises(ValueError, match=message):
            load_model(folder, scheduler=name)


def test_a_variant_is_loaded_where_it_is_asked_for(build: Callable[[str], Any], tmp_path: Path) -> None:
    built, folder = build("sd"), tmp_path / "both"
    shutil.copytree(built.folder, folder)
    pipe = built.plain()
    pipe.unet.conv_in.bias.data += 1.0
    pipe.unet.save_pretrained(folder / "unet", variant="fp16")
    full, half = (load_model(folder, model_variant=variant) for variant in (None, "fp16"))
    apart = [model.pipe.unet.conv_in.bias - pipe.unet.conv_in.bias for model in (full, half)]  # type: ignore[attr-defined]
    assert [float(value.detach().mean().round(decimals=3)) for value in apart] == [-1.0, 0.0]
    with pytest.raises(
        ValueError, match=r"no part of the model .* has weights of the variant 'bf16'; expected one of \['fp16'\]"
    ):
        load_model(folder, model_variant="bf16")


def _ours(folder: str, eta: float, steps: int) -> Tensor:
    model, source = load_model(folder), torch.Generator().manual_seed(SEED)
    policy = DenoisingPolicy(model, steps, PolicyConfig(trainable="full", eta=eta))
    conditioning = model.encode_prompts(["a cat"])
    x = torch.randn(1, *model.latent_shape, generator=source)
    for step in range(steps):
        x, _ = policy.sample(Rows(x, torch.tensor([step]), conditioning), torch.randn(x.shape, generator=source))
    return x


def _theirs(folder: str, eta: float, steps: int, **changes: Any) -> Tensor:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **changes)
    call = {"num_inference_steps": steps, "eta": eta, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe("a cat", generator=torch.Generator().manual_seed(SEED), **call).images


@pytest.mark.parametrize(
    "changes",
    [
        {"steps_offset": 0},
        {"steps_offset": 0, "set_alpha_to_one": True},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
        {"prediction_type": "v_prediction", "timestep_spacing": "leading"},
        ZERO_SNR,
        {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "clip_sample": True},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_grids_are_the_pipelines(with_scheduler: Callable, changes: dict[str, Any]) -> None:
    """Noise off, and with noise: eta 0.9, for at 1 diffusers' own root of a rounding error is NaN at zero SNR."""
    folder = with_scheduler(**changes)
    for eta in (0.0, 0.9):
        torch.testing.assert_close(_ours(folder, eta, STEPS), _theirs(folder, eta, STEPS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_solvers_give_their_noise_schedule(with_scheduler: Callable, name: str) -> None:
    """SDXL comes with Euler's solver: the model is sampled by DDIM on its betas, and x_0 is not clipped to [-1, 1]."""
    folder = with_scheduler(name)
    expected = _theirs(folder, 0.9, STEPS, clip_sample=False)
    torch.testing.assert_close(_ours(folder, 0.9, STEPS), expected, rtol=1e-4, atol=1e-4)
    assert (_theirs(folder, 0.9, STEPS, clip_sample=True) - expected).abs().max() > 0.1


def test_zero_terminal_snr_with_epsilon_is_refused(with_scheduler: Callable) -> None:
    folder = with_scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match=r"epsilon prediction says nothing about x_0 at zero terminal SNR .*predict v"):
        load_model(folder).schedule(STEPS)


def test_a_folder_with_another_scheduler_is_refused(with_scheduler: Callable) -> None:
    with pytest.raises(ValueError, match=r"is a TCDScheduler, whose steps have no Gaussian density .*DDIMScheduler"):
        load_model(with_scheduler("TCDScheduler"))


@pytest.mark.parametrize(
    ("scheduler", "config", "why"),
    [
        ("TCDScheduler", {}, "is a TCDScheduler"),
        ("EDMEulerScheduler", {}, "is a EDMEulerScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {}, "is a FlowMatchEulerDiscreteScheduler"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
    ],
)
def test_refusals_say_why_and_what_to_use(scheduler: str, config: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match="no Gaussian density") as caught:
        read_scheduler_config("some-model", scheduler, config, DIFFUSION_SCHEDULERS)
    message = str(caught.value)
    assert "'some-model'" in message
    assert why in message
    assert "DDIMScheduler" in message


def test_a_flow_model_takes_flow_schedulers_alone() -> None:
    config = {"shift": 3.0, "_class_name": "FlowMatchEulerDiscreteScheduler"}
    assert read_scheduler_config("m", FLOW_SCHEDULERS[0], config, FLOW_SCHEDULERS)["shift"] == 3.0
    with pytest.raises(ValueError, match=r"is a DDIMScheduler, .* expected one of FlowMatchEulerDiscreteScheduler"):
        read_scheduler_config("m", "DDIMScheduler", {}, FLOW_SCHEDULERS)


@pytest.mark.parametrize("text", ["", "[]", "{}", "<html>"])
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "scheduler_config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"scheduler_config\.json' is not a scheduler's configuration .*; expected"):
        named_scheduler("m", str(tmp_path), {}, DIFFUSION_SCHEDULERS)


@pytest.mark.parametrize("name", [*DIFFUSION_SCHEDULERS, *FLOW_SCHEDULERS])
def test_every_named_scheduler_is_diffusers(name: str) -> None:
    assert hasattr(diffusers, name)
