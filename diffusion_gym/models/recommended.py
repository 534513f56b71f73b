"""What is recommended for training a model: the settings in its own folder, or else its family's.

A folder carries them as ``training.json``, with the names that ``DDPO(env, ...)`` takes as keyword arguments::

    {"num_inference_steps": 10, "any": {"targets": ["all"], "learning_rate": 0.002}, "ddpo-is": {"clip_range": 2.0}}

"any" is for every algorithm, a section of an algorithm's name for that one alone, over "any".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "training.json"
#: The section for every algorithm.
ANY = "any"
_STEPS = "num_inference_steps"


@dataclass(frozen=True)
class Recommended:
    """Settings to begin with. What they do not name has the algorithm's own default."""

    num_inference_steps: int = 10
    """Denoising steps per image."""
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """An algorithm's name, or "any" -> fields of its configuration, also of the dataclasses inside it."""
    source: str = "the model's family"
    """Where they come from, for messages."""

    def settings(self, algorithm: str) -> dict[str, Any]:
        """Return the fields that an algorithm takes."""
        return {**self.sections.get(ANY, {}), **self.sections.get(algorithm, {})}


def in_folder(source: str, family: Recommended) -> Recommended:
    """Return what a model's folder recommends, or the family's settings where it has no such file.

    Raises:
        ValueError: a file that is not as described above.
    """
    file = Path(source) / FILE
    if not file.is_file():
        return family
    expected = f'a mapping such as {{"{_STEPS}": 10, "{ANY}": {{"learning_rate": 0.002}}}}'
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is no JSON ({error}); expected {expected}.") from error
    steps = data.pop(_STEPS, family.num_inference_steps) if isinstance(data, dict) else None
    if type(steps) is not int or steps < 1 or not all(isinstance(section, dict) for section in data.values()):
        raise ValueError(
            f"{str(file)!r} holds {json.dumps(data)[:80]}; expected {expected}, its numbers of steps at least 1."
        )
    return Recommended(steps, {name: _with_tuples(section) for name, section in data.items()}, str(file))


def _with_tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}
