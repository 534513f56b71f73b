"""The metric ``judge``: GenEval's overall score by emoji-world's gold judge; never a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion_gym.rewards.geneval.request import TAGS

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_gym.rewards.geneval import Request, Verdict
    from diffusion_gym.rewards.models.detection import Detector


#: GenEval's kinds of prompts -> what they are called in tables, charts and pictures.
KINDS = dict(
    zip(TAGS, ("one object", "two objects", "counting", "colours", "position", "colour and object"), strict=True)
)
#: The metric of all kinds together.
JUDGE = "judge"


@dataclass(frozen=True)
class GoldJudge:
    """A metric by GenEval's strict protocol, with a detector that was trained apart from the reward's.

    Attributes:
        tag: the kind of prompts whose pictures are looked at, one of GenEval's tags; None takes all, and each kind
            that occurs counts alike, as in GenEval's overall score.
    """

    tag: str | None = None

    @property
    def name(self) -> str:
        """Return the metric's name."""
        return JUDGE if self.tag is None else f"{JUDGE}-{self.tag}"

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> float:
        """Return the share of right pictures of (n, 3, 64, 64), uint8, the mean over the kinds of their prompts.

        NaN if none is of the kind that is looked at.

        Raises:
            ValueError: as :meth:`check_metadata` does.
        """
        rows = [row for row, fields in enumerate(metadata) if self.tag in (None, fields.get("tag"))]
        if not rows:
            return math.nan
        asked = [metadata[row] for row in rows]
        by_kind: dict[str, list[bool]] = {}
        for fields, verdict in zip(asked, verdicts(images[rows], [prompts[row] for row in rows], asked), strict=True):
            by_kind.setdefault(fields["tag"], []).append(verdict.right)
        return sum(sum(right) / len(right) for right in by_kind.values()) / len(by_kind)

    def check_metadata(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raise ValueError for a prompt without GenEval's fields, or about what emoji-world does not know."""
        _requests([prompt], [metadata])


def kind_of(metric: str) -> str | None:
    """Return what the kind of prompts of a metric ``judge-TAG`` is called; None for any other metric."""
    name, _, tag = metric.partition("-")
    return KINDS.get(tag) if name == JUDGE else None


def verdicts(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Return what the gold judge sees in each of n pictures (n, 3, 64, 64), uint8.

    Raises:
        ValueError: a prompt without GenEval's fields, or about what emoji-world does not know.
    """
    from diffusion_gym.rewards.geneval import examine

    return examine(images, _requests(prompts, metadata), gold_detector())


def gold_detector() -> Detector:
    """Return the gold judge's detector, loaded once per process."""
    from diffusion_gym.rewards.geneval import WORLD
    from diffusion_gym.rewards.models.detection import load_detector

    return load_detector(str(WORLD / "judge"), None)


def _requests(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Request]:
    from diffusion_gym.rewards.geneval import check_known, read_request

    requests = [read_request(*both) for both in zip(prompts, metadata, strict=True)]
    for prompt, request in zip(prompts, requests, strict=True):
        check_known(prompt, request, gold_detector())
    return requests
