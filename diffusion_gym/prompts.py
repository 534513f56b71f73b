"""Prompt sets: the paper's animals and activities, ImageNet's animals, lists, files, and held-out splits of them.

:func:`load_prompts` resolves names; ``NAME@train`` and ``NAME@held-out`` are the two sides of a fixed split.
"""

import codecs
import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from diffusion_gym.naming import did_you_mean
from diffusion_gym.paths import user_path

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
#: Prompts and their weights, as a file or a list gives them.
_Items = list[tuple[str, float]]


def with_article(noun: str) -> str:
    """Return ``noun`` with its indefinite article: ``"a cat"``, ``"an ant"``."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def animal_activities() -> tuple[str, ...]:
    """Return the paper's 135 prompts ``"a(n) [animal] [activity]"``, animals varying slowest."""
    return tuple(f"{with_article(animal)} {activity}" for animal in ANIMALS for activity in ACTIVITIES)


@lru_cache(maxsize=1)
def imagenet_animals() -> tuple[str, ...]:
    """Return the first name of each of ImageNet's 398 animals, from timm's label list: ``"tench"`` to ``"puffer"``."""
    from diffusion_gym_torchvision import repair_torchvision

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
        prompts: a key of :data:`PROMPT_SETS`; or a path (it has a suffix or a separator) of a UTF-8 file in the format
            that its suffix names, see :data:`FORMATS`: ``.txt`` has one prompt per line; either with ``@train`` or
            ``@held-out`` behind it for one side of its split. Or the prompts themselves, as texts or objects
            ``{"prompt": text, "weight": number}``. A single prompt is a sequence of one.

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


def check_prompts(prompts: PromptSpec) -> None:
    """Refuse what :func:`load_prompts` would refuse; a set that is known by name is not made for it.

    Raises:
        ValueError, TypeError: as :func:`load_prompts`.
    """
    name, _, split = prompts.rpartition("@") if isinstance(prompts, str) else ("", "", "")
    if (name if split in _SPLITS else prompts) not in list(PROMPT_SETS):
        load_prompts(prompts)


def evaluation_prompts(texts: Sequence[str], n: int) -> list[str]:
    """Return n prompts: all in turn, or, of more than n, evenly spaced ones (the first of ImageNet's are all fish)."""
    count = len(texts)
    return [texts[i % count] if count <= n else texts[i * count // n] for i in range(n)]


def read_prompts(path: Path) -> PromptSet:
    """Read a file of prompts in the format that its suffix names, in capitals too: :data:`FORMATS`.

    Raises:
        ValueError: the file is missing, its suffix names no format, it is not UTF-8 text, holds no prompt, or a part of
            it is not what it should be.
    """
    suffix = path.suffix.lower() or ".txt"
    if suffix not in FORMATS:
        raise ValueError(
            f"the prompt file {str(path)!r} ends in {path.suffix!r}, which names no format; expected one of "
            f"{list(FORMATS)}, of which '.txt' has one prompt per line."
        )
    expected, read = FORMATS[suffix]
    text = _read_text(path, expected)
    try:
        items = read(text)
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r}, {str(error).rstrip('.')}. Expected {expected}.") from error
    if not items:
        raise ValueError(f"the prompt file {str(path)!r} holds no prompt; expected {expected}.")
    return _weighted(items)


def _read_text(path: Path, expected: str) -> str:
    """Return a file's text without byte order marks, with DOS's and old Mac's ends of lines as the usual ones.

    The marks also stand inside a file that was put together of several.
    """
    try:
        data = path.read_bytes()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("it is UTF-16; save it as UTF-8")
        if b"\0" in data:
            raise ValueError("it holds zero bytes, as binary files and UTF-16 do; save it as UTF-8")
        text = data.decode("utf-8").replace("\ufeff", "")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"cannot read prompts from {str(path)!r}: {reason}. Expected UTF-8 text, {expected}."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str) -> _Items:
    # Only "\n" ends a line: str.splitlines would cut prompts at U+2028, U+0085 and form feeds.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if _is_visible(line)]
    if lines and re.fullmatch(r'"?prompt"?\s*[,;\t]\s*"?weight"?', lines[0][1], re.IGNORECASE):
        raise ValueError(
            f"line {lines[0][0]}: this is a table's head, which belongs into a file that ends in .csv or .tsv"
        )
    for number, line in [(1, text.strip()), *lines]:
        if line.startswith(("{", "[")) and _is_json(line):
            raise ValueError(f"line {number}: this is JSON, which belongs into a file that ends in .jsonl or .json")
    return [(line, 1.0) for _, line in lines]


def _is_visible(line: str) -> bool:
    """Whether a line holds more than spaces and what cannot be seen, as DOS's sign for the end of a file."""
    return any(char.isprintable() and not char.isspace() for char in line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json_lines(text: str) -> _Items:
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            with _at(number):
                items.append(_item(json.loads(line), "it"))
    return items


def _json(text: str) -> _Items:
    data = json.loads(text)
    if not isinstance(data, list):
        raise TypeError(f"it holds {type(data).__name__}, no list")
    return [_item(item, f"entry {index}") for index, item in enumerate(data, 1)]


def _table(text: str, delimiter: str) -> _Items:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    if sorted(columns) not in (["prompt"], ["prompt", "weight"]):
        raise ValueError(f"line 1: the columns are {reader.fieldnames or []}")
    reader.fieldnames = columns
    items = []
    for row in reader:
        with _at(reader.line_num):
            items.append(_row(row))
    return items


def _row(row: Mapping[str | None, Any]) -> tuple[str, float]:
    if None in row or not (row["prompt"] or "").strip():
        raise ValueError("more values than columns" if None in row else "an empty prompt")
    return _item({**row, "weight": 1.0 if row.get("weight") is None else float(row["weight"])}, "it")


@contextlib.contextmanager
def _at(line: int) -> Iterator[None]:
    """Let an error say in which line it arose."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"line {line}: {error}") from error


_OBJECT = '{"prompt": "a cat", "weight": 2} or a text'
_COLUMNS = "whose first line names the column prompt, and may name weight"
#: Suffix -> what such a file holds, and its reader. A new format is one line here.
FORMATS: dict[str, tuple[str, Callable[[str], _Items]]] = {
    ".txt": ("one prompt per line", _lines),
    ".jsonl": (f"one {_OBJECT} per line", _json_lines),
    ".json": (f"a list, each entry {_OBJECT}", _json),
    ".csv": (f"comma-separated values {_COLUMNS}", partial(_table, delimiter=",")),
    ".tsv": (f"tab-separated values {_COLUMNS}", partial(_table, delimiter="\t")),
}


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
        return read_prompts(user_path(name))
    raise ValueError(
        f"unknown prompt set {name!r}; expected one of {sorted(PROMPT_SETS)}, one of these with @train or @held-out "
        f"behind it, a file such as 'prompts.txt' with one prompt per line, or, in Python, a list of prompts (for a "
        f"single prompt: [{name!r}]).{did_you_mean(name.partition('@')[0], PROMPT_SETS)}"
    )


def _item(item: object, what: str) -> tuple[str, float]:
    """Return a prompt and its weight."""
    if isinstance(item, str):
        return _encodable(item), 1.0
    if not isinstance(item, Mapping):
        raise TypeError(f"{what} must be text, got {type(item).__name__}: {item!r}.")
    unknown = sorted(set(map(str, item)) - {"prompt", "weight"})
    if unknown or not isinstance(item.get("prompt"), str):
        raise ValueError(f"{what} must hold 'prompt', a text, and may hold 'weight', and nothing else; got {item!r}.")
    weight = item.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"the weight of {item['prompt']!r} must be a positive number, got {weight!r}.")
    return _encodable(item["prompt"]), float(weight)


def _encodable(text: str) -> str:
    """Return the text, unless it holds half a character, which no file could be given."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt {text!r} holds half of a surrogate pair, which is no character.") from error
    return text


def _weighted(items: Sequence[tuple[str, float]]) -> PromptSet:
    """Put prompts together; equal weights are none, so that they change nothing to the bit."""
    texts, weights = tuple(text for text, _ in items), tuple(weight for _, weight in items)
    return PromptSet(texts, weights if len(set(weights)) > 1 else None)
