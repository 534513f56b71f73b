"""The denoiser of emoji-world: a small conditional UNet and its text encoder, trained jointly on v-prediction."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from benchmarks.pretrain.denoiser import EMPTY_CAPTION_SHARE, TextToNoise, build_scheduler
from benchmarks.pretrain.emoji_world.vae import CHANNELS
from benchmarks.pretrain.text import WIDTH


def build_unet() -> UNet2DConditionModel:
    """Return the untrained UNet; attention at 4 x 4 only keeps a row of a forward pass under two milliseconds."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4),  # the number of heads, despite its name in diffusers
        norm_num_groups=16,
        use_linear_projection=True,
    )


class Denoising:
    """The denoiser's loss on a pool of latents."""

    def __init__(self, model: TextToNoise, latents: Tensor, tokens: Tensor, captions: Tensor, empty: Tensor) -> None:
        """Hold the pool.

        Args:
            model: both parts, on the pool's device.
            latents: (n, 16, 8, 8) float16, scaled.
            tokens: (captions, 16) token ids of every caption.
            captions: (n,) each row's caption.
            empty: (16,) token ids of the empty caption.
        """
        self.model, self.latents, self.tokens, self.captions, self.empty = model, latents, tokens, captions, empty
        self.alphas = build_scheduler().alphas_cumprod.to(latents.device)

    def loss(self, rows: int) -> Tensor:
        """Return the error of v on random rows, at times spread evenly over all."""
        device = self.latents.device
        chosen = (torch.rand(rows, device=device) * len(self.latents)).long()
        clean = self.latents[chosen].float()
        noise = torch.randn_like(clean)
        spread = (torch.arange(rows, device=device) + torch.rand(rows, device=device)) / rows
        times = (spread * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        signal = self.alphas[times].sqrt()[:, None, None, None]
        spoilt = (1.0 - self.alphas[times]).sqrt()[:, None, None, None]
        dropped = torch.rand(rows, device=device) < EMPTY_CAPTION_SHARE
        ids = torch.where(dropped[:, None], self.empty, self.tokens[self.captions[chosen]])
        output = self.model(signal * clean + spoilt * noise, times, ids)
        return functional.mse_loss(output.float(), signal * noise - spoilt * clean)
