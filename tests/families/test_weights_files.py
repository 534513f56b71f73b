"""Missing and damaged files of weights are named before diffusers is asked."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_gym import load_model
from diffusion_gym.models.start import place_of
from tests.builders.lora import write_lora

#: What lies in the place of weights -> what is said of it.
DAMAGED = {
    "nothing": (lambda whole: b"", "is empty"),
    "the first half": (lambda whole: whole[: len(whole) // 2], "is cut short"),
    "a page": (lambda whole: b"<!DOCTYPE html>\n<html>", "is cut short, or is no|is no file that torch.save"),
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("place", ["part.safetensors", "sd.safetensors", "sd.ckpt", "lora.safetensors"])
def test_damaged_weights_are_named(build: Callable[[str], Any], tmp_path: Path, place: str, what: str) -> None:
    """As the model, as a part of its folder, and as the LoRA to start from: before diffusers is asked."""
    file, (damage, told) = tmp_path / place, DAMAGED[what]
    if place.endswith(".ckpt"):
        torch.save({"state_dict": {"x": torch.zeros(100)}}, file)
        whole = file.read_bytes()
    else:
        whole = write_lora(file).read_bytes()
    model, start = str(file), None
    if place == "part.safetensors":
        shutil.copytree(build("sd").folder, tmp_path / "model")
        file, model = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors", str(tmp_path / "model")
        whole = file.read_bytes()
    elif place == "lora.safetensors":
        model, start = build("sd").folder, str(file)
    file.write_bytes(damage(whole))
    with pytest.raises(ValueError, match=rf"'{file}' of (model|LoRA) '.*' ({told}).*; expected a whole file"):
        load_model(model, start_from=start)


def test_what_is_missing_is_named(build: Callable[[str], Any], tmp_path: Path) -> None:
    """A name of a file is no hub id, whatever slash is in it; of a folder it is said what it lacks."""
    (tmp_path / "weights.safetensors").mkdir()
    (tmp_path / "style.pt").touch()
    told = {
        "owner/sd15.safetensors": ("there is no such file or folder",) * 2,
        "sd15.ckpt": ("there is no such file or folder",) * 2,
        str(tmp_path / "weights.safetensors"): ("folder has no model_index.json", "folder has 0 .safetensors files"),
        str(tmp_path / "style.pt"): ("that file ends in '.pt'",) * 2,
    }
    for given, (of_model, of_lora) in told.items():
        with pytest.raises(ValueError, match=f"unknown model '{given}': .*; .*{of_model}"):
            load_model(given)
        with pytest.raises(ValueError, match=f"start_from '{given}' must be .*; .*{of_lora}"):
            place_of(given)
    shutil.copytree(build("sd").folder, tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"could not load the model .*no file named diffusion_pytorch_model.*\.$"):
        load_model(str(tmp_path / "model"))
