"""The denoiser of emoji-animals: a small conditional UNet and its text encoder, trained jointly on v-prediction."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel

from benchmarks.pretrain.text import WIDTH
from benchmarks.pretrain.training import Schedule, mixed_precision, optimise, step_generator

EMPTY_CAPTION_SHARE = 0.1
"""Share of training rows whose caption is emptied, which is what classifier-free guidance needs."""


def build_unet() -> UNet2DConditionModel:
    """Return the untrained UNet; cross-attention only in the middle, at 4 x 4, keeps a row under two milliseconds."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4),  # the number of heads, despite its name in diffusers
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule with v-prediction and trailing time steps.

    Trailing steps start at the noisiest time, which matters in ten steps; v-prediction is Stable Diffusion 2's. With
    ``set_alpha_to_one`` (diffusers' default for DDIM) the last step is deterministic. Without it that step has a std of
    0.03: too little to change the reward, but since the gradient of a log-density grows with 1 / std its share of
    the policy gradient's norm is large and mostly noise.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


class TextToNoise(nn.Module):
    """The text encoder and the UNet as one module to train."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        """Hold both parts."""
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predict v, (n, 4, 8, 8), from scaled noisy latents (n, 4, 8, 8), times (n,) and token ids (n, 16)."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(latents, timesteps, encoder_hidden_states=states).sample


def stratified_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` training times, one from each of as many equal strata of 0 to 999, in random order."""
    times = (torch.arange(count) + torch.rand(count, generator=generator)) / count * 1000
    return times.long().clamp(max=999)[torch.randperm(count, generator=generator)]


def train_denoiser(
    model: TextToNoise,
    means: Tensor,
    stds: Tensor,
    tokens: Tensor,
    empty: Tensor,
    schedule: Schedule,
    seed: int,
    checkpoint: Path,
) -> float:
    """Train in place, in bfloat16 where the CPU computes in it.

    Args:
        model: both parts, in float32.
        means: (n, 4, 8, 8) latents' means, scaled.
        stds: (n, 4, 8, 8) their standard deviations, scaled.
        tokens: (n, 16) captions' token ids.
        empty: (16,) token ids of the empty caption.
        schedule: steps, batch, learning rate and averaging.
        seed: of the batches and the noise.
        checkpoint: see :func:`benchmarks.pretrain.training.optimise`.

    Returns:
        Seconds of training.
    """
    scheduler = build_scheduler()

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        rows = torch.randint(len(means), (schedule.batch,), generator=generator)
        clean = means[rows] + stds[rows] * torch.randn(means[rows].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = stratified_timesteps(schedule.batch, generator)
        dropped = torch.rand(schedule.batch, generator=generator) < EMPTY_CAPTION_SHARE
        ids = torch.where(dropped[:, None], empty, tokens[rows])
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = scheduler.get_velocity(clean, noise, timesteps)
        with mixed_precision():
            output = model(noisy, timesteps, ids)
        return functional.mse_loss(output.float(), target)

    return optimise(model, loss, schedule, checkpoint)
