"""The vector environment against single ones: Gymnasium's SyncVectorEnv of them, in every autoreset mode."""

import itertools
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import diffusion_gym
from diffusion_gym import load_model
from diffusion_gym.envs.vector import DenoiseVectorEnv

MODES = list(AutoresetMode)
N = 3


def _vector(arguments: dict[str, Any], num_envs: int = N, **more: Any) -> VectorEnv:
    return gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=num_envs, **{**arguments, **more})


def _sync(arguments: dict[str, Any], mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: gymnasium.make(diffusion_gym.ENV_ID, **arguments)] * N, autoreset_mode=mode)


def _actions(observation: dict[str, np.ndarray]) -> np.ndarray:
    return (observation["latent"] * 0.5).astype(np.float32)


def _assert_observations_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def _assert_infos_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Same keys and masks, and the same values where a mask holds; pictures to one level (decoded in other batches)."""
    assert set(ours) == set(theirs)
    for name in ours:
        if name.startswith("_"):
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        elif name == "metadata":  # Gymnasium takes dictionaries apart, but records may differ in their fields
            assert [type(row) for row in ours[name]] == [dict] * len(ours[name])
        elif isinstance(theirs[name], dict):
            _assert_infos_equal(ours[name], theirs[name])
        else:
            mask = theirs[f"_{name}"]
            assert ours[name].dtype == theirs[name].dtype, name
            assert ours[name].shape == theirs[name].shape, name
            if name == "final_obs":
                for mine, other in zip(ours[name][mask], theirs[name][mask], strict=True):
                    _assert_observations_equal(mine, other)
                assert all(row is None for row in ours[name][~mask])
            elif name == "image":
                assert np.abs(ours[name][mask].astype(int) - theirs[name][mask]).max() <= 1
            else:
                np.testing.assert_array_equal(ours[name][mask], theirs[name][mask], err_msg=name)


def _assert_steps_equal(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    _assert_observations_equal(ours[0], theirs[0])
    # The decoder sees another batch, so rewards agree to rounding; a picture one level off moves a JPEG by some bytes.
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6, atol=0.01 if "image" in _flat(theirs[4]) else 0)
    np.testing.assert_array_equal(ours[2], theirs[2])
    np.testing.assert_array_equal(ours[3], theirs[3])
    _assert_infos_equal(ours[4], theirs[4])


def _flat(info: dict[str, Any]) -> set[str]:
    return set(info) | set(info.get("final_info", {}))


# ---- against SyncVectorEnv


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", MODES)
def test_a_combined_rewards_parts_are_in_info(exact: dict[str, Any], mode: AutoresetMode, output: str) -> None:
    """By name, with masks as Gymnasium's, where an episode ends, also out of step; weighted they add up to the reward.

    A reward of one part has none.
    """
    arguments = {**exact, "reward": "exact-linear:2,exact-quadratic:0.5"}
    ours, theirs = _vector(arguments, autoreset_mode=mode, output=output), _sync(arguments, mode)
    action = np.zeros((N, 2, 1, 1), np.float32) + np.arange(N, dtype=np.float32)[:, None, None, None]
    given = torch.from_numpy(action) if output == "torch" else action
    for env in (ours, theirs):
        env.reset(seed=6)
    seen = 0
    for step in range(exact["num_inference_steps"]):
        mine, other = ours.step(given), theirs.step(action)
        infos = [info.get("final_info", info) for info in (mine[4], other[4])]
        assert ("rewards" in infos[0]) == ("rewards" in infos[1])
        if "rewards" in infos[0]:
            parts, expected = (info["rewards"] for info in infos)
            assert set(parts) == set(expected)
            np.testing.assert_array_equal(infos[0]["_rewards"], infos[1]["_rewards"])
            for name in ("exact-linear", "exact-quadratic"):
                np.testing.assert_array_equal(parts[f"_{name}"], expected[f"_{name}"])
                assert isinstance(parts[name], torch.Tensor if output == "torch" else np.ndarray)
                np.testing.assert_allclose(parts[name], expected[name], rtol=1e-6)
            np.testing.assert_allclose(2 * parts["exact-linear"] + 0.5 * parts["exact-quadratic"], mine[1], rtol=1e-6)
            seen += int(infos[0]["_rewards"].sum())
        if step == 0:
            for env in (ours, theirs):
                env.reset(seed=[None, 77, None], options={"reset_mask": np.array([False, True, False])})
    assert seen == N - 1
    alone = _vector(exact, autoreset_mode=mode)
    alone.reset(seed=6)
    assert all("rewards" not in _flat(alone.step(action)[4]) for _ in range(exact["num_inference_steps"]))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_like_gymnasiums(each_model: dict[str, Any], mode: AutoresetMode) -> None:
    """Three episodes in step."""
    ours, theirs = _vector(each_model, autoreset_mode=mode), _sync(each_model, mode)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is mode
    (observation, info), (expected, expected_info) = ours.reset(seed=5), theirs.reset(seed=5)
    _assert_observations_equal(observation, expected)
    _assert_infos_equal(info, expected_info)
    ended = 0
    for _ in range(11):
        mine, other = ours.step(_actions(observation)), theirs.step(_actions(observation))
        _assert_steps_equal(mine, other)
        observation, ended = mine[0], ended + int(mine[2].sum())
    assert ended >= 2 * N


@pytest.mark.parametrize("mode", MODES)
def test_staggered_episodes_like_gymnasiums(each_model: dict[str, Any], mode: AutoresetMode) -> None:
    """A partial reset in mid-episode puts the environments out of step; every later step still agrees."""
    ours, theirs = _vector(each_model, autoreset_mode=mode), _sync(each_model, mode)
    observation, _ = ours.reset(seed=6)
    theirs.reset(seed=6)
    mine, other = ours.step(_actions(observation)), theirs.step(_actions(observation))
    mask = np.array([False, True, False])
    # Gymnasium takes the mask out of the options it is given.
    observation, info = ours.reset(seed=[None, 77, None], options={"reset_mask": mask.copy()})
    expected, expected_info = theirs.reset(seed=[None, 77, None], options={"reset_mask": mask.copy()})
    _assert_observations_equal(observation, expected)
    _assert_infos_equal(info, expected_info)
    finished_together = []
    for _ in range(9):
        mine, other = ours.step(_actions(observation)), theirs.step(_actions(observation))
        _assert_steps_equal(mine, other)
        observation, dones = mine[0], mine[2]
        finished_together.append(dones.all())
        if mode is AutoresetMode.DISABLED and dones.any():
            observation, info = ours.reset(options={"reset_mask": dones.copy()})
            expected, expected_info = theirs.reset(options={"reset_mask": dones.copy()})
            _assert_observations_equal(observation, expected)
            _assert_infos_equal(info, expected_info)
    assert not any(finished_together)


def test_next_step_mode_ignores_the_actions_of_restarting_environments(exact: dict[str, Any]) -> None:
    """What they are given is no action, so it may be anything of the right shape."""
    env = _vector(exact, autoreset_mode=AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    env.reset(options={"reset_mask": np.array([True, False, False])})
    zeros = np.zeros((N, 2, 1, 1), dtype=np.float32)
    env.step(zeros)
    env.reset(options={"reset_mask": np.array([True, False, False])})
    env.step(zeros)
    *_, terminated, _, _ = env.step(zeros)
    assert terminated.tolist() == [False, True, True]
    actions = np.full((N, 2, 1, 1), np.nan, dtype=np.float32)
    actions[0] = 0.25
    observation, rewards, terminated, _, info = env.step(actions)
    assert np.isfinite(observation["latent"]).all()
    assert observation["latent"][0].ravel().tolist() == [0.25, 0.25]
    assert terminated.tolist() == [True, False, False]
    assert info["step_index"].tolist() == [3, 0, 0]
    assert rewards[0] == pytest.approx(0.25, abs=1.3e-4)
    assert rewards[1:].tolist() == [0.0, 0.0]


# ---- seeding


def test_environment_i_is_the_single_one_seeded_with_s_plus_i(each_model: dict[str, Any]) -> None:
    """To the bit in the initial latent and the prompt, and diffusers draws the same noise."""
    observation, info = _vector(each_model).reset(seed=100)
    single = gymnasium.make(diffusion_gym.ENV_ID, **each_model)
    shape = (1, *load_model(each_model["model"]).latent_shape)
    for i in range(N):
        expected, expected_info = single.reset(seed=100 + i)
        for name, value in expected.items():
            np.testing.assert_array_equal(observation[name][i], value)
        assert info["prompt"][i] == expected_info["prompt"]
        noise = randn_tensor(shape, generator=torch.Generator().manual_seed(100 + i), device=torch.device("cpu"))
        np.testing.assert_array_equal(observation["latent"][i], noise[0].numpy())


@pytest.mark.parametrize("seeds", [[5, 50, 500], (5, 50, 500), np.array([5, 50, 500])])
def test_a_seed_an_environment(exact: dict[str, Any], seeds: Any) -> None:
    observation, _ = _vector(exact).reset(seed=seeds)
    for row, seed in enumerate((5, 50, 500)):
        expected = torch.randn(2, 1, 1, generator=torch.Generator().manual_seed(seed))
        np.testing.assert_array_equal(observation["latent"][row], expected.numpy())


def test_the_number_of_environments_changes_nothing(each_model: dict[str, Any]) -> None:
    """Row i of 5, of 3, and alone: the same start bit for bit, the same end to rounding."""
    finals = {}
    for n in (1, 3, 5):
        env = _vector(each_model, num_envs=n, autoreset_mode=AutoresetMode.DISABLED)
        observation, _ = env.reset(seed=20)
        for _ in range(3):
            observation, rewards, *_ = env.step(_actions(observation))
        finals[n] = observation["latent"], rewards
    for n in (1, 3):
        np.testing.assert_array_equal(finals[n][0], finals[5][0][:n])
        np.testing.assert_allclose(finals[n][1], finals[5][1][:n], rtol=1e-6, atol=0.01)


def test_same_seed_same_rollout_and_the_streams_go_on(each_model: dict[str, Any]) -> None:
    one, two = _vector(each_model), _vector(each_model)
    (first, _), (again, _) = one.reset(seed=1), two.reset(seed=1)
    _assert_observations_equal(first, again)
    for _ in range(9):
        a, b = one.step(_actions(first)), two.step(_actions(first))
        _assert_observations_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    (later, _), (later_again, _) = one.reset(), two.reset()
    _assert_observations_equal(later, later_again)
    assert not np.array_equal(later["latent"], first["latent"])


def test_rows_have_streams_of_their_own(exact: dict[str, Any]) -> None:
    """Resetting one environment more often than another moves no other's stream."""
    one, two = (_vector(exact, autoreset_mode=AutoresetMode.DISABLED) for _ in range(2))
    one.reset(seed=2)
    two.reset(seed=2)
    for _ in range(3):
        one.reset(options={"reset_mask": np.array([False, True, False])})
    (a, a_info), (b, b_info) = one.reset(), two.reset()
    for row in (0, 2):
        np.testing.assert_array_equal(a["latent"][row], b["latent"][row])
        assert a_info["prompt"][row] == b_info["prompt"][row]
    assert not np.array_equal(a["latent"][1], b["latent"][1])


def test_unseeded_rows_differ(exact: dict[str, Any]) -> None:
    latents = _vector(exact).reset()[0]["latent"]
    assert len({row.tobytes() for row in latents}) == N


# ---- options


def test_prompts_by_option(exact: dict[str, Any]) -> None:
    observation, info = _vector(exact).reset(seed=3, options={"prompts": ["west", "anywhere", "north"]})
    assert info["prompt"].tolist() == ["west", "anywhere", "north"]
    assert info["prompt_index"].tolist() == [3, -1, 0]
    expected = [[[0, 0, 0, 1]], [[1, 1, 1, 1]], [[1, 0, 0, 0]]]
    np.testing.assert_array_equal(observation["prompt_embedding"], expected)


def test_prompts_of_a_partial_reset_are_for_the_reset_rows(exact: dict[str, Any]) -> None:
    env = _vector(exact, autoreset_mode=AutoresetMode.DISABLED)
    _, before = env.reset(seed=3)
    mask = np.array([True, False, True])
    _, info = env.reset(options={"reset_mask": mask, "prompts": ["west", "south"]})
    assert info["prompt"].tolist() == ["west", before["prompt"][1], "south"]
    np.testing.assert_array_equal(info["_prompt"], mask)


def test_partial_reset_leaves_the_other_rows(exact: dict[str, Any]) -> None:
    env = _vector(exact, autoreset_mode=AutoresetMode.DISABLED)
    observation, _ = env.reset(seed=4)
    before, *_ = env.step(_actions(observation))
    after, info = env.reset(options={"reset_mask": np.array([False, False, True])})
    assert info["step_index"].tolist() == [1, 1, 0]
    for name in before:
        np.testing.assert_array_equal(before[name][:2], after[name][:2])
    assert not np.array_equal(before["latent"][2], after["latent"][2])


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_a_mask_may_be_a_tensor(exact: dict[str, Any], output: str) -> None:
    """``terminated | truncated`` is one with torch output; the masks in ``info`` stay NumPy."""
    env = _vector(exact, autoreset_mode=AutoresetMode.DISABLED, output=output)
    env.reset(seed=4)
    env.step(np.zeros((N, 2, 1, 1), np.float32))
    env.reset(options={"reset_mask": np.array([True, False, False])})
    for _ in range(2):
        *_, terminated, truncated, _ = env.step(np.zeros((N, 2, 1, 1), np.float32))
    dones = torch.as_tensor(terminated | truncated)
    assert dones.tolist() == [False, True, True]
    _, info = env.reset(options={"reset_mask": dones})
    assert info["step_index"].tolist() == [2, 0, 0]
    assert isinstance(info["_step_index"], np.ndarray)
    assert info["_step_index"].tolist() == [False, True, True]


# ---- output


@pytest.mark.parametrize("mode", MODES)
def test_torch_and_numpy_output_agree(each_model: dict[str, Any], mode: AutoresetMode) -> None:
    arrays = _vector(each_model, output="numpy", autoreset_mode=mode)
    tensors = _vector(each_model, output="torch", autoreset_mode=mode)
    (a, _), (t, _) = arrays.reset(seed=7), tensors.reset(seed=7)
    for step in range(3 if mode is AutoresetMode.DISABLED else 8):
        for name, value in t.items():
            assert isinstance(value, torch.Tensor)
            assert isinstance(a[name], np.ndarray)
            np.testing.assert_array_equal(value.numpy(), a[name], err_msg=f"step {step}, {name}")
        a, *a_rest, a_info = arrays.step(_actions(a))
        t, *t_rest, t_info = tensors.step(t["latent"] * 0.5)
        for array, tensor in zip(a_rest, t_rest, strict=True):
            assert isinstance(tensor, torch.Tensor)
            assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(tensor.numpy(), array)
        assert set(a_info) == set(t_info)
        images = (t_info.get("final_info") or t_info).get("image")
        if images is not None:
            expected = (a_info.get("final_info") or a_info)["image"]
            np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), expected)


def test_dtypes(each_model: dict[str, Any]) -> None:
    env = _vector(each_model)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    _, rewards, terminated, truncated, _ = env.step(_actions(observation))
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float32, np.bool_, np.bool_)


@pytest.mark.parametrize("mode", MODES)
def test_numpy_results_share_no_memory(each_model: dict[str, Any], mode: AutoresetMode) -> None:
    env = _vector(each_model, autoreset_mode=mode)
    observation, _ = env.reset(seed=0)
    action = _actions(observation)
    results = [{"latent": action}, observation]
    for _ in range(3):
        step = env.step(action)
        results += [
            step[0],
            dict(enumerate(step[1:4])),
            {k: v for k, v in step[4].items() if isinstance(v, np.ndarray)},
        ]
    arrays = [value for result in results for value in result.values()]
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))


def test_torch_observations_stay_as_they_were(exact: dict[str, Any]) -> None:
    """A tensor that was handed out is never written to by later steps and resets."""
    env = _vector(exact, output="torch", autoreset_mode=AutoresetMode.SAME_STEP)
    observation, _ = env.reset(seed=0)
    kept = {name: value.clone() for name, value in observation.items()}
    action = observation["latent"] * 0.5
    env.step(action)
    action.fill_(9.0)
    for _ in range(4):
        later, *_ = env.step(torch.zeros(N, 2, 1, 1))
    env.reset(seed=1)
    assert all(torch.equal(observation[name], kept[name]) for name in kept)
    assert not torch.equal(later["latent"], kept["latent"])


# ---- rewards


def test_rewards_come_at_the_last_step_and_score_agrees_to_the_bit(each_model: dict[str, Any]) -> None:
    env = _vector(each_model, output="torch", autoreset_mode=AutoresetMode.DISABLED)
    observation, info = env.reset(seed=8)
    for step in range(3):
        observation, rewards, terminated, _, info = env.step(observation["latent"] * 0.5)
        assert terminated.tolist() == [step == 2] * N
        assert (rewards != 0).tolist() == [step == 2] * N
    scored = env.unwrapped.score(observation["latent"], info["prompt"].tolist())
    assert torch.equal(scored.rewards, rewards)
    assert torch.equal(scored.images, info["image"])


def test_rewards_are_asked_for_ended_rows_alone(exact: dict[str, Any]) -> None:
    asked: list[list[str]] = []

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        asked.append(list(prompts))
        return torch.arange(1.0, len(prompts) + 1)

    env = _vector(exact, reward=reward, autoreset_mode=AutoresetMode.DISABLED)
    observation, _ = env.reset(seed=9)
    env.step(_actions(observation))
    _, info = env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(_actions(observation))
    assert asked == []
    _, rewards, terminated, _, info = env.step(_actions(observation))
    assert terminated.tolist() == [True, False, True]
    assert rewards.tolist() == [1.0, 0.0, 2.0]
    assert asked == [[info["prompt"][0], info["prompt"][2]]]
    assert info["_image"].tolist() == [True, False, True]
    assert not info["image"][1].any()


# ---- the rest


def test_spaces_are_batched_single_ones(each_model: dict[str, Any]) -> None:
    env, single = _vector(each_model), gymnasium.make(diffusion_gym.ENV_ID, **each_model)
    assert env.single_observation_space == single.observation_space
    assert env.single_action_space == single.action_space
    assert env.action_space.shape == (N, *single.action_space.shape)
    assert env.num_envs == N
    assert env.unwrapped.num_inference_steps == single.unwrapped.num_inference_steps == 3


@pytest.mark.parametrize("mode", MODES)
def test_autoreset_mode_by_value(exact: dict[str, Any], mode: AutoresetMode) -> None:
    env = _vector(exact, autoreset_mode=mode.value)
    assert env.metadata["autoreset_mode"] is mode
    assert "autoreset_mode" not in DenoiseVectorEnv.metadata, "one environment's mode is not the class's"


def test_render(each_model: dict[str, Any]) -> None:
    env = _vector(each_model, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    pictures = env.render()
    expected = load_model(each_model["model"]).decode(torch.from_numpy(observation["latent"]))
    assert isinstance(pictures, tuple)
    assert len(pictures) == N
    np.testing.assert_array_equal(np.stack(pictures), expected.permute(0, 2, 3, 1).numpy())
    assert _vector(each_model).render() is None


def test_pickled_in_the_middle_of_an_episode_it_goes_on_alike(each_model: dict[str, Any]) -> None:
    env = _vector(each_model)
    observation, _ = env.reset(seed=10)
    env.step(_actions(observation))
    twin = cloudpickle.loads(cloudpickle.dumps(env))
    for _ in range(5):
        a, b = env.step(_actions(observation)), twin.step(_actions(observation))
        _assert_observations_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_spec_makes_the_environment_again(exact: dict[str, Any]) -> None:
    env = _vector(exact)
    spec = cloudpickle.loads(cloudpickle.dumps(env.spec))
    twin = gymnasium.make_vec(spec)
    assert twin.num_envs == N
    _assert_observations_equal(env.reset(seed=1)[0], twin.reset(seed=1)[0])


def test_sharing_gives_independent_environments_on_the_same_model(exact: dict[str, Any]) -> None:
    env = _vector(exact, output="torch", autoreset_mode=AutoresetMode.DISABLED).unwrapped
    observation, _ = env.reset(seed=11)
    other = DenoiseVectorEnv.sharing(env.mdp, 2)
    assert other.mdp.model is env.mdp.model
    assert other.mdp.reward is env.mdp.reward
    assert (other.num_envs, other.num_inference_steps, other.output) == (2, 3, "torch")
    assert other.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    first, _ = other.reset(seed=11)
    assert torch.equal(first["latent"], observation["latent"][:2])
    other.step(torch.zeros(2, 2, 1, 1))
    assert torch.equal(env.mdp.latents, observation["latent"])
