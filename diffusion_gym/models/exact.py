"""The exact family: a Gaussian mixture whose denoiser is known in closed form, for answers that can be checked.

Its denoiser's trainable parameters are the mixture's own (means, log-stds, logits), so a tuned model is again a
mixture and can be compared with the exact optimum. It is loaded by name and used like any other model.

Images are a code for points, not pictures: coordinate i fills the 8 x 8 block i of the picture with a 16-bit
fixed-point value over [-8, 8] (red the high byte, green the low byte), so rewards see the point to 1.2e-4.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_gym.models.base import PROMPT_EMBEDDING, Conditioning, Denoiser, DiffusionModel, LoRAConfig
from diffusion_gym.models.gaussian_mixture import GaussianMixture

POINT_RANGE = 8.0
_BLOCK = 8
_LEVELS = 2**16 - 1


class ExactDenoiser(Denoiser):
    """``E[epsilon | x_t]`` of a Gaussian mixture.

    With ``x_t = sqrt(a) x_0 + sqrt(1 - a) epsilon`` component k of x_t has mean ``sqrt(a) m_k`` and variance
    ``v_k = a s_k^2 + 1 - a``; then ``E[epsilon | x_t] = sqrt(1 - a) sum_k r_k (x_t - sqrt(a) m_k) / v_k`` with the
    responsibilities r_k.
    """

    alphas_cumprod: Tensor

    def __init__(self, mixture: GaussianMixture, alphas_cumprod: Tensor) -> None:
        """Args: mixture with K components in d dimensions; alphas_cumprod: (num_train_timesteps,)."""
        super().__init__()
        self.means = nn.Parameter(mixture.means.float())
        self.log_stds = nn.Parameter(mixture.stds.log().float())
        self.logits = nn.Parameter(mixture.weights.log().float())
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon; ``prompt_embedding`` (n, 1, K) holds 1 for the components that the prompt allows."""
        x = latents.flatten(1)
        a = self.alphas_cumprod[timesteps.long()][:, None]
        log_w = torch.log_softmax(self.logits + conditioning[PROMPT_EMBEDDING][:, 0].log(), 1)
        gap = x[:, None] - a.sqrt()[..., None] * self.means[None]
        v = a * (2 * self.log_stds).exp()[None] + 1 - a
        log_r = log_w - 0.5 * gap.square().sum(-1) / v - 0.5 * x.shape[1] * v.log()
        r = log_r.softmax(1)
        epsilon = (1 - a).sqrt() * ((r / v)[..., None] * gap).sum(1)
        return epsilon.reshape(latents.shape)

    def mixture(self, prompt_embedding: Tensor | None = None) -> GaussianMixture:
        """Return the mixture that the present parameters describe, for one prompt (1, K) or over all components."""
        allowed = torch.ones_like(self.logits) if prompt_embedding is None else prompt_embedding[0]
        logits, means, log_stds = (
            value.detach().cpu().double()  # in this order: MPS has no float64
            for value in (self.logits + allowed.log(), self.means, self.log_stds)
        )
        return GaussianMixture(means, log_stds.exp(), logits.softmax(0))


class ExactModel(DiffusionModel):
    """A Gaussian mixture as a diffusion model; each prompt names one component, ``"anywhere"`` and ``""`` all."""

    default_prompts: ClassVar[tuple[str, ...]] = ("anywhere",)

    def __init__(self, name: str, mixture: GaussianMixture, components: Sequence[str], device: torch.device) -> None:
        """Args: components: K prompts, one for each component of the mixture."""
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            timestep_spacing="trailing",
        )
        self.name, self.device, self.dtype, self.target = name, device, "float32", mixture
        self.scheduler_config = dict(scheduler.config)
        self._alphas_cumprod = scheduler.alphas_cumprod
        self._prompts = {"": slice(None), "anywhere": slice(None)} | {
            p: slice(k, k + 1) for k, p in enumerate(components)
        }
        k, d = mixture.means.shape
        self.latent_shape, self.image_shape = (d, 1, 1), (3, _BLOCK, _BLOCK * d)
        self.conditioning_shapes = {PROMPT_EMBEDDING: (1, k)}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return masks over components, (n, 1, K)."""
        unknown = [prompt for prompt in prompts if prompt not in self._prompts]
        if unknown:
            raise ValueError(
                f"the exact model {self.name!r} knows the prompts {sorted(self._prompts)}, got {unknown[0]!r}."
            )
        masks = torch.zeros(len(prompts), *self.conditioning_shapes[PROMPT_EMBEDDING])
        for row, prompt in enumerate(prompts):
            masks[row, 0, self._prompts[prompt]] = 1.0
        return {PROMPT_EMBEDDING: masks.to(self.device)}

    def decode(self, latents: Tensor) -> Tensor:
        """Write each point (n, d, 1, 1) as blocks of 16-bit values; beyond [-8, 8] the code saturates."""
        points = latents.flatten(1).clamp(-POINT_RANGE, POINT_RANGE)
        level = ((points + POINT_RANGE) / (2 * POINT_RANGE) * _LEVELS).round().long()
        code = torch.stack([level // 256, level % 256, torch.full_like(level, 128)], 1).to(torch.uint8)
        return code.repeat_interleave(_BLOCK, 2)[:, :, None, :].expand(-1, -1, _BLOCK, -1).contiguous()

    def encode_images(self, images: Tensor) -> Tensor:
        """Read the points back, (n, d, 1, 1), float32."""
        return read_points(images)[..., None, None]

    def build_denoiser(self, lora: LoRAConfig | None = None) -> ExactDenoiser:
        """Return the closed-form denoiser with the mixture's parameters to train."""
        if lora is not None:
            raise ValueError(
                "the exact family has no linear layers for LoRA; train its full weights (trainable='full')."
            )
        return ExactDenoiser(self.target, self._alphas_cumprod).to(self.device)

    def export(self, denoiser: Denoiser, folder: Path, lora: LoRAConfig | None) -> None:
        """Write the mixture's parameters as ``exact_model.safetensors``."""
        from safetensors.torch import save_file

        save_file(
            {k: v.contiguous().cpu() for k, v in denoiser.state_dict().items()}, folder / "exact_model.safetensors"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its name."""
        from diffusion_gym.models import load_model

        return load_model, (self.name, str(self.device))


def read_points(images: Tensor) -> Tensor:
    """Read the points (n, d), float32, from the exact family's images (n, 3, 8, 8 d), uint8."""
    level = (images[:, 0, 0, ::_BLOCK].long() * 256 + images[:, 1, 0, ::_BLOCK].long()).cpu()
    return (level.double() / _LEVELS * 2 * POINT_RANGE - POINT_RANGE).float().to(images.device)  # MPS has no float64


def _mixture(means: list[list[float]], std: float) -> GaussianMixture:
    k = len(means)
    return GaussianMixture(
        torch.tensor(means, dtype=torch.float64),
        torch.full((k,), std, dtype=torch.float64),
        torch.full((k,), 1 / k, dtype=torch.float64),
    )


#: The exact models by name: the mixture and the prompt of each component.
EXACT_MODELS: dict[str, tuple[GaussianMixture, tuple[str, ...]]] = {
    "exact-gaussian": (_mixture([[0.5, -0.5]], 0.5), ("centre",)),
    "exact-mixture": (
        _mixture([[0.0, 1.5], [1.5, 0.0], [0.0, -1.5], [-1.5, 0.0]], 0.3),
        ("north", "east", "south", "west"),
    ),
}
