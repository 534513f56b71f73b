"""Measures of images: diversity by hand; the judge on pictures it cannot mistake."""

import pytest
import torch

from benchmarks.metrics import diversity
from benchmarks.pictures import grid, read_grid


def test_diversity_by_hand() -> None:
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[1] = 10
    # "a": 0 and 10 have the variance 50 in every pixel; "b": both are 0.
    assert diversity(images, ["a", "a", "b", "b"]) == pytest.approx((50**0.5 + 0) / 2)


def test_diversity_of_single_images_is_not_a_number() -> None:
    assert diversity(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), ["a", "b"]) != diversity(
        torch.zeros(2, 3, 2, 2, dtype=torch.uint8), ["a", "a"]
    )


def test_a_grid_can_be_read_back(tmp_path) -> None:  # noqa: ANN001
    images = torch.randint(256, (7, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid(images, columns=3).save(tmp_path / "grid.png")
    assert torch.equal(read_grid(tmp_path / "grid.png", 7, 3, (5, 6)), images)
