"""Combined rewards: how they are written, what each term adds by hand, and what is measured for normalisation."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_gym.rewards import (
    REWARDS,
    RewardError,
    RewardTerm,
    WeightedSum,
    check_reward,
    evaluate_reward,
    resolve_reward,
    score_images,
)
from diffusion_gym.rewards.spec import TermSpec, file_digests, file_function, parse_reward

IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
PROMPTS = ["", "a", "bb", "cccccc"]


def length(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """0, 1, 2 and 6 on PROMPTS: mean 2.25, variance 5.1875."""
    return torch.tensor([float(len(prompt)) for prompt in prompts])


def parity(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """0, 1, 0, 0 on PROMPTS."""
    return length(images, prompts) % 2


# ---- the grammar


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("a", [("a", {})]),
        ("a:0.5, b:-2e-1", [("a", {"weight": 0.5}), ("b", {"weight": -0.2})]),
        ("a:normalise,b:floor=0.25:10", [("a", {"normalise": True}), ("b", {"floor": 0.25, "weight": 10.0})]),
        ("a:mean=5.2:std=0.4:2", [("a", {"mean": 5.2, "std": 0.4, "weight": 2.0})]),
        ("a:2:normalise", [("a", {"weight": 2.0, "normalise": True})]),
        # Options in URL-query style, whose values may hold colons, slashes and equals signs.
        ("a?k=v&l=w=x/y", [("a?k=v&l=w=x/y", {})]),
        ("a?k=v:3,b", [("a?k=v", {"weight": 3.0}), ("b", {})]),
        ("a?url=http://host:8000/v1", [("a?url=http://host:8000/v1", {})]),
        ("a?url=http://host:8000/v1:3", [("a?url=http://host:8000/v1", {"weight": 3.0})]),
        ("a?url=http://host:8000", [("a?url=http://host:8000", {})]),
        ("a?url=http://host:8000:3", [("a?url=http://host:8000", {"weight": 3.0})]),
        ("a?url=http://[::1]:8000:floor=1", [("a?url=http://[::1]:8000", {"floor": 1.0})]),
        ("a?url=http://10.0.0.1:80&k=2:0.5", [("a?url=http://10.0.0.1:80&k=2", {"weight": 0.5})]),
        # Functions in files, whose names may look like numbers.
        ("dir/r.py:f", [("dir/r.py:f", {})]),
        ("dir/r.py:inf", [("dir/r.py:inf", {})]),
        ("dir/r.py:normalise:normalise", [("dir/r.py:normalise", {"normalise": True})]),
        ("C:\\r.py:f:0.5,a", [("C:\\r.py:f", {"weight": 0.5}), ("a", {})]),
    ],
)
def test_a_specification_is_read(text: str, terms: list[tuple[str, dict[str, Any]]]) -> None:
    assert parse_reward(text) == [TermSpec(reward, modifiers) for reward, modifiers in terms]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compressibility:1:2", "gives weight twice"),
        ("compressibility:floor=low", "the floor of reward 'compressibility' must be a finite number, got 'low'"),
        ("compressibility:std=nan", "the std of reward 'compressibility' must be a finite number, got 'nan'"),
        ("compressibility:flor=1", "the weight of reward 'compressibility' must be a finite number, got 'flor=1'"),
        ("compressibility:", "the weight of reward 'compressibility' must be a finite number, got ''"),
        ("compressibility:std=0", "the std of reward 'compressibility' must be positive, got 0"),
        ("compressibility:floor=1:-2", "the floor of reward 'compressibility' needs a positive weight, got -2"),
        ("compressibility:floor=1:mean=2", "a mean has no effect"),
        ("compressibility:normalise:std=2", "has both normalise and a mean or std"),
        ("my_reward.py", "unknown reward 'my_reward.py'; expected one of .*'path/to/file.py:function'"),
    ],
)
def test_a_bad_specification_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_reward(text)


def test_checking_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model reward would load its weights, and a file would be run."""

    def heavy(weights: str = "folder") -> Any:
        pytest.fail("was built")

    monkeypatch.setitem(REWARDS, "heavy", heavy)
    check_reward("heavy:2,heavy?weights=folder:floor=1,no/such/file.py:function")
    with pytest.raises(ValueError, match="unknown reward 'hevy'"):
        check_reward("heavy,hevy:2")


# ---- what the terms add


def test_terms_by_hand() -> None:
    """Scores 0, 1, 2, 6, times 2; a floor of 1.5 with slope 10; a fixed scale (s - 1) / 4."""
    floor, scaled = RewardTerm(length, 10.0, floor=1.5), RewardTerm(length, mean=1.0, std=4.0)
    reward = WeightedSum([RewardTerm(length, 2.0), floor, scaled])
    expected = [0 - 15 - 0.25, 2 - 5 + 0, 4 - 0 + 0.25, 12 - 0 + 1.25]
    assert evaluate_reward(reward, IMAGES, PROMPTS).tolist() == pytest.approx(expected, abs=1e-6)
    assert reward.name == "length:2,length:10:floor=1.5,length:1:mean=1:std=4"


def test_normalisation_by_hand() -> None:
    """Mean 2.25, std sqrt(5.1875); the floor stays in the reward's own unit, its shortfall is counted in stds."""
    reward = WeightedSum([RewardTerm(length, normalise=True), RewardTerm(length, 3.0, floor=1.0, normalise=True)])
    assert reward.needs_calibration
    with pytest.raises(
        RewardError, match=r"mean and std of reward 'length', which is to be normalised, were not measured"
    ):
        evaluate_reward(reward, IMAGES, PROMPTS)
    reward.calibrate(IMAGES, PROMPTS)
    std = math.sqrt(5.1875)
    expected = [(s - 2.25) / std - 3 * max(0.0, 1 - s) / std for s in (0, 1, 2, 6)]
    assert evaluate_reward(reward, IMAGES, PROMPTS).tolist() == pytest.approx(expected, abs=1e-6)
    # Other images are scored with the same statistics, also after a checkpoint and in a copy.
    restored = WeightedSum(reward.terms)
    restored.load_state_dict(json.loads(json.dumps(reward.state_dict())))
    for same in (reward, restored, copy.deepcopy(reward)):
        assert not same.needs_calibration
        assert same(IMAGES[:1], ["abc"]).item() == pytest.approx(0.75 / std, abs=1e-6)


def test_a_constant_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match=r"'length' gives all 2 images for calibration the score 1"):
        WeightedSum([RewardTerm(length, normalise=True)]).calibrate(IMAGES[:2], ["a", "b"])


def test_each_reward_is_asked_once_and_its_scores_are_told_apart() -> None:
    asked: list[int] = []

    def counted(images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked.append(len(prompts))
        return length(images, prompts)

    reward = WeightedSum([RewardTerm(counted), RewardTerm(parity, 0.5), RewardTerm(counted, 10.0, floor=1.5)])
    scores = score_images(reward, IMAGES, PROMPTS)
    assert asked == [4]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "counted": [0, 1, 2, 6],
        "parity": [0, 1, 0, 0],
    }
    assert scores.rewards.tolist() == pytest.approx([-15, 1 + 0.5 - 5, 2, 6])
    assert reward.floors == {"counted": 1.5}


def test_two_rewards_of_one_name_stay_apart() -> None:
    rewards = [lambda images, prompts: length(images, prompts), lambda images, prompts: parity(images, prompts)]
    reward = WeightedSum(dict.fromkeys(rewards, 1.0))
    parts = score_images(reward, IMAGES, PROMPTS).parts
    assert {name: part[3].item() for name, part in parts.items()} == {"<lambda>": 6, "<lambda>-2": 0}


def test_a_mapping_of_combinations_is_one_sum() -> None:
    """Weights multiply; floors and scales stay."""
    reward = resolve_reward({WeightedSum([RewardTerm(length, 2.0, floor=3.0)]): 5.0, parity: 1.0})
    assert reward.name == "length:10:floor=3,parity:1"
    assert score_images(reward, IMAGES, PROMPTS).rewards.tolist() == pytest.approx([-30, -20 + 1, -10, 0])


# ---- a function in a file


def write(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return str(folder / "mine.py")


def test_a_function_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines, from the working directory or by a whole path, alone and in a sum."""
    path = write(tmp_path, "def red(images, prompts):\n    return images[:, 0].float().mean((1, 2))\n")
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8)
    assert resolve_reward(f"{path}:red")(images, PROMPTS).tolist() == [0, 1, 2, 3]
    monkeypatch.chdir(tmp_path)
    assert resolve_reward("mine.py:red:2,mine.py:red:floor=1.5")(images, PROMPTS).tolist() == [-1.5, 1.5, 4, 6]
    assert file_function("mine.py:red") == (Path("mine.py"), "red")
    assert list(file_digests("compressibility:2,mine.py:red:3")) == ["mine.py"]


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("def red(images, prompts): ...", "blue", r"has no 'blue'; its functions are \['red'\]"),
        ("import math\n\nraise KeyError('weights')", "red", r"does not run: KeyError\('weights'\) \(line 3\)"),
        ("def red(images, prompts:", "red", r"does not run: .* in line 1, 'def red\(images, prompts:'"),
        ("def red(images): ...", "red", r"the reward 'red' takes \(images\); expected \(images, prompts\)"),
        ("red = 3", "red", r"got int"),
        ("class Red: ...", "Red", r"'Red' is a class; give an instance of it"),
    ],
)
def test_a_file_without_the_reward_is_refused(tmp_path: Path, text: str, function: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        resolve_reward(f"{path}:{function}")


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no reward file 'absent\.py' \(looked for at '.+'\)"):
        resolve_reward("absent.py:red")


def test_a_callable_that_cannot_be_a_reward_is_refused_at_once() -> None:
    class Beauty:
        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor: ...

    with pytest.raises(TypeError, match=r"the reward 'Beauty' is a class; give an instance of it: reward=Beauty\("):
        resolve_reward(Beauty)
    with pytest.raises(TypeError, match=r"takes \(images\); expected \(images, prompts\)"):
        resolve_reward(lambda images: images)


def test_an_error_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "def red(images, prompts):\n    table = {}\n    return table['red']\n")
    with pytest.raises(RewardError, match=r"'red' failed on 4 images .*KeyError\('red'\) \(mine\.py, line 3\)"):
        evaluate_reward(resolve_reward(f"{path}:red"), IMAGES, PROMPTS)
