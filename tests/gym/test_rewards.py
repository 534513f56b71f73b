"""Rewards: JPEG sizes by hand, combinations, and what a bad reward is told."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.models.exact import EXACT_MODELS, ExactModel
from diffusion_gym.rewards import (
    REWARDS,
    Compressibility,
    Incompressibility,
    Linear,
    Quadratic,
    Reward,
    RewardError,
    WeightedSum,
    evaluate_reward,
    jpeg_kilobytes,
    resolve_reward,
    reward_name,
)


def _images(n: int, seed: int = 0, size: tuple[int, int] = (16, 24)) -> Tensor:
    """Return pictures between flat and noisy, (n, 3, H, W), uint8, not square so that a swapped axis shows."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (n, 3, *size))
    return torch.from_numpy((noise * rng.random((n, 1, 1, 1))).astype(np.uint8))


def _file_size(image: Tensor, folder: Path, quality: int) -> int:
    path = folder / "image.jpg"
    Image.fromarray(image.permute(1, 2, 0).numpy().copy()).save(path, quality=quality)
    return path.stat().st_size


@pytest.mark.parametrize("quality", [95, 50])
def test_kilobytes_are_those_of_a_file(tmp_path: Path, quality: int) -> None:
    images = _images(4)
    expected = [_file_size(image, tmp_path, quality) / 1000 for image in images]
    kilobytes = jpeg_kilobytes(images, quality)
    assert kilobytes.dtype == torch.float32
    assert kilobytes.tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) == 4


def test_compressibility_is_minus_incompressibility(tmp_path: Path) -> None:
    images, prompts = _images(3), ["a", "b", "c"]
    up, down = Incompressibility()(images, prompts), Compressibility()(images, prompts)
    assert torch.equal(up, -down)
    assert up[0].item() == pytest.approx(_file_size(images[0], tmp_path, 95) / 1000, rel=1e-6)


@pytest.mark.parametrize("n", [63, 64, 65, 200])
def test_threads_change_nothing(n: int) -> None:
    """From 64 images on a pool compresses them; one at a time none does."""
    images = _images(n, size=(8, 8))
    together = jpeg_kilobytes(images)
    assert torch.equal(together, torch.cat([jpeg_kilobytes(image[None]) for image in images]))


def test_strided_images_are_read_right() -> None:
    images = _images(4)
    assert torch.equal(jpeg_kilobytes(images[::2]), jpeg_kilobytes(images[::2].contiguous()))
    last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(jpeg_kilobytes(last), jpeg_kilobytes(images))


#: Rewards that need metadata, the extra ``ocr``, a person, or weights that are not shipped; each has a file of tests.
APART = {"geneval", "hpsv2", "imagereward", "ocr", "pickscore", "unified", "votes"}


@pytest.mark.parametrize("name", sorted(set(REWARDS) - APART))
def test_every_registered_reward_keeps_the_protocol(name: str, tiny_rewards: Path) -> None:
    reward = resolve_reward(name)
    assert isinstance(reward, Reward)
    assert reward_name(reward) == name
    images = _images(3, size=(8, 16))
    before = images.clone()
    prompts = ["a cat", "b", "a fish in a dish"]
    scores = evaluate_reward(reward, images, prompts)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert torch.equal(images, before)
    alone = [evaluate_reward(reward, images[k : k + 1], [prompts[k]]) for k in range(3)]
    assert torch.equal(scores, torch.cat(alone))


def test_rewards_on_exact_points() -> None:
    model = ExactModel("points", *EXACT_MODELS["exact-gaussian"], torch.device("cpu"))
    images = model.decode(torch.tensor([[0.5, -2.0], [3.0, 1.0]])[..., None, None])
    # A level of the code is 2.4e-4, half of it the most a coordinate is off.
    assert Linear()(images, ["", ""]).tolist() == pytest.approx([0.5, 3.0], abs=2e-4)
    assert Linear((2.0, -1.0))(images, ["", ""]).tolist() == pytest.approx([3.0, 5.0], abs=5e-4)
    assert Quadratic()(images, ["", ""]).tolist() == pytest.approx([-9.25, -4.0], abs=2e-3)
    assert Quadratic((0.5, -2.0))(images, ["", ""]).tolist() == pytest.approx([0.0, -15.25], abs=3e-3)


# ---- combinations


def _length(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(prompt)) for prompt in prompts])


@pytest.mark.parametrize(
    ("spec", "factor"),
    [
        ("incompressibility:0.5", 0.5),
        ("incompressibility:2,compressibility", 1.0),
        (" incompressibility:3 , compressibility:-1 ", 4.0),
        ("incompressibility,incompressibility:1e-1", 1.1),
        ({"incompressibility": 2, "compressibility": 0.5}, 1.5),
        ({"incompressibility:2,compressibility:1": 10}, 10.0),
    ],
)
def test_weighted_sums(spec: Any, factor: float) -> None:
    images, prompts = _images(3), ["a", "b", "c"]
    expected = factor * jpeg_kilobytes(images)
    torch.testing.assert_close(evaluate_reward(resolve_reward(spec), images, prompts), expected, rtol=1e-6, atol=1e-6)


def test_mappings_take_callables_too() -> None:
    images, prompts = _images(2), ["abc", "a"]
    reward = resolve_reward({_length: 2.0, "incompressibility": 1.0})
    torch.testing.assert_close(reward(images, prompts), torch.tensor([6.0, 2.0]) + jpeg_kilobytes(images))
    assert reward_name(reward) == "_length:2,incompressibility:1"


def test_a_callable_is_returned_as_it_is() -> None:
    assert resolve_reward(_length) is _length
    assert reward_name(_length) == "_length"
    assert reward_name(Compressibility()) == "compressibility"


def test_unknown_reward_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown reward 'beauty'; expected one of \['aesthetic', .*, or in Python a"):
        resolve_reward("beauty")
    with pytest.raises(ValueError, match="unknown reward 'beauty'"):
        resolve_reward("compressibility:1,beauty:2")
    with pytest.raises(ValueError, match="unknown reward ''"):
        resolve_reward("compressibility,")


@pytest.mark.parametrize("weight", ["much", "1.0.0", "nan", "inf"])
def test_bad_weight_names_the_reward(weight: str) -> None:
    with pytest.raises(ValueError, match=rf"weight of reward 'compressibility' must be a.* number, got '{weight}'"):
        resolve_reward(f"compressibility:{weight}")


@pytest.mark.parametrize("weight", ["much", None, math.nan])
def test_bad_weight_in_a_mapping_names_the_reward(weight: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"weight of reward 'compressibility' must be a.* number, got"):
        resolve_reward({"compressibility": weight})


def test_no_term() -> None:
    with pytest.raises(ValueError, match="at least one term"):
        resolve_reward({})


@pytest.mark.parametrize("spec", [3, None, ["compressibility"]])
def test_what_can_be_no_reward(spec: Any) -> None:
    with pytest.raises(TypeError, match=f"reward must be a name.*got {type(spec).__name__}"):
        resolve_reward(spec)


# ---- the check that every reward's output passes


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([1, 2], dtype=torch.int64),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([1.0, 2.0], requires_grad=True),
        np.array([1.0, 2.0]),
        [1.0, 2.0],
    ],
)
def test_real_scores_of_any_kind_become_float32(scores: Any) -> None:
    result = evaluate_reward(lambda images, prompts: scores, _images(2), ["a", "b"])
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert result.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_names_reward_and_prompt(value: float) -> None:
    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([1.0, value, 1.0])

    with pytest.raises(
        RewardError, match=f"reward 'broken' returned {value} for the prompt 'a dog'; expected a finite score"
    ):
        evaluate_reward(broken, _images(3), ["a cat", "a dog", "a fish"])


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (1, 2), (0,)])
def test_a_wrong_shape_names_reward_and_prompts(shape: tuple[int, ...]) -> None:
    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(shape)

    message = rf"reward 'broken' must return real scores of shape \(2,\), got shape {_escaped(shape)}.*'a cat', 'a dog'"
    with pytest.raises(RewardError, match=message):
        evaluate_reward(broken, _images(2), ["a cat", "a dog"])


def _escaped(shape: tuple[int, ...]) -> str:
    return str(shape).replace("(", r"\(").replace(")", r"\)")


def test_complex_scores_are_refused() -> None:
    with pytest.raises(RewardError, match=r"real scores of shape \(1,\), got shape \(1,\) and dtype torch.complex64"):
        evaluate_reward(lambda images, prompts: torch.zeros(1, dtype=torch.complex64), _images(1), ["a cat"])


@pytest.mark.parametrize("result", [None, "0.3", {"score": 1.0}])
def test_what_is_no_tensor_names_the_reward(result: Any) -> None:
    def broken(images: Tensor, prompts: Sequence[str]) -> Any:
        return result

    with pytest.raises(RewardError, match=r"reward 'broken' must return .*shape \(1,\), got"):
        evaluate_reward(broken, _images(1), ["a cat"])


def test_an_exception_names_reward_and_prompts_and_is_kept() -> None:
    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise KeyError("weights")

    message = r"reward 'broken' failed on 4 images \(prompts 'a', 'b', 'c', \.\.\.\): KeyError\('weights'\)"
    with pytest.raises(RewardError, match=message) as caught:
        evaluate_reward(broken, _images(4), ["a", "b", "c", "d"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_broken_term_of_a_sum_is_named() -> None:
    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([math.nan])

    combined: Callable[..., Tensor] = WeightedSum({Compressibility(): 1.0, broken: 2.0})
    with pytest.raises(
        RewardError, match=r"'compressibility:1,broken:2' failed.*'broken' returned nan for the prompt 'a cat'"
    ):
        evaluate_reward(combined, _images(1), ["a cat"])


def test_jpeg_headers_alone_are_no_reward() -> None:
    """A flat picture is the smallest file there is, and noise of the same size is several times as large."""
    flat, noise = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8), _images(1, size=(64, 64))
    noise = torch.randint(0, 256, noise.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 90, 90)).save(buffer, format="JPEG", quality=95)
    assert jpeg_kilobytes(flat).item() == pytest.approx(len(buffer.getvalue()) / 1000, rel=1e-6)
    assert jpeg_kilobytes(noise).item() > 5 * jpeg_kilobytes(flat).item()
