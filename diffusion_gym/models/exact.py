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
from torch import Tensor

from diffusion_gym.models.base import PROMPT_EMBEDDING, Conditioning, Denoiser, DiffusionModel, LoRAConfig
from diffusion_gym.models.exact_denoisers import ExactDenoiser, ExactFlowDenoiser, MixtureDenoiser
from diffusion_gym.models.gaussian_mixture import GaussianMixture
from diffusion_gym.recommended import EXACT
from diffusion_gym.transitions import FlowSchedule, make_flow_schedule

POINT_RANGE = 8.0
_BLOCK = 8
_LEVELS = 2**16 - 1


class ExactModel(DiffusionModel):
    """A Gaussian mixture as a diffusion model; each prompt names one component, ``"anywhere"`` and ``""`` all."""

    prompt_fields: ClassVar[frozenset[str]] = frozenset({"negative_prompt"})
    default_prompts: str | tuple[str, ...] = ("anywhere",)
    recommended = EXACT

    def __init__(self, name: str, mixture: GaussianMixture, components: Sequence[str], device: torch.device) -> None:
        """Args: components: K prompts, one for each component of the mixture."""
        self.name, self.device, self.dtype, self.target = name, device, "float32", mixture
        self.scheduler_config = self._scheduler_config()
        self._prompts = {"": slice(None), "anywhere": slice(None)} | {
            p: slice(k, k + 1) for k, p in enumerate(components)
        }
        k, d = mixture.means.shape
        self.latent_shape, self.image_shape = (d, 1, 1), (3, _BLOCK, _BLOCK * d)
        self.conditioning_shapes = {PROMPT_EMBEDDING: (1, k)}

    def _scheduler_config(self) -> dict[str, Any]:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            timestep_spacing="trailing",
        )
        self._alphas_cumprod = scheduler.alphas_cumprod
        return dict(scheduler.config)

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

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Write each point (n, d, 1, 1) as blocks of 16-bit values; beyond [-8, 8] the code saturates.

        The gradient passes straight through the rounding, by way of the high byte: :func:`read_points` of the pixels
        has the gradient 1 with respect to the point.
        """
        points = latents.flatten(1).clamp(-POINT_RANGE, POINT_RANGE)
        exact = (points + POINT_RANGE) / (2 * POINT_RANGE) * _LEVELS
        level = exact.detach().round()
        high = (level // 256 + (exact - exact.detach()) / 256) / 255
        code = torch.stack([high, level % 256 / 255, torch.full_like(level, 128 / 255)], 1)
        return code.repeat_interleave(_BLOCK, 2)[:, :, None, :].expand(-1, -1, _BLOCK, -1).contiguous()

    def encode_images(self, images: Tensor) -> Tensor:
        """Read the points back, (n, d, 1, 1), float32."""
        return read_points(images)[..., None, None]

    def build_denoiser(self, lora: LoRAConfig | None = None) -> MixtureDenoiser:
        """Return the closed-form denoiser with the mixture's parameters to train."""
        if lora is not None:
            raise ValueError(
                "the exact family has no linear layers for LoRA; train its full weights (trainable='full')."
            )
        return self._denoiser().to(self.device)

    def _denoiser(self) -> MixtureDenoiser:
        return ExactDenoiser(self.target, self._alphas_cumprod)

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


class ExactFlowModel(ExactModel):
    """The same mixture as a flow-matching model: the exact velocity, on a grid of T equal steps from 1 to 0."""

    def _scheduler_config(self) -> dict[str, Any]:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return dict(FlowMatchEulerDiscreteScheduler().config)

    def schedule(self, num_inference_steps: int) -> FlowSchedule:
        """Return the sampling grid ``t = 1, 1 - 1/T, ..., 1/T``."""
        return make_flow_schedule(self.scheduler_config, num_inference_steps, 1, equal_steps=True)

    def _denoiser(self) -> MixtureDenoiser:
        return ExactFlowDenoiser(self.target, self.scheduler_config["num_train_timesteps"])


def read_points(images: Tensor) -> Tensor:
    """Return the points (n, d), float32, of the exact family's images (n, 3, 8, 8 d), uint8 or float32 in [0, 1]."""
    levels = images * 255 if images.is_floating_point() else images
    level = (levels[:, :2, 0, ::_BLOCK].cpu().double() * torch.tensor([[256.0], [1.0]])).sum(1)  # MPS has no float64
    return (level / _LEVELS * 2 * POINT_RANGE - POINT_RANGE).float().to(images.device)


def _mixture(means: list[list[float]], std: float) -> GaussianMixture:
    k = len(means)
    return GaussianMixture(
        torch.tensor(means, dtype=torch.float64),
        torch.full((k,), std, dtype=torch.float64),
        torch.full((k,), 1 / k, dtype=torch.float64),
    )


_GAUSSIAN = (_mixture([[0.5, -0.5]], 0.5), ("centre",))
_COMPASS = (
    _mixture([[0.0, 1.5], [1.5, 0.0], [0.0, -1.5], [-1.5, 0.0]], 0.3),
    ("north", "east", "south", "west"),
)

#: The exact diffusion models by name: the mixture and the prompt of each component.
EXACT_MODELS: dict[str, tuple[GaussianMixture, tuple[str, ...]]] = {
    "exact-gaussian": _GAUSSIAN,
    "exact-mixture": _COMPASS,
}
#: The same mixtures as flow-matching models.
EXACT_FLOW_MODELS: dict[str, tuple[GaussianMixture, tuple[str, ...]]] = {
    "exact-flow-gaussian": _GAUSSIAN,
    "exact-flow-mixture": _COMPASS,
}
