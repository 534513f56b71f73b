"""GenEval's protocol (Ghosh et al. 2023, evaluate_images.py): does a picture show what its prompt asks?"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.pretrain.emoji_world.facts import COLOURS, NAMES
from benchmarks.pretrain.emoji_world.render import SIDE, Scenes
from benchmarks.pretrain.emoji_world.sprites import Sprites

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Least confidence of an object that counts, and of one in a counting prompt."""

POSITION_MARGIN = 0.1
"""Share of the two objects' sizes by which their centres must be apart."""


class Found(NamedTuple):
    """One object in a picture."""

    name: str
    """Of ``NAMES``."""
    colour: str
    """Of ``COLOURS``, or "" where the object has its own colours."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels."""
    confidence: float = 1.0
    """Of the detector."""


def relations(first: Found, second: Found) -> set[str]:
    """Return how the first object lies to the second."""
    offset, apart = [], []
    for axis in (0, 1):
        low, high = first.box[axis], first.box[axis + 2]
        other_low, other_high = second.box[axis], second.box[axis + 2]
        distance = (low + high - other_low - other_high) / 2
        margin = POSITION_MARGIN * (high - low + other_high - other_low)
        offset.append(distance)
        apart.append(math.copysign(max(abs(distance) - margin, 0.0), distance))
    length = math.hypot(*offset)
    if max(map(abs, apart)) < 1e-3:
        return set()
    across, down = apart[0] / length, apart[1] / length
    held = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, true in held.items() if true}


def is_right(found: Sequence[Found], record: dict[str, Any]) -> bool:
    """Return whether a picture with these objects shows what the record asks.

    As in GenEval, colours and positions are those of the objects that the detector is surest of.
    """
    least = COUNTING_THRESHOLD if record["tag"] == "counting" else THRESHOLD
    sure = sorted((one for one in found if one.confidence > least), key=lambda one: -one.confidence)
    groups: list[list[Found]] = []
    for asked in record["include"]:
        group = [one for one in sure if one.name == asked["class"]][: asked["count"]]
        if len(group) < asked["count"]:
            return False
        if "color" in asked and any(one.colour != asked["color"] for one in group):
            return False
        if "position" in asked:
            relation, target = asked["position"]
            if any(relation not in relations(one, other) for one in group for other in groups[target]):
                return False
        groups.append(group)
    names = [one.name for one in sure]
    return all(names.count(banned["class"]) < banned["count"] for banned in record.get("exclude", []))


@torch.no_grad()
def detect(model: PreTrainedModel, pictures: Tensor, batch: int = 128) -> list[list[Found]]:
    """Return what a detector finds in pictures (n, 3, 64, 64) in [-1, 1], at any confidence above 0.1."""
    results = []
    for part in pictures.split(batch):
        output = model(pixel_values=part)
        confidence, label = output.logits.softmax(-1)[..., :-1].max(-1)
        middle, half = output.pred_boxes[..., :2], output.pred_boxes[..., 2:] / 2
        corners = torch.cat([middle - half, middle + half], dim=-1) * SIDE
        for row in zip(confidence.tolist(), label.tolist(), corners.tolist(), strict=True):
            results.append([_found(model, *one) for one in zip(*row, strict=True) if one[0] > 0.1])
    return results


def _found(model: PreTrainedModel, confidence: float, label: int, box: list[float]) -> Found:
    """Return a detected object; its class is a name with or without a colour in front."""
    colour, _, name = f" {model.config.id2label[label]}".rpartition(" ")
    return Found(name, colour.strip(), (box[0], box[1], box[2], box[3]), confidence)


def shown(scenes: Scenes, sprites: Sprites) -> list[list[Found]]:
    """Return what scenes truly show."""
    colours, boxes = ["", *COLOURS], scenes.boxes(sprites).tolist()
    pictures = []
    for row in zip(scenes.objects.tolist(), scenes.colours.tolist(), boxes, strict=True):
        objects = [one for one in zip(*row, strict=True) if one[0] >= 0]
        pictures.append([Found(NAMES[index], colours[colour], tuple(box)) for index, colour, box in objects])
    return pictures
