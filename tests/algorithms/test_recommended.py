"""Defaults by model: an algorithm begins with what a folder or its family recommends, unless it is told more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import diffusion_gym
from algorithms import ALGORITHMS, DDPO, RWR, DDPOConfig, PolicyConfig, RWRConfig, SB3PPOConfig
from algorithms.config.base import override
from algorithms.parallel.ranks import ALONE
from diffusion_gym.models import check_device, load_model, recommended_for
from diffusion_gym.models.loading import FAMILIES
from diffusion_gym.prompts import resolve_prompts
from diffusion_gym.recommended import BY_PIPELINE

OWN = {
    "num_inference_steps": 2,
    "any": {"targets": ["all"], "learning_rate": 0.5, "num_envs": 4, "images_per_iteration": 16},
    "ddpo-is": {"updates_per_iteration": 1},
    "sparse-rwr": {"top_fraction": 0.3},
}


@pytest.fixture
def own_folder(tiny_sd: str, tmp_path: Path) -> Callable[..., str]:
    """``own_folder(text)``: the tiny pipeline's folder, with a file of recommended settings."""

    def make(text: str = json.dumps(OWN)) -> str:
        folder = tmp_path / "own"
        shutil.copytree(tiny_sd, folder, dirs_exist_ok=True)
        (folder / "training.json").write_text(text, encoding="utf-8")
        return str(folder)

    return make


def test_a_folder_is_begun_with_what_it_recommends(own_folder: Callable[..., str]) -> None:
    """Steps in the environment, settings in the algorithm; what is given beside them changes them."""
    env = gymnasium.make(diffusion_gym.ENV_ID, model=own_folder())
    assert env.unwrapped.mdp.num_inference_steps == 2
    algorithm = DDPO(env, rank=2)
    config = algorithm.config
    assert (config.learning_rate, config.updates_per_iteration, config.num_envs) == (0.5, 1, 4)
    assert (config.policy.lora.targets, config.policy.lora.rank) == (("all",), 2)
    assert config == DDPOConfig.for_model(env.unwrapped.mdp.model, rank=2)
    assert DDPO(env, DDPOConfig(num_envs=4, images_per_iteration=4)).config.learning_rate == 3e-4, "used as it is"


def test_a_folder_with_a_file_is_begun_with_it_and_not_with_its_familys(own_folder: Callable[..., str]) -> None:
    assert DDPOConfig.for_model(own_folder()).policy.guidance_scale == 1.0


def test_each_algorithm_takes_its_own_section(own_folder: Callable[..., str]) -> None:
    folder = own_folder()
    assert RWRConfig.for_model(folder).top_fraction == 0.1
    assert RWRConfig.for_model(folder, sparse=True).top_fraction == 0.3
    assert DDPOConfig.for_model(folder, importance_sampling=False, updates_per_iteration=1).learning_rate == 0.5


def test_an_exported_pipeline_recommends_what_its_model_did(own_folder: Callable[..., str], tmp_path: Path) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, model=own_folder())
    DDPO(env, trainable="full").export(tmp_path / "tuned")
    assert recommended_for(tmp_path / "tuned").sections == env.unwrapped.mdp.model.recommended.sections


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a mapping such as"),
        ('{"num_inference_steps": 0}', "steps at least 1"),
        ('{"any": 3}', "expected a mapping such as"),
        ('{"any": {"learnig_rate": 1}}', "DDPOConfig has no field 'learnig_rate'"),
        ('{"ddpo-is": {"learning_rate": "fast"}}', "learning_rate must be a finite number"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(own_folder: Callable[..., str], text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error) as raised:
        DDPOConfig.for_model(own_folder(text))
    assert "training.json" in str(raised.value)


@pytest.mark.parametrize("name", ["emoji-animals", "emoji-world", "exact-mixture", "exact-flow-gaussian"])
@pytest.mark.parametrize("config", [DDPOConfig, RWRConfig, SB3PPOConfig])
def test_what_ships_recommends_what_fits(name: str, config: Any) -> None:
    assert config.for_model(name) != config()
    assert recommended_for(name) == load_model(name).recommended, "the same by name and loaded"


def test_a_folder_names_the_prompts_to_begin_with(own_folder: Callable[..., str]) -> None:
    """The embedded world has its own; a model without any has its family's; a list is refused."""
    assert load_model("emoji-world").default_prompts == "emoji-world"
    assert load_model("emoji-animals").default_prompts == "animals"
    env = gymnasium.make(diffusion_gym.ENV_ID, model=own_folder('{"prompts": "ten-animals"}'))
    assert env.unwrapped.mdp.prompts == resolve_prompts("ten-animals")
    with pytest.raises(ValueError, match=r'holds \{"prompts": \["cat"\]\}; expected a mapping such as'):
        recommended_for(own_folder('{"prompts": ["cat"]}'))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_a_family_recommends_fits(family: str) -> None:
    found = FAMILIES[family].recommended
    assert BY_PIPELINE[family] is found
    assert found.num_inference_steps >= 10
    for name, config in {"ddpo-is": DDPOConfig(), "rwr": RWRConfig()}.items():
        override(config, **found.settings(name))
    assert {*ALGORITHMS, "any"} >= set(found.sections)


def test_an_ids_own_model_decides(tiny_sd: str) -> None:
    gymnasium.register("TinySD-v0", entry_point="diffusion_gym.envs.single:DenoiseEnv", kwargs={"model": tiny_sd})
    try:
        algorithm = DDPO("TinySD-v0", images_per_iteration=32, guidance_scale=1.0)
    finally:
        del gymnasium.registry["TinySD-v0"]
    assert algorithm.mdp.model.name == tiny_sd
    assert algorithm.mdp.num_inference_steps == 50
    assert algorithm.config == DDPOConfig.for_model(tiny_sd, images_per_iteration=32, guidance_scale=1.0)


def test_a_field_beside_a_dataclass_changes_it() -> None:
    """It was dropped without a word."""
    config = override(DDPOConfig(), policy=PolicyConfig(eta=0.5), chunk_size=7, rank=9)
    assert (config.policy.eta, config.policy.chunk_size, config.policy.lora.rank) == (0.5, 7, 9)


@pytest.mark.parametrize("cls", [DDPO, RWR])
def test_a_plain_algorithm_learns(make_env: Callable, cls: type) -> None:
    """The mixture's first coordinate has mean 0 and std 1.1 before."""
    algorithm = cls(make_env("exact-mixture", reward="exact-linear")).learn(1)
    before = algorithm.last_rollout_reward
    assert algorithm.learn(1024 * 5).last_rollout_reward > before + 0.5


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check_device("auto") == torch.device("cuda")
    assert ALONE.device("auto") == "auto"
