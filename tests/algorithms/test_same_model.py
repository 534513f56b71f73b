"""A checkpoint belongs to a model, wherever that lies; another model is refused with what makes it another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import DDPO
from algorithms.checkpoints.file import read_checkpoint
from diffusion_gym import load_model
from diffusion_gym.models.fingerprint import difference, fingerprint

SMALL: dict[str, Any] = {"images_per_iteration": 4, "num_envs": 4, "chunk_size": 4, "updates_per_iteration": 1}


@pytest.fixture
def at(make_env: Callable) -> Callable[[Any], Any]:
    """``at(folder)``: an environment on the pipeline that lies there."""
    return lambda folder, **kwargs: make_env(
        str(folder), steps=2, reward="compressibility", prompts=["cat", "dog"], **kwargs
    )


@pytest.fixture
def saved(at: Callable, tiny_sd: str, tmp_path: Path) -> Callable[..., Path]:
    """``saved()``: where a checkpoint lies whose model was at ``tmp_path / "m1"``."""

    def save(**config: Any) -> Path:
        shutil.copytree(tiny_sd, tmp_path / "m1")
        DDPO(at(tmp_path / "m1"), **SMALL, **config).learn(4 * 2).save(tmp_path / "run.zip")
        return tmp_path / "run.zip"

    return save


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """``altered(component)``: a copy of the model with one tensor of a component moved by a thousandth."""

    def alter(component: str = "unet", shift: float = 1e-3) -> Path:
        from safetensors.torch import load_file, save_file

        shutil.copytree(tmp_path / "m1", tmp_path / "other")
        file = next((tmp_path / "other" / component).glob("*.safetensors"))
        tensors = load_file(file)
        name = max(tensors, key=lambda name: tensors[name].numel())
        save_file({**tensors, name: tensors[name] + shift}, file, {"format": "pt"})
        return tmp_path / "other"

    return alter


@pytest.mark.parametrize(
    ("how", "trainable"),
    [("copied", "lora"), ("copied", "full"), ("moved", "lora"), ("slash", "lora"), ("dots", "full"), ("link", "lora")],
)
def test_the_same_model_elsewhere_goes_on_to_the_bit(
    at: Callable, saved: Callable, tmp_path: Path, digest: Callable, how: str, trainable: str
) -> None:
    run, m1, m2 = saved(trainable=trainable), tmp_path / "m1", tmp_path / "m2"
    stayed = DDPO.load(run, at(m1)).learn(4 * 2, reset_num_timesteps=False)
    if how == "copied":
        shutil.copytree(m1, m2)
    elif how == "moved":
        m1.rename(m2)
    elif how == "link":
        m2.symlink_to(m1)
    folder = {"slash": f"{m1}/", "dots": f"{m1}/../m1"}.get(how, m2)
    went_on = DDPO.load(run, at(folder)).learn(4 * 2, reset_num_timesteps=False)
    assert digest(went_on) == digest(stayed)
    went_on.save(run)
    assert read_checkpoint(run).state["env"]["model"] == str(folder)  # the default location from now on


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_other_weights_are_refused(at: Callable, saved: Callable, altered: Callable, component: str) -> None:
    """Adapters mean something on their base weights alone, and images on their VAE and text encoder."""
    run = saved()
    with pytest.raises(ValueError, match=r"trained on the model '.*m1', the environment has '.*other', .*weights"):
        DDPO.load(run, at(altered(component)))


def test_weights_replaced_under_the_same_name_are_refused(
    at: Callable, saved: Callable, altered: Callable, tmp_path: Path
) -> None:
    """Which a comparison of names let pass; the model is loaded anew, as another process would."""
    run = saved()
    other = altered()
    shutil.rmtree(tmp_path / "m1")
    other.rename(tmp_path / "m1")
    with pytest.raises(ValueError, match="weights are others"):
        DDPO.load(run, at(f"{tmp_path}/./m1"))


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "its scheduler's prediction_type is"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "its scheduler's beta_end is 0.02, and was 0.012"),
        ("unet/config.json", {"sample_size": 16}, r"its latent_shape is \[4, 16, 16\], and was \[4, 8, 8\]"),
        ("unet/config.json", {"attention_head_dim": 8}, "its denoiser's attention_head_dim is 8, and was 4"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_other_settings_with_the_same_weights_are_refused(
    at: Callable, saved: Callable, tmp_path: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    run = saved()
    path = tmp_path / "m1" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (tmp_path / "m1").rename(tmp_path / "m2")
    with pytest.raises(ValueError, match=reason):
        DDPO.load(run, at(tmp_path / "m2"))


def test_what_a_newer_diffusers_adds_to_a_configuration_makes_no_other_model(tiny_sd: str) -> None:
    older = fingerprint(load_model(tiny_sd))
    newer = {**older, "scheduler": {**older["scheduler"], "added": True}}
    assert difference(older, newer) is None
    assert difference(newer, older) is None


def test_precisions_are_compared_in_the_coarser(tiny_sd: str, saved: Callable, altered: Callable) -> None:
    """Float32 rounds to either of the others exactly as loading does; bfloat16 and float16 have nothing in common."""
    taken = {dtype: fingerprint(load_model(tiny_sd, dtype=dtype)) for dtype in ("float32", "bfloat16", "float16")}
    assert [sorted(each["weights"]) for each in taken.values()] == [[*sorted(taken)], ["bfloat16"], ["float16"]]
    assert all(difference(first, second) is None for first in taken.values() for second in taken.values())
    saved()
    other = fingerprint(load_model(str(altered(shift=0.1)), dtype="bfloat16"))
    assert difference(taken["float32"], other) == difference(taken["bfloat16"], other) == "its weights are others"
    assert difference(taken["float16"], other) is None


def test_a_fingerprint_is_taken_once_and_draws_no_random_numbers(tiny_sd: str) -> None:
    state = torch.get_rng_state()
    assert fingerprint(load_model(tiny_sd)) is fingerprint(load_model(tiny_sd))
    assert torch.equal(torch.get_rng_state(), state)


def test_set_env_takes_the_same_model_elsewhere_and_no_other(
    at: Callable, saved: Callable, altered: Callable, tmp_path: Path
) -> None:
    algorithm = DDPO.load(saved(), at(tmp_path / "m1"))
    shutil.copytree(tmp_path / "m1", tmp_path / "m2")
    algorithm.set_env(at(tmp_path / "m2"))
    assert algorithm.mdp.model.name == str(tmp_path / "m2")
    with pytest.raises(ValueError, match=r"steps of '.*other', which is another: its weights are others"):
        algorithm.set_env(at(altered()))
