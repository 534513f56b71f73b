"""A vision-language model as the judge (Wang et al. 2025, UnifiedReward): the number in its answer."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.rewards.base import RewardError
from diffusion_gym.rewards.models.asking import AskingReward, filled

#: UnifiedReward's question for a score of one generated image, as Flow-GRPO asks it.
QUESTION = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. Consider the accuracy "
    "of depicted objects, their relationships, and attributes as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, color "
    "accuracy, and overall aesthetic appeal.\n"
    "Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
PATTERN = r"Final Score:\s*\**\[?(-?\d+(?:\.\d+)?)"
#: Added to the question where an answer held no number: decoding is greedy, so the same question has the same answer.
REMINDER = "\nThe last answer held no score. Answer with nothing but the score, in the form that was asked for."


@dataclass(eq=False, kw_only=True)
class Unified(AskingReward):
    """The number in a vision-language model's answer, divided by the highest: 0.2 to 1 with the defaults.

    Attributes:
        model: folder or hub id of a vision-language model with a chat template; with ``url``, its name there.
        question: about each image; may hold ``{prompt}``, and ``{field}`` for a field of its metadata.
        pattern: a regular expression whose first group is the number; the last place in the answer counts.
        low: least number that counts as an answer.
        high: highest; the number is divided by it.
        attempts: how often an image is asked about until its answer holds a number in that range, from the second time
            with :data:`REMINDER`.
        missing: reward where it never does; None is an error that shows the answer.
        url, max_new_tokens, chunk_size, device, dtype, concurrency, timeout, retries, pause, key_variable: see
            :class:`~diffusion_gym.rewards.models.asking.AskingReward`.
    """

    question: str = QUESTION
    pattern: str = PATTERN
    low: float = 1.0
    high: float = 5.0
    attempts: int = 2
    missing: float | None = None
    max_new_tokens: int = 256
    name: ClassVar[str] = "unified"

    def __post_init__(self) -> None:
        """Load the model if it runs here; raises ValueError for settings that do not fit, or missing weights."""
        super().__post_init__()
        if not (math.isfinite(self.low) and self.low < self.high < math.inf and self.high > 0):
            raise ValueError(f"expected low < high and high > 0, got low={self.low} and high={self.high}.")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}.")
        if self.missing is not None and not math.isfinite(self.missing):
            raise ValueError(f"missing must be a finite number, got {self.missing}.")
        try:
            self._pattern = re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r} is no regular expression: {error}.") from error
        if not self._pattern.groups:
            raise ValueError(f"pattern={self.pattern!r} needs a group around the number, as in {PATTERN!r}.")
        self._ask = self.load()

    def number(self, answer: str) -> float | None:
        """Return the number that an answer gives, or None if it gives none from ``low`` to ``high``."""
        found = [match[1] for match in self._pattern.finditer(answer)]
        try:
            value = float(found[-1])
        except (IndexError, TypeError, ValueError):
            return None
        return value if self.low <= value <= self.high else None

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Tensor:
        """Return (n,), float32.

        Raises:
            RewardError: an answer without a number, if ``missing`` is None, or a server that does not answer.
        """
        questions = filled(self.question, prompts, metadata)
        found: dict[int, float] = {}
        answers: dict[int, str] = {}
        for attempt in range(self.attempts):
            rows = [row for row in range(len(images)) if row not in found]
            if not rows:
                break
            asked = [questions[row] + (REMINDER if attempt else "") for row in rows]
            answers |= zip(rows, self._ask(images[rows], asked), strict=True)
            found |= {row: value for row in rows if (value := self.number(answers[row])) is not None}
        unread = [row for row in range(len(images)) if row not in found]
        if unread and self.missing is None:
            raise RewardError(
                f"the model {self.model!r} gave no number from {self.low:g} to {self.high:g} for the prompt "
                f"{prompts[unread[0]]!r} in {self.attempts} attempts; it last answered {answers[unread[0]][-200:]!r}. "
                "Change question, pattern or max_new_tokens, or give such images a reward with missing=NUMBER."
            )
        scores = [found[row] / self.high if row in found else self.missing for row in range(len(images))]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)
