"""CLIP through open_clip (Radford et al. 2021): normalised embeddings of images and texts, for the rewards on them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_gym._torchvision import repair_torchvision
from diffusion_gym.chunks import in_chunks
from diffusion_gym.rewards.weights import not_found


@cache
def load_clip(clip: str, device: str | None) -> "Clip":
    """Return the model, loaded once a process; rewards that name the same one share it.

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
            not_found("clip", source, error, _hub_id(arguments))
        self._device = device
        if device is not None:
            self._model.to(device)
        preprocessing = self._model.visual.preprocess_cfg
        size, mode = preprocessing["size"], preprocessing["resize_mode"]
        height, width = (size, size) if isinstance(size, int) else size
        if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
            raise ValueError(
                f"clip={source} resizes to {height} x {width} by {mode!r}; supported are 'shortest' to a square, and "
                "'squash'."
            )
        self._size, self._interpolation = [height, width], preprocessing["interpolation"]
        self._resize_to = [height] if mode == "shortest" else [height, width]
        self._mean = torch.tensor(preprocessing["mean"])[:, None, None]
        self._std = torch.tensor(preprocessing["std"])[:, None, None]
        with torch.no_grad():
            self.dimension: int = self._model.encode_text(self._tokenize([""]).to(self._place("cpu"))).shape[1]

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
        device = self._place(images.device)
        return in_chunks(
            lambda part: self._model.encode_image(self.preprocess(part.to(device)), normalize=True), images, chunk_size
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
        """Resize, crop and normalise as open_clip's transform does to a Pillow image, to within one level of 255.

        The shorter side is resized to the model's (bicubic as a rule, antialiased), values are rounded to whole levels
        as Pillow stores them, and the centre is cropped; a model that squashes resizes both sides instead.

        Args:
            images: (n, 3, H, W), uint8.

        Returns:
            (n, 3, h, w), float32.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as transforms

        resized = transforms.resize(images, self._resize_to, InterpolationMode(self._interpolation), antialias=True)
        cropped = transforms.center_crop(resized, self._size)
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        return (cropped.float() / 255 - mean) / std

    def _place(self, default: torch.device | str) -> torch.device:
        """Move the model where it is to run, and return where that is."""
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
