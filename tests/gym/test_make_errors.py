"""Every mistake with the arguments of ``make`` and ``make_vec``, with model folders, and with rewards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import diffusion_gym


def _make(arguments: dict[str, Any]) -> Any:
    return gymnasium.make(diffusion_gym.ENV_ID, **arguments)


def _make_vec(arguments: dict[str, Any]) -> Any:
    return gymnasium.make_vec(diffusion_gym.ENV_ID, **{"num_envs": 2, **arguments})


@pytest.mark.parametrize("make", [_make, _make_vec])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "nope"},
            r"unknown model 'nope': expected one of \['emoji-animals', 'emoji-world', 'exact-gaussian', 'exact-mix",
        ),
        ({"model": "./absent/folder"}, "unknown model './absent/folder': expected one of"),
        ({"reward": "nope"}, r"unknown reward 'nope'; expected one of \['aesthetic'"),
        ({"prompts": "nope"}, r"unknown prompt set 'nope'; expected one of \[.*'animals', .*, a list of prompts"),
        ({"prompts": []}, "prompts is empty; expected at least one prompt"),
        ({"prompts": ["a cat"]}, r"knows the prompts \['', 'anywhere', .*got 'a cat'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1 to 1000, got 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be an integer from 1 to 1000, got 1001"),
        ({"num_inference_steps": 2.5}, r"num_inference_steps must be an integer from 1 to 1000, got 2\.5"),
        ({"render_mode": "ansi"}, "render_mode must be None or 'rgb_array', got 'ansi'"),
        ({"device": "tpu"}, "unknown device 'tpu'; expected for example 'auto', 'cpu', 'cuda'"),
        ({"dtype": "int8"}, r"unknown dtype 'int8'; expected one of \['bfloat16', 'float16', 'float32'\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*The environment is being initialised with render_mode")
def test_bad_arguments(
    exact: dict[str, Any], make: Callable[[dict[str, Any]], Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(exact | changes)


@pytest.mark.parametrize("make", [_make, _make_vec])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "model must be a name, a folder or a DiffusionModel, got int"),
        ({"reward": 3}, "reward must be a name.*got int"),
        ({"prompts": 3}, "prompts must be a set's name.*got int"),
        ({"prompts": ["north", 3]}, r"prompts\[1\] must be text, got int"),
        ({"prompt": ["north"]}, "prompt"),
    ],
)
def test_arguments_of_a_wrong_type(
    exact: dict[str, Any], make: Callable[[dict[str, Any]], Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        make(exact | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
        ({"num_envs": 2.0}, r"num_envs must be an integer of at least 1, got 2\.0"),
        ({"output": "jax"}, "output must be 'numpy' or 'torch', got 'jax'"),
        (
            {"autoreset_mode": "never"},
            r"autoreset_mode must be one of \['NextStep', 'SameStep', 'Disabled'\].*got 'never'",
        ),
        ({"autoreset_mode": None}, r"autoreset_mode must be one of .*got None"),
    ],
)
def test_bad_arguments_of_a_vector(exact: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _make_vec(exact | changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(exact: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'cuda' was asked for, but torch sees no CUDA device; use device='cpu'"):
        _make(exact | {"device": "cuda"})


def test_rewards_and_prompts_are_checked_before_a_model_is_loaded(
    exact: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error costs no minutes of loading weights."""

    def load(*arguments: Any) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("diffusion_gym.envs.config.load_model", load)
    for changes in ({"reward": "nope"}, {"prompts": "nope"}):
        with pytest.raises(ValueError, match="unknown"):
            _make(exact | changes)


def test_a_folder_of_another_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WuerstchenPipeline"}', encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"is a WuerstchenPipeline, which is not supported; supported are \[.*'DDPMPipeline', .*your-own-family",
    ):
        _make({"model": str(tmp_path)})


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_broken_model_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"model_index\.json is not a diffusers model index"):
        _make({"model": str(tmp_path)})


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model '.*': expected one of .*a folder with a model_index\.json"):
        _make({"model": str(tmp_path)})


def test_a_hub_id_without_a_network_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*arguments: Any, **more: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(
        ValueError,
        match=r"no folder 'someone/some-model', .*could not be fetched.*hf download someone/some-model.*model='DIR'",
    ):
        _make({"model": "someone/some-model"})


@pytest.mark.parametrize(
    ("kind", "offline", "advice"),
    [
        ("GatedRepoError", False, r"accept its terms .*hf auth login"),
        ("RepositoryNotFoundError", False, r"the hub has no such model, or it is private.*hf auth login"),
        ("EntryNotFoundError", False, r"has no model_index\.json, so it is not a diffusers pipeline"),
        ("LocalEntryNotFoundError", False, r"the hub could not be reached, .*hf download someone/some-model"),
        ("OfflineModeIsEnabled", True, r"HF_HUB_OFFLINE is set, .*hf download someone/some-model"),
    ],
)
def test_what_stopped_a_download_is_told(
    monkeypatch: pytest.MonkeyPatch, kind: str, offline: bool, advice: str
) -> None:
    def download(*arguments: Any, **more: Any) -> str:
        cls = getattr(huggingface_hub.errors, kind)
        raise cls.__new__(cls)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(ValueError, match=rf"no folder 'someone/some-model', .*\({kind}\): .*{advice}.*emoji-animals"):
        _make({"model": "someone/some-model"})


def test_a_single_file_checkpoint_says_what_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "v1-5-pruned.safetensors"
    save_file({"first.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"is a single-file checkpoint, .*; give as model_config the diff"):
        _make({"model": str(file)})


# ---- rewards that fail in an episode


def _episode(env: Any) -> None:
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(env.action_space.shape, dtype=np.float32))


@pytest.mark.parametrize("make", [_make, _make_vec])
def test_a_bad_reward_names_itself_and_the_prompt(exact: dict[str, Any], make: Callable[[dict[str, Any]], Any]) -> None:
    def shaky(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.full((len(prompts),), torch.nan)

    with pytest.raises(diffusion_gym.RewardError, match="reward 'shaky' returned nan for the prompt 'east'"):
        _episode(make(exact | {"reward": shaky, "prompts": ["east"]}))
