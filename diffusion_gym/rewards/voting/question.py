"""One question to a person: some pictures of one prompt, and the rewards that an answer gives them."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from PIL import Image
from torch import Tensor

Mode = Literal["best", "grade"]
#: Prompt, its metadata as text, and the pictures' digests.
Key = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Question:
    """Pictures of one prompt, of which a person picks the best, or which they grade.

    Attributes:
        pictures: (k, 3, H, W), uint8, on the CPU.
        prompt: their text.
        metadata: of the prompt.
        mode: what is asked for.
        grades: the highest grade; the lowest is 1.
    """

    pictures: Tensor
    prompt: str
    mode: Mode
    grades: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each picture's shape and pixels, in hexadecimal."""
        shape = str(tuple(self.pictures.shape[1:])).encode()
        return tuple(hashlib.sha256(shape + picture.numpy().tobytes()).hexdigest() for picture in self.pictures)

    @property
    def key(self) -> Key:
        """What tells questions apart: the same pictures of the same prompt are the same question."""
        return self.prompt, metadata_text(self.metadata), self.digests

    def rewards(self, answer: Mapping[str, Any]) -> list[float]:
        """Return k rewards from 0 to 1.

        Args:
            answer: ``{"best": i}``, i from 0 or None where none is better; or ``{"grades": [g, ...]}``, each from 1 to
                :attr:`grades`.

        Raises:
            ValueError: another answer.
        """
        k = len(self.pictures)
        if self.mode == "best":
            best = answer.get("best", "nothing")
            if best is not None and not _is_integer(best, 0, k - 1):
                raise ValueError(f"expected the best picture, 0 to {k - 1}, or null, got {best!r}.")
            return [float(index == best) for index in range(k)]
        given = answer.get("grades")
        if not isinstance(given, list) or len(given) != k or not all(_is_integer(g, 1, self.grades) for g in given):
            raise ValueError(f"expected a grade from 1 to {self.grades} for each of {k} pictures, got {given!r}.")
        return [(grade - 1) / (self.grades - 1) for grade in given]

    def png(self, index: int) -> bytes:
        """Return a picture as a file; raise IndexError where there is none."""
        content = io.BytesIO()
        Image.fromarray(self.pictures[index].permute(1, 2, 0).numpy().copy()).save(content, "png")
        return content.getvalue()


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Return metadata as JSON whose keys are in order; what JSON lacks is written as text."""
    return json.dumps(metadata, sort_keys=True, default=str)


def _is_integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
