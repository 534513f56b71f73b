"""The reward ``geneval``: do detected objects, their number, colours and positions fit what the prompt asks?"""

import filecmp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from diffusion_gym.choices import ASSETS, EMOJI_WORLD
from diffusion_gym.rewards.geneval.protocol import Rules, Verdict, counted, groups, judge
from diffusion_gym.rewards.geneval.request import Request, read_request
from diffusion_gym.rewards.models.clip import Clip, load_clip
from diffusion_gym.rewards.models.colours import crop, name_colours
from diffusion_gym.rewards.models.detection import COLOURS, Detector, Found, load_detector
from diffusion_gym.rewards.models.weights import check_placement

Metadata = Sequence[Mapping[str, Any]]
Score = Literal["graded", "share", "strict"]

WORLD = ASSETS / EMOJI_WORLD
"""The embedded model that this reward's own detector and the gold judge know."""


@dataclass(eq=False)
class GenEval:
    """How much of what its prompt asks a picture shows, after GenEval's protocol (Ghosh et al. 2023).

    The prompt's metadata says what is asked, in GenEval's fields ``tag``, ``include`` and ``exclude``. A detector of
    transformers finds the objects; colours come from its classes ("red fox"), or from CLIP on each object's crop.
    :mod:`diffusion_gym.rewards.geneval.protocol` has the rules.

    Attributes:
        detector: folder or hub id of an object detection model of transformers, with classes of its own or zero-shot;
            None is the one of emoji-world.
        clip: names colours, as in :func:`diffusion_gym.rewards.models.clip.load_clip`; GenEval's is
            ``ViT-L-14/openai``. Of no use, and refused, where the detector's classes tell colours.
        score: "strict" is GenEval's verdict, 0 or 1; "share" the mean of the checks' shares, in [0, 1]; "graded" the
            mean of both, below 0.5 or 1, so that no number of parts is worth the whole.
        threshold, counting_threshold, max_overlap: as in :class:`~diffusion_gym.rewards.geneval.protocol.Rules`.
        chunk_size: images at a time.
        device: where the models run; None follows the images.
    """

    detector: str | None = None
    clip: str | None = None
    score: Score = "graded"
    threshold: float = Rules.threshold
    counting_threshold: float = Rules.counting_threshold
    max_overlap: float = Rules.max_overlap
    chunk_size: int = 16
    device: str | None = None
    name: ClassVar[str] = "geneval"

    def __post_init__(self) -> None:
        """Load the models; raises ValueError for settings that do not fit, missing weights, or the gold judge's."""
        check_placement(self.chunk_size, self.device)
        if self.score not in get_args(Score):
            raise ValueError(f"score must be one of {list(get_args(Score))}, got {self.score!r}.")
        self._rules = Rules(self.threshold, self.counting_threshold, max_overlap=self.max_overlap)
        source = self.detector or str(WORLD / "detector")
        _check_not_gold(Path(source))
        self._detector = load_detector(source, self.device)
        if self.clip is not None and self._detector.names_colours:
            raise ValueError(f"the classes of detector={source} tell colours themselves; leave out clip={self.clip}.")
        self._clip = None if self.clip is None else load_clip(self.clip, self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GenEval":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # As its settings: transformers' hooks cannot be pickled, and the models are loaded once per process.
        return GenEval, tuple(getattr(self, field.name) for field in fields(self))

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        """Return (n,), float32, of images (n, 3, H, W), uint8, n texts and their metadata."""
        verdicts = self.explain(images, prompts, metadata)
        scores = [
            float(verdict.right if self.score == "strict" else getattr(verdict, self.score)) for verdict in verdicts
        ]
        return torch.tensor(scores, device=images.device)

    def explain(self, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> list[Verdict]:
        """Return of each image what was found, and which checks are right; arguments as of a call.

        Raises:
            ValueError: other numbers of images, prompts and metadata, or as :meth:`check_metadata` does.
        """
        if not len(images) == len(prompts) == len(metadata):
            raise ValueError(
                f"expected one prompt and one metadata for each image, got {len(images)} images, {len(prompts)} "
                f"prompts and {len(metadata)} metadata."
            )
        requests = self._requests(prompts, metadata)
        return examine(images, requests, self._detector, self._clip, self._rules, self.chunk_size)

    def check_metadata(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raise ValueError for a prompt without what this reward needs, or about what its detector does not know."""
        self._requests([prompt], [metadata])

    def _requests(self, prompts: Sequence[str], metadata: Metadata) -> list[Request]:
        requests = [read_request(*both) for both in zip(prompts, metadata, strict=True)]
        for prompt, request in zip(prompts, requests, strict=True):
            check_known(prompt, request, self._detector, self._clip)
        return requests


def examine(
    images: Tensor,
    requests: Sequence[Request],
    detector: Detector,
    clip: Clip | None = None,
    rules: Rules | None = None,
    chunk_size: int = 16,
) -> list[Verdict]:
    """Return the verdicts on images (n, 3, H, W), uint8, each with what is asked of it.

    Args:
        images: the pictures.
        requests: of each picture, what it must show.
        detector: finds the objects.
        clip: names the colours that are asked, where the detector's classes do not tell them.
        rules: thresholds; None takes GenEval's.
        chunk_size: images at a time.
    """
    rules = rules or Rules()
    least = min(rules.threshold, rules.counting_threshold)
    found = detector(images, [request.names for request in requests], least, chunk_size)
    if clip is not None:
        found = _coloured(images, requests, found, clip, rules, chunk_size)
    return [judge(*both, rules) for both in zip(found, requests, strict=True)]


def _coloured(
    images: Tensor, requests: Sequence[Request], found: list[list[Found]], clip: Clip, rules: Rules, chunk_size: int
) -> list[list[Found]]:
    """Name the colours of the objects whose colours count; the others keep none."""
    asked = [
        (row, one)
        for row, request in enumerate(requests)
        for entry, group in zip(request.include, groups(counted(found[row], request.tag, rules), request), strict=True)
        if entry.colour is not None
        for one in group
    ]
    if not asked:
        return found
    crops = [crop(images[row], one) for row, one in asked]
    colours = name_colours(clip, crops, [one.name for _, one in asked], chunk_size)
    named = {(row, one): one._replace(colour=colour) for (row, one), colour in zip(asked, colours, strict=True)}
    return [[named.get((row, one), one) for one in objects] for row, objects in enumerate(found)]


def check_known(prompt: str, request: Request, detector: Detector, clip: Clip | None = None) -> None:
    """Raise ValueError for a class or a colour that the detector, or CLIP, does not know, or a class with two names."""
    first: dict[str | None, str] = {}
    for name in request.names:
        label = detector.label_of(name)
        other = first.setdefault(name.strip().lower() if detector.labels is None else label, name)
        if label is not None and other != name:
            raise ValueError(
                f"the prompt {prompt!r} asks about {other!r} and {name!r}, which are one class of "
                f"detector={detector.source}; call it by one name in the whole record."
            )
        if label is None:
            raise ValueError(
                f"the prompt {prompt!r} asks about {name!r}, a class that detector={detector.source} does not know; it "
                f"knows {sorted({base for _, base in (detector.labels or {}).values()})}."
            )
    for asked in request.include:
        if asked.colour is None:
            continue
        what = f"the prompt {prompt!r} asks for the colour {asked.colour!r} of {asked.name!r}, which"
        if detector.names_colours:
            if not detector.knows_colour(asked.name, asked.colour):
                raise ValueError(f"{what} is none of the classes of detector={detector.source}.")
        elif asked.colour not in COLOURS:
            raise ValueError(f"{what} is none of GenEval's: {list(COLOURS)}.")
        elif clip is None:
            raise ValueError(
                f"{what} detector={detector.source} does not tell; give a CLIP that names colours, as GenEval does: "
                "clip=ViT-L-14/openai."
            )


def _check_not_gold(folder: Path) -> None:
    """Raise ValueError for the gold judge of emoji-world, also where its folder was copied or made again."""
    shipped, given = WORLD / "judge" / "model.safetensors", folder / "model.safetensors"
    beside = folder.resolve().name == "judge" and (folder.resolve().parent / "model_index.json").is_file()
    same = shipped.is_file() and given.is_file() and filecmp.cmp(shipped, given, shallow=False)
    if beside or same:
        raise ValueError(
            f"detector={folder} is the gold judge, which is never a reward, so that it can show when a reward is "
            "hacked; give --metrics judge to watch it."
        )
