"""Single-file checkpoints: weights alone, configured by a diffusers folder, read without the network."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_gym import load_model
from diffusion_gym.models import recommended_for
from diffusion_gym.models.fingerprint import difference, fingerprint
from tests.builders.single_file import write_single_file


def configurations(folder: str, target: Path) -> str:
    """Copy a pipeline's folder without weights."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(target)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_single_file_checkpoints(build: Callable[[str], Any], tmp_path: Path, suffix: str) -> None:
    """The same model as the folder's, bit for bit; diffusers reads it by itself, without the network."""
    built, file = build("sd"), tmp_path / f"tiny{suffix}"
    write_single_file(built.plain(), file, ckpt=suffix == ".ckpt")
    config = configurations(built.folder, tmp_path / "config")
    model = load_model(str(file), model_config=config)
    assert difference(fingerprint(built.model), fingerprint(model)) is None
    prompts = ["a cat"]
    assert torch.equal(*(each.encode_prompts(prompts)["prompt_embedding"] for each in (built.model, model)))
    assert pickle.loads(pickle.dumps(model)) is model
    assert recommended_for(file).num_inference_steps == 50
    with pytest.raises(ValueError, match=r"there is no '.*nowhere/model_index.json'; give as model_config the"):
        load_model(str(file), model_config=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds its weights once; leave out model_variant, got 'fp16'"):
        load_model(str(file), model_config=config, model_variant="fp16")
    with pytest.raises(ValueError, match=r"is a FluxPipeline; of single-file checkpoints those of StableDiffusionPip"):
        load_model(str(file), model_config=build("flux").folder)
    with pytest.raises(ValueError, match=r"model_config is for a single-file checkpoint, which .* is not; leave"):
        load_model(built.folder, model_config=config)
