"""Measures of images: diversity by hand; the judge on pictures it cannot mistake."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from algorithms.diversity import diversity, embedding_diversity
from benchmarks.__main__ import main
from benchmarks.runs.metrics import METRICS, check_metric, check_world, check_worlds, more_is_better
from benchmarks.runs.pictures import grid, read_grid
from diffusion_gym.models import load_model
from diffusion_gym.prompts import animal_activities


def test_diversity_by_hand() -> None:
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[1] = 10
    # "a": 0 and 10 have the variance 50 in every pixel; "b": both are 0.
    assert diversity(images, ["a", "a", "b", "b"]) == pytest.approx((50**0.5 + 0) / 2)
    # Of 0, 10 and 0 the squares from the mean 10/3 add up to 200/3, of which n - 1 are half; of all four to 75.
    assert diversity(images, ["a", "a", "a", "b"]) == pytest.approx((100 / 3) ** 0.5)
    assert diversity(images, ["a"] * 4) == pytest.approx(25**0.5)
    # One pixel in four that differs: the variance is averaged over pixels before the root.
    images[1] = 0
    images[1, :, 0, 0] = 10
    assert diversity(images, ["a", "a", "b", "c"]) == pytest.approx((50 / 4) ** 0.5)


def test_diversity_is_half_the_mean_squared_difference_of_two_images() -> None:
    """Whatever their number: three and four pictures of one prompt measure what two do, on average."""
    images = torch.randint(256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for n in (2, 3, 4, 5):
        pairs = [(x.double() - y.double()).square().mean() for x, y in itertools.combinations(images[:n], 2)]
        assert diversity(images[:n], ["a"] * n) == pytest.approx(float((torch.stack(pairs).mean() / 2).sqrt()))


def test_diversity_of_single_images_is_not_a_number() -> None:
    assert diversity(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), ["a", "b"]) != diversity(
        torch.zeros(2, 3, 2, 2, dtype=torch.uint8), ["a", "a"]
    )


def test_diversity_of_embeddings_by_hand() -> None:
    """The angles of "a" are 60, 60 and 120 degrees: cosines 0.5, 0.5 and -0.5. "b" has one image alone."""
    half, root = 0.5, 3**0.5 / 2
    embeddings = torch.tensor([[1.0, 0.0], [half, root], [-half, root], [0.0, 1.0]])
    assert embedding_diversity(embeddings, ["a", "a", "a", "b"]) == pytest.approx(1 - 0.5 / 3, abs=1e-6)
    assert embedding_diversity(embeddings[[0, 0]], ["a", "a"]) == pytest.approx(0.0, abs=1e-6)


def test_clip_diversity_is_0_for_copies_and_more_for_other_pictures() -> None:
    """The embedded CLIP's own embeddings, two by two."""
    pictures = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures[1] = 255
    clip = METRICS["clip_diversity"]
    assert clip(pictures[[0, 0]], ["cat", "cat"]) == pytest.approx(0.0, abs=1e-5)
    assert clip(pictures[:2], ["cat", "cat"]) > 0.05


def test_a_grid_can_be_read_back(tmp_path) -> None:  # noqa: ANN001
    images = torch.randint(256, (7, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid(images, columns=3).save(tmp_path / "grid.png")
    assert torch.equal(read_grid(tmp_path / "grid.png", 7, 3, (5, 6)), images)


def test_what_falls_as_pictures_get_worse() -> None:
    """A peak is sought in these alone: KL and distances only rise as the policy leaves its start."""
    assert all(map(more_is_better, ("recognised", "diversity", "clip_score")))
    assert not any(map(more_is_better, ("kl_to_start", "exact-kl-from-start", "exact-target-kl?beta=1")))


def test_the_judge_refuses_models_of_another_world_and_prompts_without_an_animal(tiny_sd: str) -> None:
    emoji = load_model("emoji-animals")
    check_world(emoji, ["cat", "a cat", *animal_activities()])
    for name in (tiny_sd, "exact-gaussian"):
        with pytest.raises(ValueError, match="judges pictures of emoji-animals and of models tuned from it alone, got"):
            check_world(load_model(name), ["cat"])
    with pytest.raises(ValueError, match="needs an animal in every prompt, got 'an owl'"):
        check_world(emoji, ["cat", "an owl"])


def test_the_gold_judge_looks_at_the_kind_that_it_is_asked_about() -> None:
    """Nothing is on a grey picture; without a picture of the kind it is not a number; fields are needed."""
    images = torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)
    fox = {"tag": "single_object", "include": [{"class": "fox", "count": 1}]}
    assert METRICS["judge"](images, ["a fox"] * 2, [fox] * 2) == 0
    assert METRICS["judge-single_object"](images, ["a fox"] * 2, [fox] * 2) == 0
    assert math.isnan(METRICS["judge-counting"](images, ["a fox"] * 2, [fox] * 2))
    check_metric("judge-color_attr")
    for metadata, message in (
        ({}, "has no field 'tag'"),
        ({**fox, "include": [{"class": "dog", "count": 1}]}, "'dog'"),
    ):
        with pytest.raises(ValueError, match=f"the prompt 'a fox' .*{message}"):
            METRICS["judge"].check_metadata("a fox", metadata)


def test_the_gold_judge_counts_kinds_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three right pictures of one kind and a wrong one of another: 1 and 0, GenEval's overall score is one half."""
    single = {"tag": "single_object", "include": [{"class": "fox", "count": 1}]}
    counting = {"tag": "counting", "include": [{"class": "fox", "count": 2}]}
    verdicts = [SimpleNamespace(right=right) for right in (True, True, False, True)]
    monkeypatch.setattr("diffusion_gym.rewards.geneval.examine", lambda *_: verdicts)
    asked = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), ["foxes"] * 4, [single, single, counting, single]
    assert METRICS["judge"](*asked) == 0.5


def test_sharpness_by_hand() -> None:
    """One pixel of 90 in 6 x 6: its Laplacian is 360 there and 90 beside it, four times, over 16 inner pixels."""
    image = torch.zeros(1, 3, 6, 6, dtype=torch.uint8)
    image[..., 2, 3] = 90
    assert METRICS["sharpness"](image, ["a fox"]) == pytest.approx((360 + 4 * 90) / 16)


def test_each_judge_knows_its_own_world(tiny_sd: str) -> None:
    animals, world = load_model("emoji-animals"), load_model("emoji-world")
    check_worlds(["judge", "judge-counting", "diversity"], world, ["a photo of a fox"])
    for model in (animals, load_model(tiny_sd)):
        with pytest.raises(
            ValueError, match="the metric 'judge' judges pictures of emoji-world and of models tuned from"
        ):
            check_worlds(["judge"], model, ["cat"])
    with pytest.raises(ValueError, match="the metric 'recognised' judges pictures of emoji-animals"):
        check_worlds(["recognised"], world, ["cat"])


def test_a_run_is_refused_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "ddpo-is", "--model", "exact-gaussian", "--policy.trainable", "full", "--threads", "1"]
    assert main([*command, "--metrics", "recognised", "--folder", str(tmp_path / "run")]) == 2
    assert "error: the metric 'recognised' judges" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_colour_statistics_by_hand() -> None:
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0, 0, 0] = 100
    # Red - green is 100, 0, 0, 0: mean 25, variance 1875; (red + green) / 2 - blue is half of it.
    expected = (1875 * 1.25) ** 0.5 + 0.3 * (25**2 + 12.5**2) ** 0.5
    assert METRICS["colourfulness"](image, ["a fox"]) == pytest.approx(expected)
    assert METRICS["colourfulness"](torch.full((1, 3, 2, 2), 9, dtype=torch.uint8), ["a fox"]) == 0
    image = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    image[0, :, 2, 0] = 50  # of the four pixels with a right and a lower neighbour, the one above it is not flat
    assert METRICS["flat_area"](image, ["a fox"]) == 0.75
