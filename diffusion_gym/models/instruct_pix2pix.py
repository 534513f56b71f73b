"""The InstructPix2Pix family: Stable Diffusion's UNet that edits the prompt's image, as the prompt says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.models.base import PROMPT_EMBEDDING, Conditioning
from diffusion_gym.models.pipeline import PipelineDenoiser
from diffusion_gym.models.stable_diffusion import StableDiffusion, UNetDenoiser
from diffusion_gym.prompt_records import Prompt
from diffusion_gym.recommended import INSTRUCT_PIX2PIX

#: The image's latents (c, h, w) as the VAE gives them, not scaled; zeros without an image.
IMAGE_LATENTS = "image_latents"
#: The tag of a photograph's orientation, and the first of its values that swap width and height.
_ORIENTATION, _LYING = 0x0112, 5


class EditingDenoiser(UNetDenoiser):
    """A UNet2DConditionModel that takes the image's latents after the noisy ones, in further channels."""

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon or v, (n, c, h, w)."""
        return super().forward(torch.cat([latents, conditioning[IMAGE_LATENTS]], 1), timesteps, conditioning)


class InstructPix2Pix(StableDiffusion):
    """A StableDiffusionInstructPix2PixPipeline folder or hub id; each prompt has the image that it edits."""

    denoiser_class: ClassVar[type[PipelineDenoiser]] = EditingDenoiser
    prompt_fields: ClassVar[frozenset[str]] = StableDiffusion.prompt_fields | {"image"}
    image_conditioning: ClassVar[frozenset[str]] = frozenset({IMAGE_LATENTS})
    latent_inputs: ClassVar[int] = 2
    recommended = INSTRUCT_PIX2PIX

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> Any:
        """Return None: the call takes an image, which a model card does not have."""
        return None

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._conditioning_shapes(), IMAGE_LATENTS: self.latent_shape}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts without an image: (n, L, D), and latents of zeros, (n, c, h, w), float32."""
        embedding = self.pipe._encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        zeros = torch.zeros(len(prompts), *self.latent_shape, device=self.device)
        return {PROMPT_EMBEDDING: embedding.float(), IMAGE_LATENTS: zeros}

    def check_records(self, records: Sequence[Prompt]) -> None:
        """Raise ValueError for a record whose image is missing, no picture, or of another shape than the model's."""
        super().check_records(records)
        for record in records:
            picture = _opened(record, self.name)
            width, height = picture.size if picture.getexif().get(_ORIENTATION, 1) < _LYING else picture.size[::-1]
            _, rows, columns = self.image_shape
            if width * rows != height * columns:
                raise ValueError(
                    f"the image of the prompt {record.text!r} has {width} x {height} pixels, and {self.name!r} edits "
                    f"pictures of {columns} x {rows}; crop it to this shape (any size of it will do)."
                )

    @torch.no_grad()
    def encode_prompt_images(self, records: Sequence[Prompt]) -> Conditioning:
        """Encode the images of n records: the VAE's modes, not scaled, (n, c, h, w), float32; raises as the check does.

        An image of another size is scaled to the model's, as the pipeline's image processor does.
        """
        self.check_records(records)
        _, height, width = self.image_shape
        pictures = [_opened(record, self.name, pixels=True) for record in records]
        pixels = self.pipe.image_processor.preprocess(pictures, height, width).to(self.device)
        return {IMAGE_LATENTS: self._to_latents(pixels) / self.pipe.vae.config.scaling_factor}


def _opened(record: Prompt, model: str, pixels: bool = False) -> Image.Image:
    """Return a record's image: of a file its head alone, or, with ``pixels``, all of it, upright and in RGB."""
    if record.image is None:
        raise ValueError(
            f"the prompt {record.text!r} has no image, which the model {model!r} edits; give a record, as in "
            f"{{'prompt': {record.text!r}, 'image': 'FILE.png'}}."
        )
    from diffusers.utils import load_image

    try:
        picture = Image.open(record.image) if isinstance(record.image, str | Path) else record.image
        return load_image(picture) if pixels else picture
    except OSError as error:
        raise ValueError(f"the image of the prompt {record.text!r} cannot be read: {error}.") from error
