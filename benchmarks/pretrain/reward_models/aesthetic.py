"""The aesthetic head of emoji-animals: LAION's linear MLP, trained on colourfulness: this world has no ratings."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pretrain.training import Schedule, optimise, step_generator

SCALE = 10.0
"""The head predicts tens of units of colourfulness, which puts pictures on about the range of LAION's scores."""


def colourfulness(images: Tensor) -> Tensor:
    """Return the colourfulness of RGB pictures (n, 3, h, w) in [0, 255]: (n,) float32, 0 for grey.

    Hasler and Süsstrunk (2003), "Measuring colourfulness in natural images", metric M(3): with rg = R - G and
    yb = (R + G) / 2 - B, it is sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2). In their experiment it
    correlated above 0.9 with people's ratings; those call 15 slightly, 45 averagely and 82 highly colourful.
    """
    red, green, blue = images.float().flatten(2).unbind(dim=1)
    opponents = torch.stack([red - green, (red + green) / 2.0 - blue])
    spread = opponents.var(dim=-1, correction=0).sum(dim=0).sqrt()
    return spread + 0.3 * opponents.mean(dim=-1).square().sum(dim=0).sqrt()


class AestheticHead(nn.Module):
    """LAION's head: a multi-layer perceptron without activations, its parameters named as in the published file."""

    def __init__(self, inputs: int) -> None:
        """Build the untrained head for embeddings of ``inputs`` numbers (768 in LAION's)."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
            nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return scores (n,) of L2-normalised image embeddings (n, inputs)."""
        return self.layers(embeddings).squeeze(-1)


def train_head(
    head: AestheticHead, embeddings: Tensor, target: Tensor, schedule: Schedule, seed: int, checkpoint: Path
) -> float:
    """Fit the head in place to ``target`` (n,) from frozen normalised embeddings (n, d); returns seconds.

    Dropout stays off: it is LAION's regulariser for a few ratings, and there is no lack of computed ones.
    """

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(embeddings), (schedule.batch,), generator=step_generator(seed, step))
        head.eval()
        return functional.mse_loss(head(embeddings[rows]), target[rows])

    return optimise(head, loss, schedule, checkpoint)


def save_head(head: AestheticHead, folder: Path) -> None:
    """Write the head as ``head.safetensors``, float16, under the names of LAION's file."""
    folder.mkdir()
    save_file({name: value.half() for name, value in head.state_dict().items()}, folder / "head.safetensors")


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation of two sets of numbers (n,) without ties."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])
