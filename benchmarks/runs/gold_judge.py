"""The metric ``judge``: the share of pictures that emoji-world's gold judge finds right; never a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_gym.rewards.geneval import Request
    from diffusion_gym.rewards.models.detection import Detector


@dataclass(frozen=True)
class GoldJudge:
    """A metric by GenEval's strict protocol, with a detector that was trained apart from the reward's.

    Attributes:
        tag: the kind of prompts whose pictures are looked at, one of GenEval's tags; None takes all.
    """

    tag: str | None = None

    @property
    def name(self) -> str:
        """Return the metric's name."""
        return "judge" if self.tag is None else f"judge-{self.tag}"

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> float:
        """Return the share of right pictures of (n, 3, 64, 64), uint8; NaN if none is of the kind.

        Raises:
            ValueError: as :meth:`check_metadata` does.
        """
        from diffusion_gym.rewards.geneval import examine

        requests = _requests(prompts, metadata)
        rows = [row for row, request in enumerate(requests) if self.tag in (None, request.tag)]
        if not rows:
            return math.nan
        verdicts = examine(images[rows], [requests[row] for row in rows], gold_detector())
        return sum(verdict.right for verdict in verdicts) / len(verdicts)

    def check_metadata(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raise ValueError for a prompt without GenEval's fields, or about what emoji-world does not know."""
        _requests([prompt], [metadata])


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
