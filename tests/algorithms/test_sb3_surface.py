"""The rest of Stable-Baselines3's surface: files in memory, videos of get_env(), copies, seeds, and a frugal VecEnv."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecVideoRecorder

import diffusion_gym
from algorithms import DDPO, RWR
from algorithms.checkpoints.file import read_checkpoint
from algorithms.sb3.vec_env import DenoiseVecEnv, find_mdp
from algorithms.sb3_ppo import SB3PPO

IMAGES, STEPS = 4, 3
ITERATION = IMAGES * STEPS
SMALL: dict[str, Any] = {"trainable": "full", "images_per_iteration": IMAGES, "num_envs": IMAGES, "chunk_size": IMAGES}
OWN: dict[type, dict[str, Any]] = {
    DDPO: {"updates_per_iteration": 2},
    RWR: {"images_per_prompt": IMAGES, "updates_per_iteration": 2, "batch_size": 4},
    SB3PPO: {"n_epochs": 1, "batch_size": 12},
}


def env(**changes: Any) -> gymnasium.Env:
    arguments = {"model": "exact-gaussian", "reward": "exact-linear", "num_inference_steps": STEPS, **changes}
    return gymnasium.make(diffusion_gym.ENV_ID, **arguments)


@pytest.fixture(params=[DDPO, RWR, SB3PPO])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``make(**config)``: each algorithm, quick."""
    return lambda **changes: request.param(env(), **{**SMALL, **OWN[request.param], **changes})


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_in_memory(make: Callable, digest: Callable) -> None:
    """Read where writing left off, or from the beginning; training goes on as if it had never stopped."""
    whole, saved, file = make().learn(2 * ITERATION), make().learn(ITERATION), io.BytesIO()
    saved.save(file)
    for position in (file.tell(), 0):
        file.seek(position)
        assert digest(type(saved).load(file).learn(ITERATION, reset_num_timesteps=False)) == digest(whole)
    fresh = make()
    fresh.set_parameters(file)
    assert digest(fresh) == digest(saved)


def test_a_checkpoint_in_an_open_file(digest: Callable, tmp_path: Path) -> None:
    """It is what a path would have got; one that cannot be sought is read as it comes."""
    saved = DDPO(env(), **SMALL).learn(ITERATION)
    saved.save(tmp_path / "path")
    with (tmp_path / "open").open("wb") as file:
        saved.save(file)
    assert (tmp_path / "open").read_bytes() == (tmp_path / "path.zip").read_bytes()
    with (tmp_path / "open").open("rb") as file:
        assert digest(DDPO.load(file)) == digest(saved)

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    assert digest(DDPO.load(Pipe((tmp_path / "open").read_bytes()))) == digest(saved)


def test_files_of_the_wrong_kind(tmp_path: Path) -> None:
    saved = DDPO(env(), **SMALL)
    with (
        (tmp_path / "text").open("w", encoding="utf-8") as text,
        pytest.raises(TypeError, match=r"a writable binary file.*open\(path, 'wb'\), got a file opened as text"),
    ):
        saved.save(text)  # type: ignore[arg-type]
    with (
        (tmp_path / "text").open("rb") as file,
        pytest.raises(TypeError, match=r"a writable binary file.*BufferedReader"),
    ):
        saved.save(file)
    with (
        (tmp_path / "new").open("wb") as file,
        pytest.raises(TypeError, match=r"a readable binary file.*BufferedWriter"),
    ):
        DDPO.load(file)
    for nothing in (None, 3, [1]):
        with pytest.raises(TypeError, match=r"expected a checkpoint's path, or a .* binary file.*got"):
            saved.save(nothing)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"expected a checkpoint's path, or a .* binary file.*got"):
            DDPO.load(nothing)  # type: ignore[arg-type]
    for content in (b"", b"text", pickle.dumps([1])):
        with pytest.raises(ValueError, match="the checkpoint BytesIO is truncated or altered"):
            read_checkpoint(io.BytesIO(content))


# -- get_env() ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_get_env_shows_its_latents(render_mode: str | None) -> None:
    """Whatever the render mode of the environment it was made from: n pictures (8, 16), side by side or apart."""
    vec_env = DDPO(env(render_mode=render_mode), **SMALL).get_env()
    assert vec_env.render_mode == "rgb_array"
    assert vec_env.get_attr("render_mode") == ["rgb_array"] * IMAGES
    assert vec_env.metadata["render_fps"] == 10
    vec_env.reset()
    assert vec_env.render().shape == (16, 32, 3)
    assert [image.shape for image in vec_env.get_images()] == [(8, 16, 3)] * IMAGES


def test_vec_video_recorder_films_get_env(make: Callable, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    algorithm = make()
    recorder = VecVideoRecorder(algorithm.get_env(), str(tmp_path), lambda step: step == 0, video_length=10 * STEPS)
    observation = recorder.reset()
    for _ in range(STEPS - 1):
        observation, *_ = recorder.step(algorithm.predict(observation)[0])
    frames = recorder.recorded_frames
    recorder.recorded_frames = []  # writing a film is the recorder's business
    assert [frame.shape for frame in frames] == [(16, 32, 3)] * STEPS
    assert not np.array_equal(frames[0], frames[-1])


def test_the_unused_vec_env_holds_nothing(make: Callable) -> None:
    """Its latents and conditioning would lie on the device all the time: 0.5 GB on Flux at 64 environments."""
    algorithm = make()
    algorithm.learn(ITERATION).learn(ITERATION)
    held = vars(algorithm.get_env())
    assert "venv" not in held
    assert algorithm._last_obs is None
    assert not any(isinstance(value, torch.Tensor | np.ndarray | dict) and len(value) > 9 for value in held.values())
    observation = algorithm.get_env().reset()
    assert observation["latent"].shape == (IMAGES, 2, 1, 1)


def test_spaces_are_the_environments() -> None:
    mdp = find_mdp(env())
    vec_env = DenoiseVecEnv(mdp, 2)
    assert vec_env.observation_space == vec_env.venv.single_observation_space
    assert vec_env.action_space == vec_env.venv.single_action_space


# -- copies, seeds and what has no meaning here ------------------------------------------------------------------------


def test_a_copy_trains_on_by_itself(make: Callable, digest: Callable, tmp_path: Path) -> None:
    """Also one that logs to a file and learned with callbacks; another reward of the copy is the copy's alone."""
    algorithm = make(learning_rate=lambda progress: 0.01 + 0.01 * progress, ema_decay=0.9)
    algorithm.set_logger(configure(str(tmp_path), ["csv"]))
    algorithm.learn(ITERATION, lambda locals_, globals_: True)
    twin = copy.deepcopy(algorithm)
    assert digest(twin) == digest(algorithm)
    before = digest(algorithm)
    twin.learn(ITERATION, reset_num_timesteps=False)
    assert digest(algorithm) == before != digest(twin)
    assert digest(algorithm.learn(ITERATION, reset_num_timesteps=False)) == digest(twin)
    twin.mdp.set_reward("exact-quadratic")
    assert algorithm.mdp.reward_spec == "exact-linear"


def test_a_pickle_is_refused(make: Callable) -> None:
    with pytest.raises(TypeError, match=r"cannot be pickled; save\(path\) writes a checkpoint"):
        pickle.dumps(make())


def test_a_policy_alone_is_not_saved(make: Callable, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=r"algorithm\.save\(path\).*algorithm\.export\(folder\)"):
        make().policy.save(tmp_path / "policy")
    with pytest.raises(NotImplementedError, match=r"loaded with its algorithm"):
        type(make().policy).load(tmp_path / "policy")
    assert make().get_vec_normalize_env() is None


def test_a_seed_set_later_is_that_of_what_follows(make: Callable, digest: Callable, tmp_path: Path) -> None:
    """Images and updates are drawn by it, checkpoints hold it, and predict repeats, as in Stable-Baselines3."""
    seeded, plain = make(seed=0), make(seed=0)
    seeded.set_random_seed(7)
    assert digest(seeded) == digest(plain)
    assert digest(seeded.learn(ITERATION)) != digest(plain.learn(ITERATION))
    assert digest(make(seed=0).learn(ITERATION)) == digest(plain)
    seeded.save(tmp_path / "run")
    assert type(seeded).load(tmp_path / "run").config.seed == seeded.seed == 7
    observation = seeded.get_env().reset()
    actions = []
    for _ in range(2):
        seeded.set_random_seed(7)
        actions.append(seeded.predict(observation)[0])
    assert np.array_equal(*actions)
    seeded.set_random_seed(None)
    assert seeded.config.seed == 7
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        seeded.set_random_seed(-1)
