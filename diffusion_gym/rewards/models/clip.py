"""CLIP through open_clip (Radford et al. 2021): normalised embeddings of images and texts, for the rewards on them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_gym.chunks import in_chunks
from diffusion_gym.errors import first_run
from diffusion_gym.rewards.models.captioner import to_pillow
from diffusion_gym.rewards.models.weights import not_found
from diffusion_gym_torchvision import repair_torchvision

#: The steps of open_clip's transform that move pixels; the last step normalises, the others convert types.
_GEOMETRY = ("Resize", "ResizeKeepRatio", "CenterCrop", "CenterCropOrPad")


@cache
def load_clip(clip: str, device: str | None) -> "Clip":
    """Return the model, loaded once per process; rewards that name the same one share it.

    Args:
        clip: ``architecture/weights`` with open_clip's names (``ViT-L-14/openai``) or
            with a file (``ViT-L-14-quickgelu/folder/model.pt``); a folder with an open_clip_config.json; or
            ``hf-hub:owner/model``.
        device: where it runs; None follows the images.

    Raises:
        ValueError: unknown names, or weights that cannot be had.
    """
    return Clip(clip, device)


class Clip:
    """Image and text towers in float32.

    Attributes:
        dimension: D, the embedding's size.
    """

    def __init__(self, source: str, device: str | None) -> None:
        """Load weights; see :func:`load_clip`."""
        repair_torchvision()
        import open_clip

        arguments = _arguments(source)
        try:
            self._model = open_clip.create_model(**arguments, require_pretrained=True).eval().requires_grad_(False)
            self._tokenize = open_clip.get_tokenizer(arguments["model_name"])
        except Exception as error:  # open_clip, the hub client and torch raise many unrelated types
            file = arguments.get("pretrained", "")
            not_found("clip", file if Path(file).is_file() else source, error, _hub_id(arguments))
        self._device = device
        if device is not None:
            self._model.to(device)
        config = {**self._model.visual.preprocess_cfg}
        names = ("mean", "std", "interpolation", "resize_mode", "fill_color")
        self._transform = open_clip.image_transform(
            config["size"], is_train=False, **{name: config[name] for name in names if name in config}
        )
        expected = "an image and a text tower with embeddings of one size"
        with first_run(f"clip={source}", "a first small input", expected):
            self.dimension: int = self.embed_texts([""], 1).shape[1]
            self.embed_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 1) @ torch.zeros(self.dimension, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Clip":
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
        return in_chunks(
            lambda part: self._model.encode_image(part.to(device), normalize=True), inputs, chunk_size
        ).float()

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
        embedded_once = in_chunks(
            lambda tokens: self._model.encode_text(tokens, normalize=True),
            self._tokenize(list(index)).to(device),
            chunk_size,
        )
        return embedded_once[torch.tensor([index[text] for text in texts], device=device)].float()

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise with open_clip's own transform of Pillow images.

        Pillow clips overshoots of bicubic resizing between its two passes; torchvision's resizing of tensors does not,
        and is tens of levels off at hard edges.

        Args:
            images: (n, 3, H, W), uint8.

        Returns:
            (n, 3, h, w), float32, on the images' device.
        """
        return torch.stack([self._transform(picture) for picture in to_pillow(images)]).to(images.device)

    def preprocess_pixels(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise as :meth:`preprocess` does, up to rounding, with gradient.

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

    def _place(self, default: torch.device | str) -> torch.device:
        """Move the model to its device, and return the device."""
        device = torch.device(self._device or default)
        self._model.to(device)
        return device


def _arguments(source: str) -> dict[str, Any]:
    """Return the arguments of open_clip's create_model for a name that :func:`load_clip` takes."""
    import open_clip

    if (Path(source) / "open_clip_config.json").is_file():
        return {"model_name": f"local-dir:{source}"}
    if source.startswith("hf-hub:"):
        return {"model_name": source}
    architecture, _, weights = source.partition("/")
    if architecture not in open_clip.list_models() or not weights:
        raise ValueError(
            f"clip={source} names no CLIP; expected ARCHITECTURE/WEIGHTS with open_clip's names (ViT-L-14/openai), a "
            "folder with an open_clip_config.json, or hf-hub:OWNER/MODEL."
        )
    published = open_clip.get_pretrained_cfg(architecture, weights)
    if not published and not Path(weights).is_file():
        known = open_clip.list_pretrained_tags_by_model(architecture)
        raise ValueError(f"clip={source}: {weights!r} is no file, and {architecture} has the weights {known}.")
    # OpenAI's weights were trained with QuickGELU; open_clip only warns where architecture and weights differ in it.
    quick = bool(published.get("quick_gelu"))
    return {"model_name": architecture, "pretrained": weights, **({"force_quick_gelu": True} if quick else {})}


def _hub_id(arguments: dict[str, Any]) -> str | None:
    """Return the hub's repository of the weights, if they have one."""
    import open_clip

    name = arguments["model_name"]
    if name.startswith("hf-hub:"):
        return str(name.removeprefix("hf-hub:"))
    published = open_clip.get_pretrained_cfg(name, arguments["pretrained"]) if "pretrained" in arguments else {}
    return published.get("hf_hub", "").strip("/") or None
