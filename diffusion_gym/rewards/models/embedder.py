"""Embeddings of images and texts by a model with two towers: preprocessing, chunks, and what is shared by loaders."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_gym.chunks import in_chunks
from diffusion_gym.rewards.models.captioner import to_pillow

#: The steps of open_clip's transform that move pixels; the last step normalises, the others convert types.
_GEOMETRY = ("Resize", "ResizeKeepRatio", "CenterCrop", "CenterCropOrPad")


class Preprocess:
    """open_clip's own transform of Pillow images, and the same with a gradient to the pixels."""

    def __init__(self, size: int | Sequence[int], **changes: Any) -> None:
        """Take the side in pixels, and ``mean``, ``std``, ``interpolation``, ``resize_mode`` or ``fill_color``.

        The defaults are OpenAI's mean and deviation, bicubic, and a centre crop after resizing the shorter side.
        """
        import open_clip

        self._transform = open_clip.image_transform(size, is_train=False, **changes)

    def levels(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise.

        Pillow clips overshoots of bicubic resizing between its two passes; torchvision's resizing of tensors does not,
        and is tens of levels off at hard edges.

        Args:
            images: (n, 3, H, W), uint8.

        Returns:
            (n, 3, h, w), float32, on the images' device.
        """
        return torch.stack([self._transform(picture) for picture in to_pillow(images)]).to(images.device)

    def pixels(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise as :meth:`levels` does, up to rounding, with gradient.

        Args:
            images: (n, 3, H, W), float32 in [0, 1].

        Returns:
            (n, 3, h, w), float32, on the images' device.
        """
        resize, *crops = (step for step in self._transform.transforms if type(step).__name__ in _GEOMETRY)
        height, width = images.shape[2:]
        size = resize(Image.new("RGB", (width, height))).size[::-1]
        levels = images * 255  # a crop's fill colour is a level
        # One axis after the other, clipped in between, as Pillow does.
        for shape in ((height, size[1]), size):
            if tuple(levels.shape[2:]) != shape:
                mode = resize.interpolation.value
                levels = nn.functional.interpolate(levels, shape, mode=mode, antialias=True).clamp(0, 255)
        for crop in crops:
            levels = crop(levels)
        return self._transform.transforms[-1](levels / 255)


class Embedder:
    """Image and text towers in float32, whose embeddings are compared by their cosine.

    A subclass loads the model.

    Attributes:
        dimension: D, the embedding's size.
    """

    dimension: int

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        encode_image: Callable[[Tensor], Tensor],
        encode_text: Callable[[Tensor], Tensor],
        tokenize: Callable[[Sequence[str]], Tensor],
        device: str | None,
    ) -> None:
        """Set up a loaded model, and run it once on a small input.

        Args:
            model: moved to the device.
            preprocess: of pictures.
            encode_image: of what ``preprocess`` returns; (n, D) of length 1.
            encode_text: of what ``tokenize`` returns; (n, D) of length 1.
            tokenize: texts to whole numbers (n, L), L the same in every call.
            device: where it runs; None follows the images.
        """
        self._model, self._preprocess, self._tokenize, self._device = model, preprocess, tokenize, device
        self._encode_image, self._encode_text = encode_image, encode_text
        if device is not None:
            model.to(device)
        self.dimension = self.embed_texts([""], 1).shape[1]
        self.embed_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 1) @ torch.zeros(self.dimension, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Embedder":
        return self

    @torch.no_grad()
    def embed_images(self, images: Tensor, chunk_size: int) -> Tensor:
        """Embed pictures.

        Args:
            images: (n, 3, H, W), uint8.
            chunk_size: images at a time.

        Returns:
            (n, D), float32, of length 1, on the model's device.
        """
        return self._embed_inputs(self.preprocess(images), chunk_size)

    @torch.no_grad()
    def embed_crops(self, crops: Sequence[Tensor], chunk_size: int) -> Tensor:
        """Embed one or more pictures of any sizes, each (3, H, W), uint8, as :meth:`embed_images` does."""
        return self._embed_inputs(torch.cat([self.preprocess(crop[None]) for crop in crops]), chunk_size)

    def embed_pixels(self, images: Tensor, chunk_size: int) -> Tensor:
        """Embed pictures (n, 3, H, W), float32 in [0, 1], as :meth:`embed_images` does, with gradient to the pictures.

        The embeddings are those of the rounded pictures up to the rounding of levels.
        """
        return self._embed_inputs(self.preprocess_pixels(images), chunk_size)

    def _embed_inputs(self, inputs: Tensor, chunk_size: int) -> Tensor:
        device = self._place(inputs.device)
        return in_chunks(lambda part: self._encode_image(part.to(device)), inputs, chunk_size).float()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], chunk_size: int, device: torch.device | str = "cpu") -> Tensor:
        """Embed texts, each once however often it occurs; what is longer than the context is cut.

        Args:
            texts: n texts.
            chunk_size: texts at a time.
            device: where to, if the model has no device of its own.

        Returns:
            (n, D), float32, of length 1, on the model's device.
        """
        device = self._place(device)
        index = {text: position for position, text in enumerate(dict.fromkeys(texts))}
        embedded_once = in_chunks(self._encode_text, self._tokenize(list(index)).to(device), chunk_size)
        return embedded_once[torch.tensor([index[text] for text in texts], device=device)].float()

    def preprocess(self, images: Tensor) -> Tensor:
        """Return the model's inputs for pictures (n, 3, H, W), uint8; see :meth:`Preprocess.levels`."""
        return self._preprocess.levels(images)

    def preprocess_pixels(self, images: Tensor) -> Tensor:
        """Return the model's inputs for pictures (n, 3, H, W), float32 in [0, 1]; see :meth:`Preprocess.pixels`."""
        return self._preprocess.pixels(images)

    def _place(self, default: torch.device | str) -> torch.device:
        """Move the model to its device, and return the device."""
        device = torch.device(self._device or default)
        self._model.to(device)
        return device
