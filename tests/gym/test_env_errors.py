"""Every mistake with actions, resets and their order: what was expected, what came, what to do."""

import re
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

import diffusion_gym

SHAPE = (2, 1, 1)


@pytest.fixture
def single(exact: dict[str, Any]) -> gymnasium.Env:
    """Return the bare single environment: ``make``'s wrappers would catch some mistakes first."""
    return gymnasium.make(diffusion_gym.ENV_ID, **exact).unwrapped


@pytest.fixture
def vector(exact: dict[str, Any]) -> VectorEnv:
    """Return three environments without autoreset."""
    return gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=3, autoreset_mode=AutoresetMode.DISABLED, **exact)


@pytest.fixture(params=["single", "vector"])
def each(request: pytest.FixtureRequest, single: gymnasium.Env, vector: VectorEnv) -> Any:
    """Return either environment."""
    return single if request.param == "single" else vector


def _action(env: Any, value: float = 0.5) -> np.ndarray:
    return np.full(env.action_space.shape, value, dtype=np.float32)


# ---- actions


@pytest.mark.parametrize("shape", [(2, 1), (2, 1, 2), (3, 1, 1), (2,), (), (1, 2, 1, 1)])
def test_single_action_of_a_wrong_shape(single: gymnasium.Env, shape: tuple[int, ...]) -> None:
    single.reset(seed=0)
    came = re.escape(str((1, *shape)))
    with pytest.raises(ValueError, match=rf"action \(next latent\) must have shape \(2, 1, 1\).*; got {came}"):
        single.step(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("shape", [(2, 2, 1, 1), (3, 2, 1), (2, 1, 1), (4, 2, 1, 1)])
def test_vector_actions_of_a_wrong_shape(vector: VectorEnv, shape: tuple[int, ...]) -> None:
    vector.reset(seed=0)
    message = rf"must have shape \(2, 1, 1\) per environment, together \(3, 2, 1, 1\); got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        vector.step(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("library", [np, torch])
def test_action_of_a_wrong_dtype(each: Any, dtype: str, library: Any) -> None:
    each.reset(seed=0)
    with pytest.raises(TypeError, match=rf"must have dtype float32, got (torch\.)?{dtype}"):
        each.step(library.zeros(each.action_space.shape, dtype=getattr(library, dtype)))


@pytest.mark.parametrize("action", [None, [[[0.0]], [[0.0]]], 0.0, "left"])
def test_action_that_is_no_array(each: Any, action: Any) -> None:
    each.reset(seed=0)
    with pytest.raises(TypeError, match=f"must be an array or tensor, got {type(action).__name__}"):
        each.step(action)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.nan, "holds NaN"),
        (np.inf, r"lies outside \[-1000, 1000\]"),
        (-np.inf, r"lies outside \[-1000, 1000\]"),
        (1000.1, r"lies outside \[-1000, 1000\]"),
        (-1e30, r"lies outside \[-1000, 1000\]"),
    ],
)
def test_one_bad_value_is_refused_not_clipped(each: Any, value: float, problem: str) -> None:
    """And nothing has moved: a good action goes on from where the bad one was refused."""
    each.reset(seed=0)
    action = _action(each)
    action.flat[-1] = value
    told = rf"action \(next latent\) {problem}\. It is refused.* Before the first update '.*' itself .*float32"
    with pytest.raises(ValueError, match=told):
        each.step(action)
    after, *_, info = each.step(_action(each))
    assert np.all(info["step_index"] == 1)
    assert np.all(after["latent"] == 0.5)


def test_read_only_actions_are_taken_without_a_warning(each: Any) -> None:
    """JAX and memory maps hand out arrays that cannot be written to."""
    each.reset(seed=0)
    action = _action(each)
    action.flags.writeable = False
    torch.set_warn_always(True)  # torch says it once a process otherwise, and another test may have heard it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            each.step(action)
    finally:
        torch.set_warn_always(False)


# ---- order of calls


def test_step_before_reset(single: gymnasium.Env, vector: VectorEnv) -> None:
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step\(\)"):
        single.step(_action(single))
    with pytest.raises(RuntimeError, match=r"never reset; call reset\(\) before step\(\)"):
        vector.step(_action(vector))


def test_step_after_the_end(single: gymnasium.Env) -> None:
    single.reset(seed=0)
    for _ in range(3):
        single.step(_action(single))
    with pytest.raises(RuntimeError, match=r"the episode is over.*call reset\(\) before step\(\)"):
        single.step(_action(single))
    single.reset()
    single.step(_action(single))


def test_vector_step_after_some_ended(vector: VectorEnv) -> None:
    """The message names the environments and the reset that helps."""
    vector.reset(seed=0)
    vector.step(_action(vector))
    vector.reset(options={"reset_mask": np.array([False, True, False])})
    for _ in range(2):
        vector.step(_action(vector))
    with pytest.raises(
        RuntimeError, match=r"environments \[0, 2\] are over; call reset\(\), or reset\(options=\{'reset_mask'"
    ):
        vector.step(_action(vector))
    _, info = vector.reset(options={"reset_mask": np.array([True, False, True])})
    assert info["step_index"].tolist() == [0, 2, 0]
    vector.step(_action(vector))


# ---- reset


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "3"])
def test_bad_seed(single: gymnasium.Env, seed: Any) -> None:
    with pytest.raises(ValueError, match=rf"seed must be an integer in \[0, 2\^63\), got {re.escape(repr(seed))}"):
        single.reset(seed=seed)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "3"])
def test_bad_seed_of_a_vector(vector: VectorEnv, seed: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"seed must be .*integer.*got {re.escape(repr(seed))}"):
        vector.reset(seed=seed)


@pytest.mark.parametrize("seeds", [[1, 2], [1, 2, 3, 4], []])
def test_wrong_number_of_seeds(vector: VectorEnv, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=f"seed must be one integer or 3 of them, got {len(seeds)}"):
        vector.reset(seed=seeds)


def test_numpy_integers_are_seeds(each: Any) -> None:
    expected, _ = each.reset(seed=3)
    observation, _ = each.reset(seed=np.int64(3))
    np.testing.assert_array_equal(observation["latent"], expected["latent"])


def test_unknown_option(each: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown reset option 'prompt'; expected one of \['prompts'"):
        each.reset(options={"prompt": ["north"]})


def test_options_that_are_no_mapping(each: Any) -> None:
    with pytest.raises(TypeError, match=r"options must be .*got int"):
        each.reset(options=3)


def test_wrong_number_of_prompts(each: Any) -> None:
    n = getattr(each, "num_envs", 1)
    with pytest.raises(ValueError, match=rf"options\['prompts'\] must hold {n} texts, one for each environment, got 2"):
        each.reset(options={"prompts": ["north", "east"]})


def test_prompts_that_are_no_list(each: Any) -> None:
    with pytest.raises(TypeError, match=r"options\['prompts'\] must .*got int"):
        each.reset(options={"prompts": 3})


def test_prompt_that_is_no_text(each: Any) -> None:
    with pytest.raises(TypeError, match=r"options\['prompts'\]\[0\] must be text, got int"):
        each.reset(options={"prompts": [3] * getattr(each, "num_envs", 1)})


def test_one_text_for_several_environments_is_not_spelled_out(tiny_sd: str) -> None:
    """ "cat" is a sequence of three texts to Python, and never what three environments were meant to draw."""
    env = gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=3, model=tiny_sd)
    with pytest.raises((TypeError, ValueError), match=r"options\['prompts'\] must .*'cat'"):
        env.reset(options={"prompts": "cat"})


@pytest.mark.parametrize("prompts", [["nowhere"], [3]])
def test_a_refused_reset_leaves_the_episode_as_it_was(each: Any, prompts: list[Any]) -> None:
    """A prompt the model cannot encode, or none at all, is refused before a stream or a latent has moved."""
    n = getattr(each, "num_envs", 1)
    each.reset(seed=0)
    each.reset()
    expected = each.step(_action(each))
    expected_next, _ = each.reset()
    each.reset(seed=0)
    each.reset()
    with pytest.raises((TypeError, ValueError), match=r"nowhere|must be text"):
        each.reset(options={"prompts": (["north"] * n)[:-1] + prompts})
    actual = each.step(_action(each))
    np.testing.assert_array_equal(actual[0]["latent"], expected[0]["latent"])
    np.testing.assert_array_equal(actual[0]["prompt_embedding"], expected[0]["prompt_embedding"])
    np.testing.assert_array_equal(actual[4]["step_index"], expected[4]["step_index"])
    np.testing.assert_array_equal(each.reset()[0]["latent"], expected_next["latent"])


@pytest.mark.parametrize(
    "mask",
    [
        [True, False, False],
        np.array([1, 0, 0]),
        np.array([True, False]),
        np.zeros(3, dtype=bool),
        np.ones((3, 1), dtype=bool),
        torch.tensor([1, 0, 0]),
        torch.tensor([True, False]),
        torch.zeros(3, dtype=torch.bool),
    ],
)
def test_bad_reset_mask(vector: VectorEnv, mask: Any) -> None:
    vector.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"'reset_mask'\] must be a bool array or tensor of shape \(3,\) with at least one True, got"
    ):
        vector.reset(options={"reset_mask": mask})


def test_first_reset_must_start_all(vector: VectorEnv) -> None:
    with pytest.raises(ValueError, match="first reset must start all environments; give no reset_mask"):
        vector.reset(options={"reset_mask": np.array([True, False, False])})
