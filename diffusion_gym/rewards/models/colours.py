"""Names the colour of an object by CLIP, zero-shot on its crop, as GenEval does."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_gym.rewards.models.clip import Clip
from diffusion_gym.rewards.models.detection import COLOURS, Found

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
"""GenEval's texts about an object's colour, whose embeddings are averaged."""


@torch.no_grad()
def name_colours(clip: Clip, crops: Sequence[Tensor], names: Sequence[str], chunk_size: int) -> list[str]:
    """Return which of GenEval's ten colours each object has.

    Args:
        clip: compares crops and texts.
        crops: of each object its picture (3, h, w), uint8.
        names: of each object its class.
        chunk_size: crops at a time, and texts.
    """
    seen = clip.embed_crops(crops, chunk_size)
    known = list(dict.fromkeys(names))
    texts = [
        template.format(colour=colour, name=name) for name in known for colour in COLOURS for template in TEMPLATES
    ]
    embedded = clip.embed_texts(texts, chunk_size, seen.device).unflatten(0, (len(known), len(COLOURS), len(TEMPLATES)))
    classes = torch.nn.functional.normalize(embedded.mean(2), dim=-1)  # (classes, colours, D)
    place = torch.tensor([known.index(name) for name in names], device=seen.device)
    best = (classes[place] * seen[:, None]).sum(-1).argmax(1)
    return [COLOURS[index] for index in best.tolist()]


def crop(image: Tensor, found: Found) -> Tensor:
    """Return an object's box of an image (3, H, W), rounded to whole pixels, one at least."""
    height, width = image.shape[1:]
    left, top, right, bottom = (round(value) for value in found.box)
    left, top = min(left, width - 1), min(top, height - 1)
    return image[:, top : max(bottom, top + 1), left : max(right, left + 1)]
