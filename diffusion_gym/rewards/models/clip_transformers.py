"""CLIP under transformers' names of weights, for rewards that were published so."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.errors import first_run
from diffusion_gym.libraries import no_progress_bars
from diffusion_gym.rewards.models.embedder import Embedder, Preprocess
from diffusion_gym.rewards.models.weights import not_found
from diffusion_gym_torchvision import repair_torchvision


@cache
def load_transformers_clip(model: str, processor: str, device: str | None) -> "TransformersClip":
    """Return the model, loaded once per process; arguments as :class:`TransformersClip`'s."""
    return TransformersClip(model, processor, device)


class TransformersClip(Embedder):
    """A CLIPModel of transformers.

    Pictures are resized by Pillow, as by transformers' processors until version 4 (newer ones resize tensors, which
    differs at hard edges).

    Attributes:
        logit_scale: the factor of the cosine that was learned, ``exp`` of the weight of that name.
    """

    def __init__(self, model: str, processor: str, device: str | None) -> None:
        """Load weights, tokenizer and the processor's settings.

        Args:
            model: folder or hub id with the weights.
            processor: folder or hub id with tokenizer and preprocessor_config.json.
            device: where it runs; None follows the images.

        Raises:
            ValueError: weights that cannot be had or lack a tensor, or a processor that crops in another way.
        """
        repair_torchvision()
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        try:
            with no_progress_bars():
                loaded, info = CLIPModel.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
        except Exception as error:  # transformers and the hub client raise many unrelated types
            not_found("model", model, error)
        if info["missing_keys"]:
            # transformers fills them with random numbers and warns.
            raise ValueError(
                f"model={model} lacks the weights {sorted(info['missing_keys'])[:3]}; expected a CLIPModel."
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(processor)
            settings = CLIPImageProcessor.from_pretrained(processor)
        except Exception as error:
            not_found("processor", processor, error)
        clip = loaded.eval().requires_grad_(False)
        length = clip.config.text_config.max_position_embeddings

        def tokenize(texts: Sequence[str]) -> Tensor:
            rows = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            # What follows a text's end cannot be seen by the tokens up to it, so no mask is needed.
            return rows["input_ids"]

        def encode_image(inputs: Tensor) -> Tensor:
            return _unit(clip.visual_projection(clip.vision_model(pixel_values=inputs).pooler_output))

        def encode_text(tokens: Tensor) -> Tensor:
            return _unit(clip.text_projection(clip.text_model(input_ids=tokens).pooler_output))

        preprocess = _preprocess(settings, processor)
        with first_run(f"model={model}", "a first small input", f"a CLIPModel that fits processor={processor}"):
            super().__init__(clip, preprocess, encode_image, encode_text, tokenize, device)
        self.logit_scale = float(clip.logit_scale.exp())


def _unit(embeddings: Tensor) -> Tensor:
    return nn.functional.normalize(embeddings, dim=-1)


def _preprocess(settings: Any, processor: str) -> Preprocess:
    """Return a processor's preprocessing; raises ValueError unless it crops the centre after resizing, bicubic."""
    side: Any = dict(settings.size).get("shortest_edge")
    crop = dict(settings.crop_size or {})
    if not settings.do_center_crop or {side} != set(crop.values()) or int(settings.resample) != 3:
        raise ValueError(
            f"processor={processor} resizes to {settings.size} and crops to {settings.crop_size}; expected CLIP's: the "
            "shorter side to one size, bicubic, and a square of that size from the centre."
        )
    return Preprocess(side, mean=tuple(settings.image_mean), std=tuple(settings.image_std))
