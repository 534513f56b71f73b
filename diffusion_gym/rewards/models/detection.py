"""Object detectors of transformers: with classes of their own, or zero-shot, whose queries are the classes asked."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_gym.errors import first_run
from diffusion_gym.libraries import no_progress_bars
from diffusion_gym.rewards.models.weights import not_found
from diffusion_gym_torchvision import repair_torchvision

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's names of colours."""

ALIASES = {
    "computer mouse": "mouse",
    "tv remote": "remote",
    "computer keyboard": "keyboard",
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
    "hair drier": "hair dryer",
}
"""GenEval's names of COCO's classes -> the names that some detectors give them."""


class Found(NamedTuple):
    """One object in a picture."""

    name: str
    """Its class."""
    colour: str
    """Its colour, or "" where it was not named or is the object's own."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels."""
    confidence: float = 1.0
    """Of the detector."""


@cache
def load_detector(model: str, device: str | None) -> "Detector":
    """Return the detector, loaded once per process; arguments as :class:`Detector`'s."""
    return Detector(model, device)


class Detector:
    """A model of ``AutoModelForObjectDetection`` or ``AutoModelForZeroShotObjectDetection``, frozen, in float32.

    Attributes:
        labels: name -> its colour and class, ("", "fox") of "fox" and ("red", "fox") of "red fox"; None where the
            classes are asked for (zero-shot).
        names_colours: whether the classes tell colours: "red fox" beside "fox".
        model: the network.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        """Load model and processor.

        Args:
            model: folder or hub id.
            device: where it runs; None follows the images.

        Raises:
            ValueError: weights that cannot be loaded, or a model of another kind.
        """
        repair_torchvision()
        import transformers as t

        try:
            with no_progress_bars():
                config = t.AutoConfig.from_pretrained(model)
                zero_shot = type(config) in t.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING
                if not zero_shot and type(config) not in t.MODEL_FOR_OBJECT_DETECTION_MAPPING:
                    raise ValueError(f"a {config.model_type} is no object detection model of transformers")
                loader = t.AutoModelForZeroShotObjectDetection if zero_shot else t.AutoModelForObjectDetection
                loaded = loader.from_pretrained(model, dtype=torch.float32)
                self._processor = (t.AutoProcessor if zero_shot else t.AutoImageProcessor).from_pretrained(model)
        except Exception as error:  # transformers and the hub client raise many unrelated types
            not_found("detector", model, error)
        self.model = loaded.eval().requires_grad_(False)
        self._device, self.source, self._kind = device, model, str(config.model_type)
        if device is not None:
            self.model.to(device)
        self.labels = None if zero_shot else _labels(config.id2label)
        self.names_colours = any(colour for colour, _ in (self.labels or {}).values())
        self._post = self._processor.post_process_grounded_object_detection if zero_shot else None
        expected = "an object detection model of transformers such as DETR, YOLOS, RT-DETR, OWL-ViT or Grounding DINO"
        with first_run(f"detector={model} (a {self._kind})", "a first small picture", expected):
            self(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [("cat",)], 0.5, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Detector":
        return self

    def label_of(self, name: str) -> str | None:
        """Return the name that the detector has for a class, or None if it does not know it."""
        if self.labels is None:
            return name
        name, known = name.lower(), {base for _, base in self.labels.values()}
        if name in known:
            return name
        others = [ours for theirs, ours in ALIASES.items() if theirs == name]
        others += [theirs for theirs, ours in ALIASES.items() if ours == name]
        return next((other for other in others if other in known), None)

    def knows_colour(self, name: str, colour: str) -> bool:
        """Return whether one of the detector's classes is this object in this colour."""
        return self.labels is not None and (colour, self.label_of(name)) in self.labels.values()

    @torch.no_grad()
    def __call__(
        self, images: Tensor, classes: Sequence[Sequence[str]], threshold: float, chunk_size: int
    ) -> list[list[Found]]:
        """Return what is in each image.

        Args:
            images: (n, 3, H, W), uint8.
            classes: of each image, the names of the classes that are asked for: the queries, if it is zero-shot.
            threshold: least confidence.
            chunk_size: images at a time; the last ones are padded.

        Returns:
            Of each image its objects, the surest first, boxes within the image; those that are asked for under the
            names by which they are asked for, others under the detector's.
        """
        device = torch.device(self._device or images.device)
        self.model.to(device)
        found: dict[int, list[Found]] = {}
        for rows in self._chunks(classes, chunk_size):
            padded = [*rows, *rows[-1:] * (chunk_size - len(rows))]
            results = self._detect(images[padded], [classes[row] for row in padded], threshold, device)
            for row, result in zip(rows, results, strict=False):
                found[row] = self._found(result, classes[row], images.shape)
        return [found[row] for row in range(len(images))]

    def _chunks(self, classes: Sequence[Sequence[str]], size: int) -> list[list[int]]:
        """Return which images are looked at together; zero-shot, those with as many queries as each other.

        OWL-ViT fills up the queries of an image with empty ones, which can win against its own.
        """
        numbers = [0 if self.labels is not None else len(names) for names in classes]
        alike = [[row for row, number in enumerate(numbers) if number == one] for one in sorted(set(numbers))]
        return [rows[start : start + size] for rows in alike for start in range(0, len(rows), size)]

    def _detect(
        self, images: Tensor, queries: Sequence[Sequence[str]], threshold: float, device: torch.device
    ) -> list[dict[str, Any]]:
        """Return the processor's results: scores, labels and boxes of each image."""
        pictures, more = list(images.cpu()), {"input_data_format": "channels_first", "return_tensors": "pt"}
        sizes = [tuple(images.shape[2:])] * len(images)
        if self._post is None:
            inputs = self._processor(images=pictures, **more).to(device)
            outputs = self.model(**inputs)
            return list(self._processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes))
        prefix = "a photo of a " if self._kind.startswith("owl") else ""
        texts = [[prefix + name for name in names] for names in queries]
        inputs = self._processor(text=texts, images=pictures, padding=True, **more).to(device)
        outputs = self.model(**inputs)
        offered = {"input_ids": inputs.get("input_ids"), "text_labels": [list(names) for names in queries]}
        takes = inspect.signature(self._post).parameters
        chosen = {name: value for name, value in offered.items() if name in takes}
        return list(self._post(outputs=outputs, threshold=threshold, target_sizes=sizes, **chosen))

    def _found(self, result: Mapping[str, Any], asked: Sequence[str], shape: torch.Size) -> list[Found]:
        """Return the objects of one image."""
        height, width = shape[2:]
        names = {self.label_of(name): name for name in asked}
        objects = []
        for name, score, box in zip(
            self._names(result, asked), result["scores"].tolist(), result["boxes"].tolist(), strict=True
        ):
            colour, label = ("", name) if self.labels is None else self.labels.get(name, ("", name))
            if self.labels is not None or label in names:
                left, top, right, bottom = (
                    min(max(value, 0.0), float(limit)) for value, limit in zip(box, (width, height) * 2, strict=True)
                )
                objects.append(Found(names.get(label, label), colour, (left, top, right, bottom), score))
        return sorted(objects, key=lambda one: -one.confidence)

    def _names(self, result: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
        """Return the detector's names of the objects of one image."""
        if self._post is None:
            return [str(self.model.config.id2label[label]).lower() for label in result["labels"].tolist()]
        return [_nearest(str(text), asked) for text in result["text_labels"]]


def _labels(id2label: Mapping[int, str]) -> dict[str, tuple[str, str]]:
    """Return a detector's classes, in small letters, as colour and class; "orange" alone is a class."""
    names = {str(name).lower() for name in id2label.values()}
    labels = {}
    for name in names:
        colour, _, base = name.partition(" ")
        labels[name] = (colour, base) if colour in COLOURS and base in names else ("", name)
    return labels


def _nearest(text: str, asked: Sequence[str]) -> str:
    """Return the class that a zero-shot detector's phrase names, or the phrase itself if it names none or several.

    Grounding DINO gives the words of its query that it recognised, which may be a part of the class's.
    """
    if text in asked:
        return text
    near = [name for name in asked if set(text.split()) & set(name.lower().split())]
    return near[0] if len(near) == 1 else text
