"""Images of a pipeline's VAE: decoding with and without gradient, and encoding."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.chunks import in_chunks
from diffusion_gym.models.base import DiffusionModel, rounded
from diffusion_gym.models.probe import check_finite

#: Images that the VAE decodes or encodes at once, and pixels beyond which it is fewer: on the embedded model (64 x 64)
#: 4 take 5.8 ms each of a processor's thread, 8 take 5.3, and 1 takes 9.8; larger images gain nothing, and one of
#: 512 x 512 takes gigabytes.
_IMAGES_AT_ONCE = 4
_PIXELS_AT_ONCE = _IMAGES_AT_ONCE * 64 * 64


class ImageModel(DiffusionModel):
    """A model whose pipeline turns latents into images, by a VAE or by :meth:`_to_pixels` of its own.

    Attributes:
        pipe: the diffusers pipeline.
    """

    pipe: Any

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Decode to images (n, 3, H, W), float32 in [0, 1], with gradient to the latents.

        Always as many images at once, the last chunk filled up, so that an image's pixels do not depend on how many are
        decoded, which the JPEG rewards would notice: 4 of up to 64 x 64 pixels, and from 91 x 91 on one.

        Raises:
            ValueError: pixels that are not finite, as of a VAE that overflows in float16.
        """
        return self._decoded(latents, lambda pixels: pixels)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode to images (n, 3, H, W), uint8: :meth:`decode_pixels`, rounded chunk by chunk to save memory."""
        return self._decoded(latents, rounded)

    def _decoded(self, latents: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        finite: list[Tensor] = []

        def to_images(chunk: Tensor) -> Tensor:
            pixels = self._to_pixels(chunk)
            finite.append(pixels.isfinite().all())
            return finish((pixels / 2 + 0.5).clamp(0, 1))

        images = in_chunks(to_images, latents.to(self.device), self.images_at_once)
        check_finite(self.name, "a picture decoded by the VAE", self._vae_dtype, torch.stack(finite).all())
        return images

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode with the VAE (the mode of its posterior); (n, c, h, w), float32, scaled latent units.

        In the chunks of :meth:`decode_pixels`; raises as that does.
        """
        latents = in_chunks(
            lambda chunk: self._to_latents(chunk.to(self.device).float() / 127.5 - 1), images, self.images_at_once
        )
        check_finite(self.name, "a picture encoded by the VAE", self._vae_dtype, latents.isfinite().all())
        return latents

    @property
    def decodes_whole(self) -> bool:
        """Return whether latents can be decoded only as a whole; the VAE's convolutions take any part of them."""
        return type(self)._to_pixels is not ImageModel._to_pixels

    def _to_pixels(self, latents: Tensor) -> Tensor:
        """Decode latents (m, c, h, w), float32, to pixels (m, 3, H, W), float32, in [-1, 1] where they are valid."""
        vae = self.pipe.vae
        scale, shift = vae_scale(vae)
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor * scale + shift
        return vae.decode(scaled, return_dict=False)[0].float()

    def _to_latents(self, pixels: Tensor) -> Tensor:
        """Encode pixels (m, 3, H, W), float32, in [-1, 1], to latents (m, c, h, w), float32."""
        vae = self.pipe.vae
        scale, shift = vae_scale(vae)
        encoded = vae.encode(pixels.to(vae.dtype))
        # An AutoencoderTiny returns latents, the others a posterior.
        mode = (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()).float()
        return (mode - shift) / scale * vae.config.scaling_factor

    @property
    def images_at_once(self) -> int:
        """Return how many images the VAE decodes, or encodes, in one pass: 4 of up to 64 x 64 pixels, down to one."""
        return max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // math.prod(self.image_shape[1:])))

    @property
    def _vae_dtype(self) -> object:
        vae = getattr(self.pipe, "vae", None)
        return self.dtype if vae is None else vae.dtype


def vae_scale(vae: Any) -> tuple[float | Tensor, float | Tensor]:
    """Return scale and shift of a VAE beside its ``scaling_factor``: ``z = latents / factor * scale + shift``."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        like = {"device": vae.device, "dtype": vae.dtype}
        return torch.tensor(std, **like).reshape(1, -1, 1, 1), torch.tensor(mean, **like).reshape(1, -1, 1, 1)
    return 1.0, getattr(config, "shift_factor", None) or 0.0
