"""Gymnasium's and Stable-Baselines3's environment checkers, and Gymnasium's stock wrappers."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import diffusion_gym
from diffusion_gym.models.loading import ASSETS

KNOWN_SB3_WARNINGS = {
    "It seems that your observation latent is an image but its `dtype` is (float32)": "a latent is no picture",
    "It seems that your observation space latent is an image but the upper and lower bounds": "the same",
    "Treating image space as channels-last": "guessed from the latent's small width; channels come first",
    "The minimal resolution for an image is 36x36": "for CnnPolicy, which is no denoiser",
    "Your observation prompt_embedding has an unconventional shape": "(tokens, width): flattening would lose it",
    "We recommend you to use a symmetric and normalized Box action space": "a latent, unscaled on purpose",
}
"""What Stable-Baselines3 may warn of (a warning's beginning), and why it does not matter here."""


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasium_has_nothing_to_say(each_model: dict[str, Any], render_mode: str | None) -> None:
    diffusion_gym.load_model(each_model["model"])  # what loading warns of is test_stable_diffusion's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(diffusion_gym.ENV_ID, render_mode=render_mode, **each_model).unwrapped
        check_env(env)


def test_passive_checker_has_nothing_to_say(each_model: dict[str, Any]) -> None:
    """``make`` wraps every environment in a checker of its own, which warns while it is used."""
    diffusion_gym.load_model(each_model["model"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(diffusion_gym.ENV_ID, render_mode="rgb_array", **each_model)
        observation, _ = env.reset(seed=0)
        for _ in range(3):
            observation, *_ = env.step(observation["latent"])
        env.render()
        env.close()


def test_stable_baselines3_warns_of_what_is_known(each_model: dict[str, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    env = gymnasium.make(diffusion_gym.ENV_ID, render_mode="rgb_array", **each_model).unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env_sb3(env)
    messages = [str(warning.message) for warning in caught]
    known = tuple(KNOWN_SB3_WARNINGS)
    assert [message for message in messages if not message.startswith(known)] == []
    # The channels-last guess depends on the latent's shape; the others come for every model.
    expected = {start for start in known if not start.startswith("Treating")}
    assert {start for start in known if any(message.startswith(start) for message in messages)} >= expected


@pytest.mark.skipif(
    not (ASSETS / "emoji-animals" / "model_index.json").is_file(), reason="the embedded model is not there"
)
def test_defaults_run_on_the_embedded_model() -> None:
    diffusion_gym.load_model("emoji-animals")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(diffusion_gym.ENV_ID)
        observation, info = env.reset(seed=0)
        assert info["prompt"] in diffusion_gym.resolve_prompts("animals")
        for _ in range(10):
            observation, reward, terminated, _, info = env.step(observation["latent"])
        assert terminated
        assert reward < 0
        assert info["image"].shape == (64, 64, 3)


def test_record_episode_statistics(each_model: dict[str, Any]) -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(diffusion_gym.ENV_ID, **each_model))
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        observation, reward, _, _, info = env.step(observation["latent"])
    assert info["episode"]["l"] == 3
    assert info["episode"]["r"] == pytest.approx(reward)
    assert reward != 0


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_record_episode_statistics_of_a_vector(each_model: dict[str, Any], mode: AutoresetMode) -> None:
    base = gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=3, autoreset_mode=mode, **each_model)
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(base)
    returns = []
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        for _ in range(3):
            observation, rewards, terminated, _, info = env.step(observation["latent"])
        assert terminated.all()
        assert info["episode"]["l"].tolist() == [3, 3, 3]
        np.testing.assert_allclose(info["episode"]["r"], rewards, rtol=1e-6)
        returns.append(rewards)
        if mode is AutoresetMode.DISABLED:
            observation, _ = env.reset(options={"reset_mask": np.ones(3, dtype=bool)})
        elif mode is AutoresetMode.NEXT_STEP:
            observation, *_ = env.step(observation["latent"])
    assert list(env.return_queue) == pytest.approx(np.concatenate(returns).tolist())


def test_numpy_vector_wrappers_accept_the_environment(each_model: dict[str, Any]) -> None:
    """A stock observation wrapper and a dict wrapper over the batch run on it."""
    env = gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=2, **each_model)
    env = gymnasium.wrappers.vector.DictInfoToList(gymnasium.wrappers.vector.FlattenObservation(env))
    observation, info = env.reset(seed=0)
    assert observation.shape == (2, *env.single_observation_space.shape)
    assert [row["step_index"] for row in info] == [0, 0]


@pytest.mark.filterwarnings("ignore:.*Overwriting existing videos")
def test_record_video_films_a_denoising(tiny_sd: str, tmp_path: Path) -> None:
    moviepy = pytest.importorskip("moviepy")
    base = gymnasium.make(diffusion_gym.ENV_ID, model=tiny_sd, num_inference_steps=3, render_mode="rgb_array")
    env = gymnasium.wrappers.RecordVideo(base, str(tmp_path), episode_trigger=lambda episode: True, disable_logger=True)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        observation, *_ = env.step(observation["latent"] * 0.5)
    env.close()
    films = list(tmp_path.glob("*.mp4"))
    assert len(films) == 1
    with moviepy.VideoFileClip(str(films[0])) as film:
        # T + 1 pictures: the noise, and one after each step, at the environment's 10 frames a second.
        assert film.n_frames == 4
        assert film.fps == base.metadata["render_fps"] == 10
        assert tuple(film.size) == (16, 16)
