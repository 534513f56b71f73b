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


NOISY = 1.3
"""Times are ``1 - (1 - u)^1.3`` of uniform u: more at the noisy end, where it is decided what is drawn and where."""

OPENS, OPEN = 0.15, 0.45
"""Shares of the training between which pictures that are held back at first come in."""


class Denoising:
    """The denoiser's loss on a pool of latents.

    Which of two objects is left of the other is learned only in this order: first every position prompt says "left of"
    or "above", so that the first noun comes to mean the first place; then "right of" and "below" turn that round. With
    all four from the start the axis was learned, and nothing about the order.
    """

    def __init__(
        self, model: TextToNoise, latents: Tensor, tokens: Tensor, captions: Tensor, empty: Tensor, held_back: Tensor
    ) -> None:
        """Hold the pool.

        Args:
            model: both parts, on the pool's device.
            latents: (n, 16, 8, 8) float16, scaled.
            tokens: (captions, 16) token ids of every caption.
            captions: (n,) each row's caption.
            empty: (16,) token ids of the empty caption.
            held_back: (n,) bool: the rows that come in later.
        """
        self.model, self.latents, self.tokens, self.captions, self.empty = model, latents, tokens, captions, empty
        self.alphas = build_scheduler().alphas_cumprod.to(latents.device)
        self.early = (~held_back).nonzero().flatten()
        self.open = torch.zeros((), device=latents.device)

    def set_progress(self, progress: float) -> None:
        """Open the pool to the rows held back, as far as is due at a share of the training."""
        self.open.fill_(min(max((progress - OPENS) / (OPEN - OPENS), 0.0), 1.0))

    def loss(self, rows: int) -> Tensor:
        """Return the error of v on random rows, at times spread over all."""
        device = self.latents.device
        anywhere = (torch.rand(rows, device=device) * len(self.latents)).long()
        early = self.early[(torch.rand(rows, device=device) * len(self.early)).long()]
        chosen = torch.where(torch.rand(rows, device=device) < self.open, anywhere, early)
        clean = self.latents[chosen].float()
        noise = torch.randn_like(clean)
        spread = (torch.arange(rows, device=device) + torch.rand(rows, device=device)) / rows
        times = ((1.0 - (1.0 - spread) ** NOISY) * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        signal = self.alphas[times].sqrt()[:, None, None, None]
        spoilt = (1.0 - self.alphas[times]).sqrt()[:, None, None, None]
        dropped = torch.rand(rows, device=device) < EMPTY_CAPTION_SHARE
        ids = torch.where(dropped[:, None], self.empty, self.tokens[self.captions[chosen]])
        output = self.model(signal * clean + spoilt * noise, times, ids)
        return functional.mse_loss(output.float(), signal * noise - spoilt * clean)
