"""Text rendering as a reward (Liu et al. 2025, Flow-GRPO): the text in the picture against the prompt's quoted text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.rewards.models.text_reader import ReadText, load_reader

_QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')


class OCR:
    """``1 - min(d, n) / n``, in 0 to 1: d edits from the text in the picture to the prompt's quoted text of n letters.

    Case and white space do not count. As in Flow-GRPO, d is 0 where the quoted text is found whole among other text;
    ``strict`` counts the other text as errors.
    """

    name = "ocr"

    def __init__(
        self, strict: bool = False, side: int = 512, min_confidence: float = 0.5, reader: ReadText | None = None
    ) -> None:
        """Load the reader.

        Args:
            strict: every letter beside the quoted text is an error.
            side: pixels that a picture's shorter side is enlarged to, at least, before text is looked for. Less is
                cheaper and misses small letters.
            min_confidence: lines that the reader is less sure of are left out, 0 to 1.
            reader: takes the place of rapidocr; ``side`` and ``min_confidence`` are rapidocr's.

        Raises:
            ValueError: a number out of range, or rapidocr is not installed.
        """
        if side < 32:
            raise ValueError(f"side must be at least 32 pixels, got {side}.")
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must lie in 0 to 1, got {min_confidence}.")
        self._strict = strict
        self._read = load_reader(side, min_confidence) if reader is None else reader

    def __deepcopy__(self, memo: dict[int, Any]) -> "OCR":
        return self

    def check_metadata(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raise ValueError for a prompt without quoted text; the metadata do not count."""
        quoted_text(prompt)

    def read(self, images: Tensor) -> list[str]:
        """Return the text in each picture of (n, 3, H, W), uint8."""
        return [self._read(picture) for picture in images.permute(0, 2, 3, 1).cpu().numpy()]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32; raises ValueError for a prompt without quoted text."""
        asked = [_letters(quoted_text(prompt)) for prompt in prompts]
        found = [_letters(text) for text in self.read(images)]
        scores = [self._score(*pair) for pair in zip(found, asked, strict=True)]
        return torch.tensor(scores, device=images.device)

    def _score(self, found: str, asked: str) -> float:
        if not self._strict and asked in found:
            return 1.0
        return 1.0 - min(edit_distance(found, asked), len(asked)) / len(asked)


def quoted_text(prompt: str) -> str:
    """Return the text between a prompt's double quotes, straight or curly; several texts are joined by spaces.

    Raises:
        ValueError: there is none.
    """
    found = " ".join(straight or curly for straight, curly in _QUOTED.findall(prompt))
    if not _letters(found):
        raise ValueError(
            "it has no text in double quotes, which the picture should show; expected a prompt such as "
            "'a shop sign that says \"OPEN\"'."
        )
    return found


def edit_distance(one: str, other: str) -> int:
    """Return Levenshtein's distance: the fewest insertions, deletions and replacements of one character."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _letters(text: str) -> str:
    """Return what is compared: the text in small letters, without white space."""
    return "".join(text.split()).lower()
