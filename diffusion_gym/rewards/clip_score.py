"""CLIP score (Hessel et al. 2021): how well an image fits its prompt, by the cosine of their embeddings."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.rewards.models.clip import load_clip
from diffusion_gym.rewards.models.embedder import Embedder
from diffusion_gym.rewards.models.weights import check_placement, embedded


class PromptCosine:
    """``scale * cos(image, text)`` of a model that a subclass loads, with the prompt's text in a template."""

    def __init__(self, clip: Embedder, template: str, scale: float, chunk_size: int) -> None:
        """Take a loaded model; ``template`` holds ``{prompt}``, ``chunk_size`` counts images at a time, and texts."""
        self._clip, self._template, self._scale, self._chunk_size = clip, template, scale, chunk_size

    def __deepcopy__(self, memo: dict[int, Any]) -> "PromptCosine":
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32."""
        return self._compare(self._clip.embed_images(images, self._chunk_size), prompts).to(images.device)

    def pixels(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32, with gradient to images (n, 3, H, W), float32 in [0, 1]."""
        return self._compare(self._clip.embed_pixels(images, self._chunk_size), prompts).to(images.device)

    def _compare(self, seen: Tensor, prompts: Sequence[str]) -> Tensor:
        texts = [self._template.replace("{prompt}", prompt) for prompt in prompts]
        return self._scale * (seen * self._clip.embed_texts(texts, self._chunk_size, seen.device)).sum(1)


class ClipScore(PromptCosine):
    """``scale * cos(image, text)``; by default in -100 to 100, as torchmetrics gives it, but not cut at 0."""

    name = "clip_score"

    def __init__(
        self,
        clip: str | None = None,
        template: str = "{prompt}",
        scale: float = 100.0,
        chunk_size: int = 16,
        device: str | None = None,
    ) -> None:
        """Load CLIP.

        Args:
            clip: as in :func:`diffusion_gym.rewards.models.clip.load_clip`; None is the embedded model.
            template: the text that is compared with the image, with ``{prompt}`` in the prompt's place. Hessel et al.
                use ``A photo depicts {prompt}``.
            scale: factor of the cosine.
            chunk_size: images at a time, and texts.
            device: where the model runs; None follows the images.

        Raises:
            ValueError: weights that cannot be had, a template without ``{prompt}``, or a scale that is no number.
        """
        check_placement(chunk_size, device)
        check_template(template)
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}.")
        super().__init__(load_clip(clip or embedded("clip"), device), template, scale, chunk_size)


def check_template(template: str) -> None:
    """Raise ValueError for a template without a place for the prompt."""
    if "{prompt}" not in template:
        raise ValueError(f"the template must hold {{prompt}}, got {template!r}.")
