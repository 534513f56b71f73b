"""Rewards with a third argument, the prompts' metadata; what they need is checked before anything is sampled."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

import diffusion_gym
from diffusion_gym.rewards import (
    RewardError,
    WeightedSum,
    differentiable,
    evaluate_reward,
    from_trl,
    resolve_reward,
    reward_pixels,
    score_images,
)
from diffusion_gym.rewards.wrappers import TerminalReward, VectorTerminalReward

IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
TEXTS, ROWS = ["north", "north"], [{"score": 2.0}, {"score": 5.0}]
RECORDS = [{"prompt": text, **row} for text, row in zip(TEXTS, ROWS, strict=True)]


def third(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return the metadata's score, and change what was given."""
    scores = [row["score"] for row in metadata]
    for row in metadata:
        row["score"] = 0  # type: ignore[index]
    return torch.tensor(scores)


def other_name(images: Tensor, prompts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Take them in the third place, by any name."""
    return third(images, prompts, rows)


def by_name(
    images: Tensor, prompts: Sequence[str], power: int = 1, *, metadata: Sequence[Mapping[str, Any]] = ()
) -> Tensor:
    """Take them by name."""
    return third(images, prompts, metadata) ** power


def two(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Take none."""
    return torch.tensor([1.0] * len(prompts))


def squared(images: Tensor, prompts: Sequence[str], power: int = 2) -> Tensor:
    """Take none, for the third parameter has a default of its own."""
    return torch.tensor([2.0**power] * len(prompts))


class Named:
    """A reward with a name that says what it needs."""

    name = "needy"
    required_metadata = ("score",)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the metadata's score."""
        return third(images, prompts, metadata)


class Even(Named):
    """A reward that looks at the values."""

    name = "even"
    required_metadata = ()

    def check_metadata(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Refuse a score that is not even."""
        if metadata.get("score", 0) % 2:
            raise ValueError(f"expected an even score, got {metadata['score']}")


class Module(torch.nn.Module):
    """A network as a reward: its ``forward`` says what it takes."""

    def forward(
        self,
        images: Tensor,
        prompts: Sequence[str],
        power: int = 1,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Tensor:
        """Return the metadata's score."""
        assert metadata is not None
        return third(images, prompts, metadata) ** power


class Two(torch.nn.Module):
    """A network that takes no metadata."""

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return ones."""
        return two(images, prompts)


class Compiled(torch.nn.Module):
    """Wraps a module as torch.compile does, without the seconds that its import takes."""

    def __init__(self) -> None:
        super().__init__()
        self._orig_mod = Two()

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """Call the module."""
        return self._orig_mod(*given, **named)


def make(reward: Any, prompts: Any, **more: Any) -> gymnasium.Env:
    """Make an environment of one step."""
    return gymnasium.make(
        diffusion_gym.ENV_ID, model="exact-mixture", reward=reward, prompts=prompts, num_inference_steps=1, **more
    )


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (third, [2, 5]),
        (other_name, [2, 5]),
        (by_name, [2, 5]),
        (two, [1, 1]),
        (squared, [4, 4]),
        (lambda *anything: third(*anything), [2, 5]),  # a decorator without functools.wraps
        (lambda *anything, **more: third(*anything, **more), [2, 5]),
        (lambda images, prompts, *rows: third(images, prompts, *rows), [2, 5]),
        (lambda images, prompts, **more: third(images, prompts, **more), [2, 5]),
        (lambda images, prompts, scale=2.0, *more: torch.full((2,), scale + len(more)), [2, 2]),
        (lambda images, prompts, scale=2.0, **more: scale * third(images, prompts, **more), [4, 10]),
        (partial(lambda *_, **more: torch.tensor(more["metadata"]), metadata=[8.0, 9.0]), [8, 9]),
        (Module(), [2, 5]),
        (partial(Module(), power=2), [4, 25]),
        (Two(), [1, 1]),
        (Compiled(), [1, 1]),
        (partial(by_name, power=2), [4, 25]),
        (partial(lambda images, prompts, metadata: torch.tensor(metadata), metadata=[8.0, 9.0]), [8, 9]),  # its own
        (Named(), [2, 5]),
        ({third: 10.0, two: 1.0}, [21, 51]),
        (WeightedSum({WeightedSum({Named(): 2.0}): 1.0, two: -1.0}), [3, 9]),
    ],
)
def test_who_takes_metadata_gets_them(reward: Any, expected: list[float]) -> None:
    resolved, rows = resolve_reward(reward), [dict(row) for row in ROWS]
    assert evaluate_reward(resolved, IMAGES, TEXTS, rows).tolist() == expected
    assert score_images(resolved, IMAGES, TEXTS, rows).rewards.tolist() == expected
    assert rows == ROWS  # a reward writes into copies


def test_a_file_a_floor_and_a_measured_mean(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\ndef score(images, prompts, metadata):\n    return torch.tensor([r['score'] for r in metadata])\n"
    )
    assert evaluate_reward(resolve_reward(f"{file}:score"), IMAGES, TEXTS, ROWS).tolist() == [2, 5]
    combined = resolve_reward(f"{file}:score:normalise,{file}:score:floor=4")
    assert isinstance(combined, WeightedSum)
    combined.calibrate(IMAGES, TEXTS, ROWS)  # mean 3.5, std 1.5
    assert score_images(combined, IMAGES, TEXTS, ROWS).rewards.tolist() == [-1 - 2, 1]


def test_gradients_with_metadata() -> None:
    @differentiable
    def scaled(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return images.mean((1, 2, 3)) * torch.tensor([row["score"] for row in metadata])

    pixels = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    result = reward_pixels(
        resolve_reward({scaled: 2.0, differentiable(lambda i, p: i.sum((1, 2, 3))): 0.0}), pixels, TEXTS, ROWS
    )
    assert result.rewards.tolist() == [2.0, 5.0]
    assert evaluate_reward(scaled, IMAGES + 255, TEXTS, ROWS).tolist() == [2.0, 5.0]


def test_trls_functions_get_the_records_metadata_or_their_own() -> None:
    def trl(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> tuple[Tensor, dict]:
        return third(images, prompts, metadata), {}

    assert evaluate_reward(from_trl(trl), IMAGES, TEXTS, ROWS).tolist() == [2, 5]
    assert evaluate_reward(from_trl(trl, {"north": {"score": 7.0}}), IMAGES[:1], TEXTS[:1], ROWS[:1]).tolist() == [7]
    with pytest.raises(ValueError, match="'trl' cannot score the prompt 'east': from_trl was given metadata, but none"):
        make(from_trl(trl, {"north": {"score": 7.0}}), ["north", "east"])


@pytest.mark.parametrize("wrapped", [False, True])
def test_step_and_score_give_the_records_metadata(wrapped: bool) -> None:
    env = make("exact-linear" if wrapped else third, RECORDS)
    env = TerminalReward(env, third) if wrapped else env
    vector = gymnasium.make_vec(
        diffusion_gym.ENV_ID,
        num_envs=2,
        model="exact-mixture",
        reward="exact-linear" if wrapped else third,
        prompts=RECORDS,
        num_inference_steps=1,
        output="torch",
    )
    vector = VectorTerminalReward(vector, third) if wrapped else vector
    for record, expected in zip(RECORDS, (2.0, 5.0), strict=True):
        env.reset(seed=0, options={"prompts": [record]})
        assert env.step(env.action_space.sample() / 1000)[1] == expected
    observation, _ = vector.reset(seed=0, options={"prompts": RECORDS[::-1]})
    assert vector.step(observation["latent"])[1].tolist() == [5.0, 2.0]
    assert vector.unwrapped.score(observation["latent"], RECORDS).rewards.tolist() == [2.0, 5.0]


def refused(action: Callable[[], object], reward: str = "needy") -> None:
    with pytest.raises(
        ValueError,
        match=rf"the reward '{reward}' needs the field 'score' of every prompt, but 'south' has .*; add the field",
    ):
        action()


def test_a_missing_field_is_named_before_anything_is_drawn() -> None:
    refused(lambda: make(Named(), [*RECORDS, "south"]))
    refused(lambda: make({two: 1.0, Named(): 2.0}, [*RECORDS, {"prompt": "south", "other": 1}]))
    env = make(two, [*RECORDS, "south"])
    refused(lambda: env.unwrapped.set_reward(Named()))
    refused(lambda: TerminalReward(env, Named()))
    env.reset(seed=0)
    assert env.step(env.action_space.sample() / 1000)[1] == 1.0  # the former reward is still there
    whole = make(Named(), RECORDS)
    refused(lambda: whole.reset(options={"prompts": ["south"]}))
    refused(lambda: whole.unwrapped.score(torch.zeros(1, *whole.unwrapped.mdp.latents.shape[1:]), ["south"]))
    with pytest.raises(ValueError, match=r"the reward 'even' cannot score the prompt 'north': expected an even .* 5"):
        make(Even(), RECORDS)
    with pytest.raises(ValueError, match=r"the reward 'even' cannot score the prompt 'south': TypeError\("):
        make(Even(), [{"prompt": "south", "score": "text"}])
    inner = partial(Named())
    refused(lambda: make(inner, ["south"]))
    refused(lambda: make({two: 1.0, wraps(inner)(lambda *given: inner(*given)): 2.0}, ["south"]))
    make(partial(Named(), metadata=ROWS), ["south"])  # it has its own
    by_function = lambda images, prompts: two(images, prompts)  # noqa: E731
    by_function.required_metadata = "score"  # type: ignore[attr-defined]
    refused(lambda: make(by_function, ["south"]), "<lambda>")


def test_a_field_that_was_not_announced_is_named_when_it_fails() -> None:
    with pytest.raises(RewardError, match=r"'third' failed .*KeyError.*the metadata of the prompt 'b' has no 'score'"):
        evaluate_reward(third, IMAGES, ["a", "b"], [{"score": 1.0}, {}])


def test_a_wrapper_that_says_nothing_and_cannot_pass_metadata_on_is_told_what_to_do() -> None:
    with pytest.raises(RewardError, match=r"takes 2 positional .*\(\*given\) leaves open .*functools.wraps"):
        evaluate_reward(lambda *given: two(*given), IMAGES, TEXTS, ROWS)
    with pytest.raises(TypeError, match=r"the reward 'Identity' takes \(input.*expected \(images, prompts\)"):
        resolve_reward(torch.nn.Identity())
