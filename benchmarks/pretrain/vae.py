"""The autoencoder of emoji-animals: 64 x 64 pictures to 8 x 8 latents of 4 channels and back."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from benchmarks.pretrain.training import Schedule, mixed_precision, optimise, step_generator
from benchmarks.pretrain.world import SIZE

KL_WEIGHT = 1e-4
"""Weight of the KL divergence (mean over latent numbers) beside the absolute error (mean over pixels)."""

EDGE_WEIGHT = 0.5
"""Weight of the absolute error of the pictures' horizontal and vertical differences."""


def build_vae() -> AutoencoderKL:
    """Return the untrained autoencoder; 16 channels at full resolution keep decoding cheap."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def to_model_range(images: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 pictures (n, 3, h, w) into float32 in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1.0


def to_bytes(pixels: Tensor) -> Tensor:
    """Turn pictures in [-1, 1], (n, 3, h, w), into uint8, as diffusers' image processor rounds them."""
    return ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error plus that of the differences between neighbours; both (n, 3, h, w)."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + EDGE_WEIGHT * edges


def train_vae(vae: AutoencoderKL, images: NDArray[np.uint8], schedule: Schedule, seed: int, checkpoint: Path) -> float:
    """Train in place on pictures (n, 3, 64, 64), uint8, in bfloat16 where the CPU computes in it; returns seconds."""

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        rows = torch.randint(len(images), (schedule.batch,), generator=generator).numpy()
        target = to_model_range(images[rows])
        with mixed_precision():
            posterior = vae.encode(target).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            latents = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
            output = vae.decode(latents).sample
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return reconstruction_loss(output.float(), target) + KL_WEIGHT * kl

    return optimise(vae, loss, schedule, checkpoint)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: NDArray[np.uint8], batch: int = 128) -> tuple[Tensor, Tensor]:
    """Return the latents' means and standard deviations, each (n, 4, 8, 8) float32, before scaling."""
    means, stds = [], []
    for start in tqdm(range(0, len(images), batch), desc="encode", mininterval=2.0):
        with mixed_precision():
            posterior = vae.encode(to_model_range(images[start : start + batch])).latent_dist
        means.append(posterior.mean.float())
        stds.append(posterior.std.float())
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8], batch: int = 128) -> Tensor:
    """Return pictures encoded to their latent means and decoded again, (n, 3, 64, 64) uint8."""
    parts = []
    for start in range(0, len(images), batch):
        mean = vae.encode(to_model_range(images[start : start + batch])).latent_dist.mean
        parts.append(to_bytes(vae.decode(mean).sample))
    return torch.cat(parts)


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of two sets of uint8 pictures, from their joint mean square error."""
    return float(10.0 * torch.log10(255.0**2 / functional.mse_loss(first.float(), second.float())))
