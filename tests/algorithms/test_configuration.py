"""Configuration: every shipped one builds and runs, and what cannot work is refused before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import stable_baselines3.common.vec_env as sb3_vec_env

from algorithms import ALGORITHMS, DDPO, RWR, DDPOConfig, EvaluationConfig, PolicyConfig, RWRConfig
from algorithms.config.base import from_dict, override, to_dict
from diffusion_gym.rewards import differentiable


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_shipped_configuration_builds_and_runs(make_env: Callable, name: str) -> None:
    """As published, on the exact model (whose full weights alone can be trained), for one iteration of T = 10."""
    entry = ALGORITHMS[name]
    algorithm = entry.cls(make_env(steps=10), entry.config, trainable="full").learn(1)
    assert algorithm.iteration == 1
    assert algorithm.costs["reward_queries"] == entry.config.images_per_iteration
    assert entry.summary


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_shipped_configuration_builds_with_adapters(make_env: Callable, tiny_sd: str, name: str) -> None:
    """The default trains a LoRA."""
    entry = ALGORITHMS[name]
    brightness = differentiable(lambda images, prompts: images.mean((1, 2, 3)))
    algorithm = entry.cls(make_env(tiny_sd, reward=brightness, prompts=["cat"]), entry.config)
    assert all("lora" in parameter for parameter in algorithm.policy.trainable_parameters())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_json_round_trip(name: str) -> None:
    config = ALGORITHMS[name].config
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_forward_equivalents_by_hand(make_env: Callable) -> None:
    """DDPO: 8 images of T = 5 sampled (40) and trained (3 x 40). RWR: 40, and 3 updates of 6 noised images (3 x 18).

    Guidance doubles both.
    """
    common: dict[str, Any] = {"trainable": "full", "images_per_iteration": 8, "num_envs": 8}
    ddpo = DDPO(make_env(), **common).learn(1)
    rwr = RWR(make_env(), batch_size=6, updates_per_iteration=3, images_per_prompt=8, **common).learn(1)
    guided = DDPO(make_env(), guidance_scale=2.0, **common).learn(1)
    assert ddpo.costs["forward_equivalents"] == 40 + 120
    assert rwr.costs["forward_equivalents"] == 40 + 54
    assert guided.costs["forward_equivalents"] == 2 * 160
    assert ddpo.costs["images"] == ddpo.costs["reward_queries"] == 8
    assert ddpo.num_timesteps == 40


def test_overrides_reach_the_dataclasses_inside() -> None:
    config = override(DDPOConfig(), guidance_scale=5.0, rank=8, learning_rate=0.1, images=4)
    assert config.policy.guidance_scale == 5.0
    assert config.policy.lora.rank == 8
    assert config.learning_rate == 0.1
    assert config.evaluation.images == 4
    assert DDPOConfig().policy.guidance_scale == 1.0  # frozen, not written to


def test_a_runs_seed_is_not_the_evaluations() -> None:
    """ "seed" means the outer field: fixed evaluation noise is the same for every seed of a run."""
    config = override(DDPOConfig(), seed=3)
    assert config.seed == 3
    assert config.evaluation.seed == EvaluationConfig().seed


def test_an_unknown_field_lists_the_known_ones(make_env: Callable) -> None:
    with pytest.raises(TypeError, match=r"DDPOConfig has no field 'learnig_rate'; its fields are .*'learning_rate'"):
        DDPO(make_env(), learnig_rate=1.0)
    with pytest.raises(TypeError, match="no field 'beta'"):
        DDPO(make_env(), beta=0.2)
    with pytest.raises(ValueError, match="DDPOConfig has no field 'details'"):  # of the help, no setting
        from_dict(DDPOConfig, {"details": []})
    with pytest.raises(ValueError, match="DDPOConfig has no field 'gamma'"):
        from_dict(DDPOConfig, {"gamma": 1})


@pytest.mark.parametrize("name", ["reward", "prompts", "model", "num_inference_steps", "vae_tiling", "height"])
def test_arguments_of_the_environment_are_sent_there(make_env: Callable, name: str) -> None:
    message = rf"{name} belongs to the environment: gymnasium\.make\('DiffusionDenoise-v0', {name}=\.\.\.\)"
    with pytest.raises(TypeError, match=message + (r", or TerminalReward\(env, reward\)" if name == "reward" else "")):
        DDPO(make_env(), **{name: "compressibility"})
    with pytest.raises(TypeError, match=message):
        RWR("DiffusionDenoise-v0", **{name: "compressibility"})


def test_arguments_of_learn_are_sent_there(make_env: Callable) -> None:
    with pytest.raises(
        TypeError, match=r"total_timesteps belongs to learn: algorithm\.learn\(total_timesteps=\.\.\.\)"
    ):
        DDPO(make_env(), total_timesteps=100)


def test_the_config_of_another_algorithm_is_refused(make_env: Callable) -> None:
    with pytest.raises(TypeError, match="DDPO needs a DDPOConfig, got RWRConfig"):
        DDPO(make_env(), RWRConfig())


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (DDPOConfig, {"images_per_iteration": 0}),
        (DDPOConfig, {"images_per_iteration": True}),
        (DDPOConfig, {"num_envs": 48}),
        (DDPOConfig, {"learning_rate": 0.0}),
        (DDPOConfig, {"learning_rate": float("nan")}),
        (DDPOConfig, {"max_grad_norm": -1.0}),
        (DDPOConfig, {"seed": -1}),
        (DDPOConfig, {"updates_per_iteration": 3}),
        (DDPOConfig, {"importance_sampling": False}),
        (DDPOConfig, {"clip_range": 0.0}),
        (DDPOConfig, {"timestep_fraction": 1.5}),
        (DDPOConfig, {"statistics_min_count": 64}),
        (DDPOConfig, {"log_prob_reduction": "median"}),
        (RWRConfig, {"beta": 0.0}),
        (RWRConfig, {"top_fraction": 0.0}),
        (RWRConfig, {"batch_size": 0}),
        (PolicyConfig, {"eta": 1.1}),
        (PolicyConfig, {"guidance_scale": -1.0}),
        (PolicyConfig, {"chunk_size": 0}),
        (PolicyConfig, {"trainable": "everything"}),
        (PolicyConfig, {"sampler": "euler"}),
        (PolicyConfig, {"autocast": "float8"}),
        (EvaluationConfig, {"images": -1}),
        (EvaluationConfig, {"every": 0}),
    ],
    ids=str,
)
def test_impossible_values_are_refused_at_once(cls: type, values: dict[str, Any]) -> None:
    """By the dataclass itself, naming the field; a typo in a choice must not silently mean another choice."""
    with pytest.raises(ValueError, match=next(iter(values)).removeprefix("statistics_")):
        cls(**values)


def test_deterministic_sampling_is_refused_where_densities_are_needed(make_env: Callable) -> None:
    with pytest.raises(ValueError, match=r"needs a stochastic sampler.*eta > 0"):
        DDPO(make_env(), trainable="full", eta=0.0)
    # Its only step is DDPM's last, which has no density.
    with pytest.raises(ValueError, match="no step has a density"):
        DDPO(make_env(steps=1), trainable="full", sampler="ddpm")
    assert RWR(make_env(), trainable="full", eta=0.0).learn(1).iteration == 1


def test_deterministic_sampling_is_refused_before_anything_is_loaded() -> None:
    """The environment's id is not even made, or it would be the unknown id that is complained about."""
    with pytest.raises(ValueError, match="eta > 0"):
        DDPO("NoSuchEnvironment-v0", eta=0.0)


def test_environments_without_denoising_are_refused() -> None:
    """Single, vectorised, and Stable-Baselines3's."""
    others: list[Any] = [
        gymnasium.make("CartPole-v1"),
        gymnasium.make_vec("CartPole-v1", num_envs=2),
        sb3_vec_env.DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]),
        "CartPole-v1",
        None,
    ]
    for env in others:
        with pytest.raises(TypeError, match="expected a DiffusionDenoise environment"):
            DDPO(env)


def test_adapters_on_a_model_without_layers_are_refused(make_env: Callable) -> None:
    with pytest.raises(ValueError, match="trainable='full'"):
        DDPO(make_env(), trainable="lora")


@pytest.mark.parametrize("num_envs", [1, 4])
def test_vector_environments_are_accepted(num_envs: int) -> None:
    """Their number of environments does not matter: rollouts run config.num_envs side by side."""
    env = gymnasium.make_vec(
        "DiffusionDenoise-v0", num_envs=num_envs, model="exact-gaussian", reward="exact-linear", num_inference_steps=3
    )
    algorithm = DDPO(env, trainable="full", images_per_iteration=8, num_envs=8).learn(1)
    assert algorithm.num_timesteps == 24


def test_python_and_the_command_line_give_rwr_the_same_images_of_a_prompt() -> None:
    assert RWRConfig() == ALGORITHMS["rwr"].config
    assert RWRConfig(sparse=True) == ALGORITHMS["sparse-rwr"].config
    assert RWRConfig().images_per_prompt == 16


@pytest.mark.parametrize("sparse", [False, True])
def test_rwr_refuses_images_that_are_alone_with_their_prompt(make_env: Callable, sparse: bool) -> None:
    """Alone, an image weighs 1 whatever its reward: 4 images on 4 or 3 prompts; of 2 prompts each has another."""
    common: dict[str, Any] = {"trainable": "full", "images_per_iteration": 4, "num_envs": 4, "sparse": sparse}

    def build(prompts: int, group: int = 1) -> RWR:
        texts = ["north", "east", "south", "west"][:prompts]
        return RWR(make_env("exact-mixture", prompts=texts), images_per_prompt=group, **common)

    with pytest.raises(
        ValueError,
        match="images_per_prompt=1 and 4 prompts 4 of an iteration's 4 images are the only ones of their prompt",
    ):
        build(4)
    with pytest.raises(ValueError, match=r"images_per_prompt=1 and 3 prompts 2 of .* Set images_per_prompt to 4, or"):
        build(3)
    for accepted in (build(2), build(1), build(4, group=2)):
        assert accepted.learn(1).iteration == 1


def test_a_checkpoint_of_rwr_loads_beside_more_prompts_than_it_could_train_on(
    make_env: Callable, tmp_path: Path
) -> None:
    """As ``sample`` loads it; what the file says of images_per_prompt holds, not the default."""
    common: dict[str, Any] = {"trainable": "full", "images_per_iteration": 4, "num_envs": 4, "images_per_prompt": 1}
    RWR(make_env("exact-mixture", prompts=["north"]), **common).save(tmp_path / "one")
    loaded = RWR.load(tmp_path / "one", make_env("exact-mixture", prompts=["north", "east", "south", "west"]))
    assert loaded.config.images_per_prompt == 1
