"""The detectors of emoji-world: two models of transformers' classes for object detection, trained apart on renders."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    ConvNextConfig,
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedModel,
    YolosConfig,
    YolosForObjectDetection,
)

from benchmarks.pretrain.emoji_world.facts import COLOURS, NAMES, labels
from benchmarks.pretrain.emoji_world.render import SIDE, Scenes
from benchmarks.pretrain.emoji_world.scenes import CROWDED_SLOTS, World

QUERIES = 10
"""Objects that a detector can find in a picture."""

NOTHING_WEIGHT = 0.3
"""Weight of the class "no object" in the loss."""


def _names() -> dict[str, dict]:
    """Return the configuration's names of the classes."""
    names = dict(enumerate(labels()))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def build_detector() -> DetrForObjectDetection:
    """Return the untrained detector of the reward: DETR on a small ConvNeXt, whose features are 8 x 8."""
    backbone = ConvNextConfig(
        patch_size=2, hidden_sizes=[32, 64, 128], depths=[1, 2, 3], num_stages=3, out_features=["stage3"]
    )
    return DetrForObjectDetection(
        DetrConfig(
            backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
            num_queries=QUERIES, d_model=128, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=256,
            decoder_ffn_dim=256, encoder_attention_heads=4, decoder_attention_heads=4, dropout=0.0, **_names(),
        )
    )  # fmt: skip


def build_judge() -> YolosForObjectDetection:
    """Return the untrained gold judge, of another class: YOLOS, a plain vision transformer on patches of 8 x 8."""
    return YolosForObjectDetection(
        YolosConfig(
            image_size=[SIDE, SIDE], patch_size=8, hidden_size=144, num_hidden_layers=6, num_attention_heads=6,
            intermediate_size=432, num_detection_tokens=QUERIES, use_mid_position_embeddings=False,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **_names(),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Spoiling:
    """How training pictures are spoilt: generated pictures are softer than renders, and detectors must work on both."""

    blur: float = 1.0
    """Largest share of a blurred copy."""
    noise: float = 0.15
    """Largest deviation of the noise, in a picture of [-1, 1]."""
    contrast: float = 0.0
    """Largest change of the contrast and of the brightness."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return pictures (n, 3, h, w), each spoilt by an amount of its own."""
        shape, device = (len(pictures), 1, 1, 1), pictures.device
        blurred = functional.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
        spoilt = torch.lerp(pictures, blurred, self.blur * torch.rand(shape, device=device))
        scale, shift = (self.contrast * (2.0 * torch.rand(shape, device=device) - 1.0) for _ in range(2))
        spoilt = spoilt * (1.0 + scale) + shift
        return spoilt + self.noise * torch.rand(shape, device=device) * torch.randn_like(pictures)


class Detecting:
    """A detector's loss on fresh pictures: DETR's, with an exact matching of queries to objects on the device."""

    def __init__(self, model: PreTrainedModel, world: World, spoiling: Spoiling) -> None:
        """Put the tables on the world's device."""
        self.model, self.world, self.spoiling, device = model, world, spoiling, world.device
        index = {name: place for place, name in enumerate(labels())}
        rows = [[index.get(f"{colour} {name}", place) for colour in COLOURS] for place, name in enumerate(NAMES)]
        self.classes = torch.tensor([[place, *row] for place, row in enumerate(rows)], device=device)
        self.weight = torch.ones(len(index) + 1, device=device)
        self.weight[-1] = NOTHING_WEIGHT
        subsets = torch.arange(2**CROWDED_SLOTS, device=device)[:, None]
        self.bits = 2 ** torch.arange(CROWDED_SLOTS, device=device)
        self.first = torch.tensor([2**count - 1 for count in range(CROWDED_SLOTS + 1)], device=device)
        held = (subsets & self.bits) > 0
        self.without = torch.where(held, subsets ^ self.bits, subsets)
        self.missing = torch.where(held, 0.0, 1e6)
        self.nothing = torch.where(subsets == 0, 0.0, 1e6).T

    def loss(self, rows: int) -> Tensor:
        """Return the loss of DETR on ``rows`` fresh pictures."""
        with torch.no_grad():
            scenes = self.world.crowded(rows)
            pictures = self.spoiling(self.world.draw(scenes))
        output = self.model(pixel_values=pictures)
        return self.compare(output.logits.float(), output.pred_boxes.float(), scenes)

    def compare(self, logits: Tensor, boxes: Tensor, scenes: Scenes) -> Tensor:
        """Return the loss of class logits (n, queries, classes + 1) and boxes (n, queries, 4)."""
        shown = scenes.objects >= 0
        corners = scenes.boxes(self.world.sprites) / SIDE
        kinds = self.classes[scenes.objects.clamp(min=0), scenes.colours]
        found = _corners(boxes)
        with torch.no_grad():
            chance = logits.softmax(-1).gather(2, kinds[:, None].expand(-1, logits.shape[1], -1))
            far = (boxes[:, :, None] - _centres(corners)[:, None]).abs().sum(-1)
            cost = 5.0 * far - chance - 2.0 * _giou(found[:, :, None], corners[:, None])
            match = self.assign(cost, shown.sum(1))
        hit, slot = match >= 0, match.clamp(min=0)
        target = torch.where(hit, kinds.gather(1, slot), len(self.weight) - 1)
        naming = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=self.weight)
        wanted = corners.gather(1, slot[..., None].expand(-1, -1, 4))
        count = hit.sum().clamp(min=1)
        far = ((boxes - _centres(wanted)).abs().sum(-1) * hit).sum() / count
        return naming + 5.0 * far + 2.0 * ((1.0 - _giou(found, wanted)) * hit).sum() / count

    def assign(self, cost: Tensor, count: Tensor) -> Tensor:
        """Return the object of each query, (n, queries) int64, -1 for none, so that the sum of ``cost`` is least.

        Args:
            cost: (n, queries, slots); of slots from ``count`` on it is not looked at.
            count: (n,) objects in each picture.

        The least cost of each subset of the objects is found query by query; that is exact and never leaves the device.
        """
        least = self.nothing.expand(len(cost), -1)
        choices = []
        for query in range(cost.shape[1]):
            taken = (least[:, self.without] + cost[:, query, None] + self.missing).min(dim=2)
            better = taken.values < least
            choices.append(torch.where(better, taken.indices, -1))
            least = torch.where(better, taken.values, least)
        subset, match = self.first[count][:, None], []
        for choice in reversed(choices):
            chosen = choice.gather(1, subset)
            match.append(chosen)
            subset = torch.where(chosen >= 0, subset ^ self.bits[chosen.clamp(min=0)], subset)
        return torch.cat(match[::-1], dim=1)


def _corners(boxes: Tensor) -> Tensor:
    """Turn centres and sizes into left, top, right, bottom; (..., 4)."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def _centres(boxes: Tensor) -> Tensor:
    """Turn left, top, right, bottom into centres and sizes; (..., 4)."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def _giou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalised intersection over union of boxes given by their corners; (..., 4) each, broadcast."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        side = (high - low).clamp(min=0)
        return side[..., 0] * side[..., 1]  # the gradient of prod() waits for the GPU

    both = area(torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:]))
    union = area(first[..., :2], first[..., 2:]) + area(second[..., :2], second[..., 2:]) - both
    hull = area(torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:]))
    return both / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)
