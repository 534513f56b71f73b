"""The single environment: spaces, episodes, seeding, rewards, rendering, copies; its errors are in test_env_errors."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from gymnasium import spaces

import diffusion_gym
from diffusion_gym import load_model

Make = Callable[..., gymnasium.Env]


@pytest.fixture
def env(each_model: dict[str, Any]) -> gymnasium.Env:
    """Return an environment as ``make`` gives it."""
    return gymnasium.make(diffusion_gym.ENV_ID, **each_model)


def _episode(env: gymnasium.Env, factor: float = 0.5, **reset: Any) -> list[Any]:
    """Return reset's and every step's results; the policy scales the latent."""
    results: list[Any] = [env.reset(**reset)]
    done = False
    while not done:
        results.append(env.step((results[-1][0]["latent"] * factor).astype(np.float32)))
        done = results[-1][2] or results[-1][3]
    return results


def _assert_equal(a: Any, b: Any) -> None:
    """Two nested results are equal bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            _assert_equal(left, right)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


# ---- spaces and episodes


def test_spaces(env: gymnasium.Env, each_model: dict[str, Any]) -> None:
    model = load_model(each_model["model"])
    assert isinstance(env.observation_space, spaces.Dict)
    assert set(env.observation_space) == {"latent", "timestep", "prompt_embedding"}
    assert isinstance(env.action_space, spaces.Box)
    assert env.action_space == env.observation_space["latent"]
    assert env.action_space.shape == model.latent_shape
    assert env.observation_space["timestep"].shape == (1,)
    assert env.observation_space["prompt_embedding"].shape == model.conditioning_shapes["prompt_embedding"]
    for space in env.observation_space.values():
        assert space.dtype == np.float32
        assert np.isfinite(space.low).all()
        assert np.isfinite(space.high).all()


def test_an_episode(env: gymnasium.Env, each_model: dict[str, Any]) -> None:
    """T steps; time runs down the grid and ends at 0; the next latent is the action; the reward comes last."""
    grid = load_model(each_model["model"]).schedule(3).timesteps.tolist()
    first, *steps = _episode(env, seed=1)
    assert len(steps) == env.unwrapped.num_inference_steps == 3
    observations = [first[0], *(step[0] for step in steps)]
    assert [float(observation["timestep"][0]) for observation in observations] == [*grid, 0.0]
    for before, after in itertools.pairwise(observations):
        np.testing.assert_array_equal(after["latent"], (before["latent"] * 0.5).astype(np.float32))
        np.testing.assert_array_equal(after["prompt_embedding"], before["prompt_embedding"])
    assert [step[1] for step in steps[:-1]] == [0.0, 0.0]
    assert steps[-1][1] != 0.0
    assert [step[2] for step in steps] == [False, False, True]
    assert not any(step[3] for step in steps)
    assert all(env.observation_space.contains(observation) for observation in observations)
    assert [type(value) for value in steps[-1][1:4]] == [float, bool, bool]


def test_info(env: gymnasium.Env, each_model: dict[str, Any]) -> None:
    first, *steps = _episode(env, seed=2)
    infos = [first[1], *(step[4] for step in steps)]
    model, prompts = load_model(each_model["model"]), each_model["prompts"]
    for index, info in enumerate(infos):
        expected = {"prompt", "metadata", "prompt_index", "step_index"} | ({"image"} if index == 3 else set())
        assert set(info) == expected
        assert info["step_index"] == index
        assert info["prompt"] == prompts[info["prompt_index"]] == infos[0]["prompt"]
        assert [type(info[name]) for name in ("prompt", "prompt_index", "step_index")] == [str, int, int]
    image = infos[-1]["image"]
    assert image.shape == (*model.image_shape[1:], 3)
    assert image.dtype == np.uint8
    final = torch.from_numpy(steps[-1][0]["latent"])[None]
    np.testing.assert_array_equal(image, model.decode(final)[0].permute(1, 2, 0).numpy())


def test_observation_holds_the_prompts_embedding(env: gymnasium.Env, each_model: dict[str, Any]) -> None:
    observation, info = env.reset(seed=3)
    expected = load_model(each_model["model"]).encode_prompts([info["prompt"]])["prompt_embedding"][0]
    np.testing.assert_array_equal(observation["prompt_embedding"], expected.numpy())


def test_one_step_episode(exact: dict[str, Any]) -> None:
    first, only = _episode(gymnasium.make(diffusion_gym.ENV_ID, **exact | {"num_inference_steps": 1}), seed=0)
    assert only[2] is True
    assert first[1]["step_index"] == 0


def test_reward_by_hand(exact: dict[str, Any]) -> None:
    """The linear reward is the final latent's first coordinate, to the picture code's 1.2e-4."""
    last = _episode(gymnasium.make(diffusion_gym.ENV_ID, **exact), seed=4)[-1]
    assert last[1] == pytest.approx(float(last[0]["latent"][0, 0, 0]), abs=1.3e-4)


def test_reward_sees_image_and_prompt(exact: dict[str, Any]) -> None:
    seen: list[tuple[torch.Tensor, list[str]]] = []

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append((images.clone(), list(prompts)))
        return torch.full((len(prompts),), 2.5)

    first, *steps = _episode(gymnasium.make(diffusion_gym.ENV_ID, **exact | {"reward": reward}), seed=5)
    assert steps[-1][1] == 2.5
    assert len(seen) == 1, "the reward is asked once an episode"
    images, prompts = seen[0]
    assert prompts == [first[1]["prompt"]]
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), steps[-1][4]["image"])


def test_score_is_the_steps_reward_to_the_bit(env: gymnasium.Env) -> None:
    first, *steps = _episode(env, seed=6)
    scored = env.unwrapped.score(torch.from_numpy(steps[-1][0]["latent"])[None], [first[1]["prompt"]])
    assert float(scored.rewards[0]) == steps[-1][1]
    np.testing.assert_array_equal(scored.images[0].permute(1, 2, 0).numpy(), steps[-1][4]["image"])


# ---- seeding


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 1, 2**63 - 1])
def test_initial_latent_is_diffusers_draw(env: gymnasium.Env, each_model: dict[str, Any], seed: int) -> None:
    """A pipeline called with ``generator=torch.Generator().manual_seed(seed)`` starts from the same noise."""
    shape = (1, *load_model(each_model["model"]).latent_shape)
    expected = randn_tensor(shape, generator=torch.Generator().manual_seed(seed), device=torch.device("cpu"))
    observation, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(observation["latent"], expected[0].numpy())


def test_same_seed_same_episode(each_model: dict[str, Any]) -> None:
    """In two environments, and again in one that was used in between."""
    one, two = (gymnasium.make(diffusion_gym.ENV_ID, **each_model) for _ in range(2))
    episode = _episode(one, seed=8)
    _assert_equal(episode, _episode(two, seed=8))
    one.reset()
    _assert_equal(episode, _episode(one, seed=8))


def test_seed_stream_goes_on(env: gymnasium.Env, each_model: dict[str, Any]) -> None:
    """Without a seed the next episode takes the next numbers of the stream, and prompts of theirs."""
    generator = torch.Generator().manual_seed(9)
    shape = load_model(each_model["model"]).latent_shape
    prompts = np.random.default_rng(9)
    for episode in range(4):
        observation, info = env.reset(seed=9 if episode == 0 else None)
        np.testing.assert_array_equal(observation["latent"], torch.randn(shape, generator=generator).numpy())
        assert info["prompt_index"] == prompts.integers(4)


def test_steps_do_not_move_the_streams(each_model: dict[str, Any]) -> None:
    one, two = (gymnasium.make(diffusion_gym.ENV_ID, **each_model) for _ in range(2))
    _episode(one, seed=10)
    two.reset(seed=10)
    _assert_equal(one.reset(), two.reset())


def test_unseeded_environments_differ(each_model: dict[str, Any]) -> None:
    one, two = (gymnasium.make(diffusion_gym.ENV_ID, **each_model) for _ in range(2))
    assert not np.array_equal(one.reset()[0]["latent"], two.reset()[0]["latent"])


def test_given_prompts_do_not_move_the_noise(env: gymnasium.Env, each_model: dict[str, Any]) -> None:
    """Initial noise and prompts have streams of their own."""
    drawn, _ = env.reset(seed=11)
    given, info = env.reset(seed=11, options={"prompts": [each_model["prompts"][2]]})
    np.testing.assert_array_equal(drawn["latent"], given["latent"])
    assert info["prompt"] == each_model["prompts"][2]


def test_prompts_are_drawn_uniformly(exact: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, **exact).unwrapped
    counts = np.bincount([env.reset(seed=0 if i == 0 else None)[1]["prompt_index"] for i in range(1000)], minlength=4)
    # 250 each with a standard deviation of 13.7; four of them.
    assert np.abs(counts - 250).max() < 55


def test_np_random_is_the_prompts_stream_and_tells_its_seed(exact: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, **exact).unwrapped
    env.reset(seed=12)
    assert env.np_random_seed == 12
    env.np_random.integers(4)  # a draw from outside is a draw from the stream
    prompts = np.random.default_rng(12).integers(4, size=3)
    assert env.reset()[1]["prompt_index"] == prompts[2]


# ---- options


@pytest.mark.parametrize("given", [["east"], ("east",), "east"])
def test_prompt_by_option(exact: dict[str, Any], given: Any) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, **exact)
    observation, info = env.reset(seed=0, options={"prompts": given})
    assert (info["prompt"], info["prompt_index"]) == ("east", 1)
    np.testing.assert_array_equal(observation["prompt_embedding"], [[0, 1, 0, 0]])


def test_prompt_from_elsewhere_has_index_minus_one(exact: dict[str, Any]) -> None:
    _, info = gymnasium.make(diffusion_gym.ENV_ID, **exact).reset(seed=0, options={"prompts": ["anywhere"]})
    assert (info["prompt"], info["prompt_index"]) == ("anywhere", -1)


def test_options_are_not_written_to(exact: dict[str, Any]) -> None:
    options = {"prompts": ["east"]}
    gymnasium.make(diffusion_gym.ENV_ID, **exact).reset(seed=0, options=options)
    assert options == {"prompts": ["east"]}


def test_models_own_prompts_are_the_default(exact: dict[str, Any]) -> None:
    del exact["prompts"]
    assert gymnasium.make(diffusion_gym.ENV_ID, **exact).reset(seed=0)[1]["prompt"] == "anywhere"


def test_tiny_pipelines_default_prompts_are_the_animals(tiny_sd: str) -> None:
    _, info = gymnasium.make(diffusion_gym.ENV_ID, model=tiny_sd).reset(seed=0)
    assert info["prompt"] == diffusion_gym.resolve_prompts("animals")[info["prompt_index"]]


# ---- memory


def test_observations_share_no_memory(env: gymnasium.Env) -> None:
    """With each other, with the action, and with what the environment goes on with."""
    first, _ = env.reset(seed=0)
    kept = copy.deepcopy(first)
    action = first["latent"] * np.float32(0.5)
    second, *_ = env.step(action)
    arrays = [*first.values(), *second.values(), action]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    second["latent"][:] = 0.25
    second["prompt_embedding"][:] = 0.25
    action[:] = 0.25
    third, *_ = env.step(kept["latent"])
    np.testing.assert_array_equal(third["prompt_embedding"], kept["prompt_embedding"])
    _assert_equal(first, kept)


def test_a_changed_observation_does_not_change_the_picture(tiny_sd: str) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, model=tiny_sd, num_inference_steps=3, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    before = env.render()
    observation["latent"][:] = 0
    np.testing.assert_array_equal(env.render(), before)


def test_a_changed_action_does_not_change_the_latent(exact: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, render_mode="rgb_array", **exact)
    env.reset(seed=0)
    action = np.ones((2, 1, 1), dtype=np.float32)
    env.step(action)
    before = env.render()
    action[:] = 5
    np.testing.assert_array_equal(env.render(), before)


# ---- rendering


def test_render_shows_the_present_latent(each_model: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, render_mode="rgb_array", **each_model)
    model = load_model(each_model["model"])
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        expected = model.decode(torch.from_numpy(observation["latent"])[None])[0].permute(1, 2, 0).numpy()
        picture = env.render()
        assert isinstance(picture, np.ndarray)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, expected)
        observation, _, _, _, info = env.step(observation["latent"] * np.float32(0.5))
    np.testing.assert_array_equal(env.render(), info["image"])


def test_render_without_a_mode_warns_and_shows_nothing(exact: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, **exact).unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None


# ---- copies


def test_pickled_in_the_middle_of_an_episode_it_goes_on_alike(each_model: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, **each_model)
    observation, _ = env.reset(seed=13)
    env.step(observation["latent"])
    twin = cloudpickle.loads(cloudpickle.dumps(env))
    assert twin.unwrapped.mdp.model is env.unwrapped.mdp.model
    for _ in range(2):
        _assert_equal(env.step(observation["latent"]), twin.step(observation["latent"]))
    _assert_equal(_episode(env), _episode(twin))


def test_spec_pickles_and_makes_the_environment_again(each_model: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, **each_model)
    spec = cloudpickle.loads(cloudpickle.dumps(env.spec))
    _assert_equal(_episode(gymnasium.make(spec), seed=14), _episode(env, seed=14))


def test_model_object_is_shared_not_copied(exact: dict[str, Any]) -> None:
    """Gymnasium deep-copies the arguments of ``make`` once a wrapper; a model is worth gigabytes."""
    model = load_model("exact-mixture")
    env = gymnasium.make(diffusion_gym.ENV_ID, **exact | {"model": model})
    assert env.unwrapped.mdp.model is model
    assert env.spec.kwargs["model"] is model


def test_unimported_package_by_module_name(exact: dict[str, Any]) -> None:
    env = gymnasium.make("diffusion_gym:DiffusionDenoise-v0", **exact)
    assert env.spec.id == diffusion_gym.ENV_ID


def test_torch_actions_are_taken(exact: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, **exact).unwrapped
    env.reset(seed=0)
    observation, *_ = env.step(torch.full((2, 1, 1), 0.5, requires_grad=True))
    np.testing.assert_array_equal(observation["latent"], np.full((2, 1, 1), 0.5, dtype=np.float32))


def test_bounds_themselves_are_inside(exact: dict[str, Any]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, **exact)
    env.reset(seed=0)
    observation, *_ = env.step(np.array([-1e3, 1e3], dtype=np.float32).reshape(2, 1, 1))
    assert not math.isnan(observation["latent"].sum())
