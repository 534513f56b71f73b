"""The autoencoder of emoji-world: 64 x 64 pictures to 8 x 8 latents of 16 channels and back."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from benchmarks.pretrain.emoji_world.fit import autocast
from benchmarks.pretrain.emoji_world.render import SIDE
from benchmarks.pretrain.emoji_world.scenes import World

CHANNELS = 16
"""Channels of the latents: they cost the denoiser next to nothing, and four lose 4 dB and more."""

KL_WEIGHT = 1e-6
"""Weight of the KL divergence (mean over latent numbers); it bounds the latents' scale and no more."""

NOISE = 0.1
"""Largest noise on the latents in training, as a share of their deviation: what the denoiser leaves is not exact."""


def build_vae() -> AutoencoderKL:
    """Return the untrained autoencoder; few channels at full resolution keep decoding cheap."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 96, 128),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def vae_loss(vae: AutoencoderKL, world: World, rows: int) -> Tensor:
    """Return the loss on fresh pictures: squared and absolute error, and the KL divergence."""
    with torch.no_grad():
        half = rows // 2
        pictures = torch.cat([world.draw(world.captioned(rows - half)[0]), world.draw(world.crowded(half))])
    posterior = vae.encode(pictures).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    level = NOISE * world.uniform(rows, 1, 1, 1) * mean.detach().std()
    latents = mean + (torch.exp(0.5 * logvar) + level) * torch.randn_like(mean)
    error = vae.decode(latents).sample.float() - pictures
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return 4.0 * error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * kl


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Return pictures (n, 3, 64, 64) in [-1, 1] encoded and decoded again."""
    return vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of two sets of pictures in [-1, 1]."""
    return float(10.0 * torch.log10(4.0 / functional.mse_loss(first.float(), second.float())))


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, world: World, rows: int, batch: int) -> tuple[Tensor, Tensor]:
    """Return latents of fresh captioned pictures, (rows, 16, 8, 8) float16, unscaled, and their captions' indices."""
    latents, captions = [], []
    for _ in range(-(-rows // batch)):
        scenes, caption = world.captioned(batch)
        with autocast(world.device):
            latents.append(vae.encode(world.draw(scenes)).latent_dist.mean.half())
        captions.append(caption)
    return torch.cat(latents)[:rows], torch.cat(captions)[:rows]
