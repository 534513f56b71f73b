"""Prompt sets: the paper's animals and activities, ImageNet's animals, lists, files, and held-out splits of them.

:func:`load_prompts` resolves names; ``NAME@train`` and ``NAME@held-out`` are the two sides of a fixed split.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

#: The 45 common animals of the paper's aesthetic and alignment tasks (Black et al. 2023, appendix).
ANIMALS: tuple[str, ...] = (
    *("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion"),
    *("tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale"),
    *("dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee", "pig"),
    *("turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo"),
)

#: The three activities of the paper's prompt-alignment task.
ACTIVITIES: tuple[str, ...] = ("washing dishes", "riding a bike", "playing chess")

#: Classes 0 to 397 of ImageNet-1k are animals, 398 ("abacus") begins the things.
IMAGENET_ANIMALS = 398

#: What ``prompts=`` accepts: a set's name, a file, or prompts, each a text or ``{"prompt": text, "weight": number}``.
PromptSpec = str | Path | Sequence[str | Mapping[str, Any]]


def with_article(noun: str) -> str:
    """Return ``noun`` with its indefinite article: ``"a cat"``, ``"an ant"``."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def animal_activities() -> tuple[str, ...]:
    """Return the paper's 135 prompts ``"a(n) [animal] [activity]"``, animals varying slowest."""
    return tuple(f"{with_article(animal)} {activity}" for animal in ANIMALS for activity in ACTIVITIES)


@lru_cache(maxsize=1)
def imagenet_animals() -> tuple[str, ...]:
    """Return the first name of each of ImageNet's 398 animals, from timm's label list: ``"tench"`` to ``"puffer"``."""
    from diffusion_gym._torchvision import repair_torchvision

    repair_torchvision()
    from timm.data.imagenet_info import ImageNetInfo

    labels = ImageNetInfo()
    return tuple(labels.index_to_description(i).partition(",")[0].strip() for i in range(IMAGENET_ANIMALS))


#: Named prompt sets. A new set is one line here: its name and a function without arguments.
PROMPT_SETS: dict[str, Callable[[], tuple[str, ...]]] = {
    "activities": animal_activities,
    "animals": lambda: ANIMALS,
    "animals-activities": animal_activities,  # the older name of "activities"
    "imagenet-animals": imagenet_animals,
    "other-animals": lambda: ANIMALS[10:],  # to be held out where ten-animals are trained on
    "ten-animals": lambda: ANIMALS[:10],
}
_PAIRS = ("activities", "animals-activities")  # sets of pairs, whose split keeps both halves of each in training
_HOLD_OUT_EVERY = 5
_SPLITS = ("train", "held-out")


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and how often each is drawn in training.

    Attributes:
        texts: n texts.
        weights: n positive numbers in any unit, or None where all are equal.
    """

    texts: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    def pick(self, indices: Sequence[int]) -> "PromptSet":
        """Return some of the prompts."""
        weights = None if self.weights is None else tuple(self.weights[i] for i in indices)
        return PromptSet(tuple(self.texts[i] for i in indices), weights)

    def describe(self) -> list[Any]:
        """Return the prompts as JSON that :func:`load_prompts` takes."""
        if self.weights is None:
            return list(self.texts)
        return [{"prompt": text, "weight": w} for text, w in zip(self.texts, self.weights, strict=True)]


def resolve_prompts(prompts: PromptSpec) -> tuple[str, ...]:
    """Return the texts of :func:`load_prompts`."""
    return load_prompts(prompts).texts


def load_prompts(prompts: PromptSpec) -> PromptSet:
    """Turn a set's name, the path of a file, or a sequence into prompts.

    Args:
        prompts: a key of :data:`PROMPT_SETS`; or a path (it has a suffix or a separator) of a UTF-8 file, with one
            prompt a line or, where its name ends in ``.jsonl``, one JSON object ``{"prompt": text, "weight": number}``
            a line; either with ``@train`` or ``@held-out`` behind it for one side of its split. Or the prompts
            themselves, as texts or such objects. A single prompt is a sequence of one.

    Raises:
        ValueError: an unknown set, an unreadable file, a weight that is not positive, or no prompt at all.
        TypeError: something that is not text.
    """
    if isinstance(prompts, Path):
        prompts = str(prompts)
    if isinstance(prompts, str):
        name, _, split = prompts.rpartition("@")
        if name and split in _SPLITS:
            return _split(name, _named(name), split)
        return _named(prompts)
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a set's name, a file or a sequence of texts, got {type(prompts).__name__}.")
    if len(prompts) == 0:
        raise ValueError("prompts is empty; expected at least one prompt.")
    return _weighted([_item(item, f"prompts[{index}]") for index, item in enumerate(prompts)])


def read_prompts(path: Path) -> PromptSet:
    """Read a file of prompts, UTF-8: one a line, or JSON lines where its name ends in ``.jsonl``; no blank lines.

    Raises:
        ValueError: the file is missing, is not UTF-8 text, holds no prompt, or a line is not what it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"cannot read prompts from {str(path)!r}: {reason}. Expected UTF-8 text, one prompt a line."
        ) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"the prompt file {str(path)!r} holds no prompt; expected one prompt a line.")
    if path.suffix != ".jsonl":
        return PromptSet(tuple(line for _, line in numbered))
    items = []
    for number, line in numbered:
        try:
            items.append(_item(json.loads(line), "it"))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f'line {number} of {str(path)!r}: {error} Expected {{"prompt": "a cat", "weight": 2}} a line.'
            ) from error
    return _weighted(items)


def held_out_indices(name: str, count: int) -> list[int]:
    """Return which prompts of a set are held out of training.

    Of the activity prompts, each animal's activity number (animal's number modulo 3): 45 of 135, so that each animal
    is trained with two activities, each activity with 30 animals, and no held-out pair with itself. Of any other set
    or file, every fifth prompt.
    """
    if name in _PAIRS:
        k = len(ACTIVITIES)
        return [index for index in range(count) if index % k == (index // k) % k]
    return list(range(_HOLD_OUT_EVERY - 1, count, _HOLD_OUT_EVERY))


def _split(name: str, prompts: PromptSet, split: str) -> PromptSet:
    held_out = held_out_indices(name, len(prompts.texts))
    if not held_out:
        raise ValueError(
            f"{name!r} holds {len(prompts.texts)} prompts, too few to split: every {_HOLD_OUT_EVERY}th is held out."
        )
    return prompts.pick(
        held_out if split == "held-out" else sorted(set(range(len(prompts.texts))).difference(held_out))
    )


def _named(name: str) -> PromptSet:
    if name in PROMPT_SETS:
        return PromptSet(PROMPT_SETS[name]())
    if Path(name).suffix or "/" in name or "\\" in name:
        return read_prompts(Path(os.path.expanduser(name)))  # noqa: PTH111 - Path's raises for a name that nobody has
    raise ValueError(
        f"unknown prompt set {name!r}; expected one of {sorted(PROMPT_SETS)}, one of these with @train or @held-out "
        f"behind it, a file such as 'prompts.txt' with one prompt a line, or, in Python, a list of prompts (for a "
        f"single prompt: [{name!r}])."
    )


def _item(item: object, what: str) -> tuple[str, float]:
    """Return a prompt and its weight."""
    if isinstance(item, str):
        return item, 1.0
    if not isinstance(item, Mapping):
        raise TypeError(f"{what} must be text, got {type(item).__name__}: {item!r}.")
    unknown = sorted(set(map(str, item)) - {"prompt", "weight"})
    if unknown or not isinstance(item.get("prompt"), str):
        raise ValueError(f"{what} must hold 'prompt', a text, and may hold 'weight', and nothing else; got {item!r}.")
    weight = item.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"the weight of {item['prompt']!r} must be a positive number, got {weight!r}.")
    return item["prompt"], float(weight)


def _weighted(items: Sequence[tuple[str, float]]) -> PromptSet:
    """Put prompts together; equal weights are none, so that they change nothing to the bit."""
    texts, weights = tuple(text for text, _ in items), tuple(weight for _, weight in items)
    return PromptSet(texts, weights if len(set(weights)) > 1 else None)
