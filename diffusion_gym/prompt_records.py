"""Prompts as records: a text, and what else is known of it; and sets of them."""

import hashlib
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_gym.paths import user_path

if TYPE_CHECKING:
    from PIL.Image import Image

#: A record's fields that are not metadata.
FIELDS = ("prompt", "weight", "negative_prompt", "image")

#: How deep metadata may be nested: far from what Python can copy, compare and write.
LEVELS = 100


@dataclass(frozen=True)
class Prompt:
    """A prompt with what else is known of it. Two prompts may share a text: :attr:`key` tells them apart.

    Attributes:
        text: what the model reads.
        weight: how often it is drawn in training, a positive number in any unit; prompts are equal whatever it is.
        negative_prompt: what the picture is not to show, for model families that read it.
        image: a picture's path, or a picture, for model families that edit it. Rewards find it in their metadata.
        metadata: every further field, as JSON: name -> text, number, list or mapping. Rewards may read it.
    """

    text: str
    weight: float = field(default=1.0, compare=False)
    negative_prompt: str | None = None
    image: "str | Path | Image | None" = field(default=None, hash=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Copy the metadata; raise TypeError or ValueError for a field of another type, or an image that is missing."""
        if not isinstance(self.text, str):
            raise TypeError(f"a prompt's text must be text, got {type(self.text).__name__}: {self.text!r}.")
        if "\0" in _encodable(self.text):
            raise ValueError(
                f"the prompt {self.text!r} holds a zero byte, which is not a character of text; leave it out."
            )
        weight = self.weight
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
            big = isinstance(weight, int) and weight > sys.float_info.max  # Python may refuse to print it
            got = f"one above {sys.float_info.max:.3g}" if big else repr(weight)
            raise ValueError(f"the weight of {self.text!r} must be a positive number, got {got}.")
        if not isinstance(self.negative_prompt, str | None):
            raise TypeError(
                f"the 'negative_prompt' of {self.text!r} must be text, got {type(self.negative_prompt).__name__}: "
                f"{self.negative_prompt!r}."
            )
        if not isinstance(self.metadata, Mapping):
            raise TypeError(f"the metadata of {self.text!r} must be a mapping, got {type(self.metadata).__name__}.")
        reserved = [name for name in FIELDS if name in self.metadata]
        if reserved:
            raise ValueError(f"{reserved[0]!r} is a field of a prompt itself; leave it out of its metadata.")
        vars(self).update(
            weight=float(weight),
            image=_checked_image(self.image, self.text),
            metadata=_plain(self.metadata, f"the metadata of {self.text!r}"),
        )

    @cached_property
    def key(self) -> str:
        """The record's identity in statistics and groups: of a prompt that is only a text the text itself."""
        rest = self._more() | ({"image": self.image_key} if self.image is not None else {})
        # No text holds a zero byte, so no record has the key of a text.
        return f"{self.text}\0{json.dumps(rest, sort_keys=True)}" if rest else self.text

    @cached_property
    def image_key(self) -> str:
        """The image's identity: its path, or a digest of a picture; empty without one."""
        return "" if self.image is None else _image_key(self.image)

    @cached_property
    def reward_metadata(self) -> Mapping[str, Any]:
        """The metadata that rewards get: with an image, ``image`` is its path as text, or the picture."""
        if self.image is None:
            return self.metadata
        return {**self.metadata, "image": str(self.image) if isinstance(self.image, Path) else self.image}

    def metadata_copy(self) -> dict[str, Any]:
        """Return :attr:`reward_metadata` for somebody who may change them."""
        return {name: _copied(value) for name, value in self.reward_metadata.items()}

    def describe(self, weighted: bool = False) -> str | dict[str, Any]:
        """Return the record as JSON that :func:`load_prompts` takes: the text alone, where there is nothing else.

        Args:
            weighted: whether to add the weight.

        Raises:
            ValueError: an image that was given as a picture, which JSON cannot hold.
        """
        more = ({"weight": self.weight} if weighted else {}) | self._more()
        if self.image is not None:
            if not isinstance(self.image, Path):
                raise ValueError(
                    f"the image of {self.text!r} was given as a picture, which cannot be written as JSON; save it, and "
                    "give its path."
                )
            more["image"] = str(self.image)
        return {"prompt": self.text, **more} if more else self.text

    def _more(self) -> dict[str, Any]:
        negative = {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}
        return {**negative, **self.metadata}


#: A prompt in Python: a text, a :class:`Prompt`, or ``{"prompt": text, ...}`` with the fields of a record.
PromptLike = str | Prompt | Mapping[str, Any]


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and how often each is drawn in training.

    Attributes:
        texts: n texts.
        weights: n positive numbers in any unit, or None where all are equal.
        records: n records; without any, those that are only these texts.
    """

    texts: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    records: tuple[Prompt, ...] = ()

    def __post_init__(self) -> None:
        """Make the records of texts."""
        if not self.records:
            weights = self.weights or (1.0,) * len(self.texts)
            vars(self)["records"] = tuple(map(Prompt, self.texts, weights))

    @classmethod
    def of(cls, records: Sequence[Prompt]) -> "PromptSet":
        """Return a set of records; equal weights become None, so that results are bit for bit the same."""
        weights = tuple(record.weight for record in records)
        texts = tuple(record.text for record in records)
        return cls(texts, weights if len(set(weights)) > 1 else None, tuple(records))

    def pick(self, indices: Sequence[int]) -> "PromptSet":
        """Return some of the prompts."""
        weights = None if self.weights is None else tuple(self.weights[i] for i in indices)
        records = tuple(self.records[i] for i in indices)
        return PromptSet(tuple(record.text for record in records), weights, records)

    @property
    def scaled_weights(self) -> tuple[float, ...] | None:
        """Return the weights over a power of two, of which the largest is below 1: draws are bit for bit the same."""
        if self.weights is None:
            return None
        exponent = math.frexp(max(self.weights))[1]
        return tuple(math.ldexp(weight, -exponent) for weight in self.weights)

    def describe(self) -> list[Any]:
        """Return the prompts as JSON that :func:`load_prompts` takes; raises as :meth:`Prompt.describe`."""
        return [record.describe(self.weights is not None) for record in self.records]

    def indices(self, records: Sequence[Prompt]) -> list[int]:
        """Return each record's place, or -1 for one from elsewhere."""
        return [self._places.get(record.key, -1) for record in records]

    def find(self, prompts: Sequence[PromptLike], what: str = "prompts") -> list[Prompt]:
        """Return the records of prompts: of a text the set's record with this text, if there is one.

        Args:
            prompts: texts or records, also from elsewhere.
            what: names them in errors.

        Raises:
            TypeError, ValueError: something that is no prompt, or a text that several records of the set share.
        """
        return [self._find(prompt, f"{what}[{place}]") for place, prompt in enumerate(prompts)]

    def _find(self, prompt: PromptLike, what: str) -> Prompt:
        record = as_prompt(prompt, what)
        if not isinstance(prompt, str) or prompt in self._places:
            return record
        same = self._sharing.get(prompt, {})
        if len(same) > 1:
            raise ValueError(
                f"{what} is {prompt!r}, a text that {len(same)} records of the prompt set share; give the record that "
                "is meant, as Prompt or mapping."
            )
        return next(iter(same.values()), record)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {record.key: place for place, record in reversed(list(enumerate(self.records)))}

    @cached_property
    def _sharing(self) -> dict[str, dict[str, Prompt]]:
        """Text -> key -> record."""
        found: dict[str, dict[str, Prompt]] = {}
        for record in self.records:
            found.setdefault(record.text, {})[record.key] = record
        return found

    @cached_property
    def labels(self) -> dict[str, str]:
        """Key -> what a log calls the prompt: its text, with a number behind it where records share one."""
        numbered = {
            key: text if len(same) == 1 else f"{text} ({number})"
            for text, same in self._sharing.items()
            for number, key in enumerate(same, 1)
        }
        return {record.key: numbered[record.key] for record in self.records}


def as_prompt(item: object, what: str, folder: Path = Path()) -> Prompt:
    """Return a text or a mapping as a record.

    Args:
        item: a text, a :class:`Prompt`, or ``{"prompt": text, ...}``.
        what: its place, for errors.
        folder: where an image's path begins.

    Raises:
        TypeError, ValueError: something else, or a field of another type.
    """
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str):
        return Prompt(item)
    if not isinstance(item, Mapping):
        raise TypeError(f"{what} must be text, got {type(item).__name__}: {item!r}.")
    if not isinstance(item.get("prompt"), str) or not all(isinstance(name, str) for name in item):
        raise ValueError(
            f"{what} must hold 'prompt', a text, and may hold 'weight', 'negative_prompt', 'image', and further fields "
            f"with texts as names, its metadata; got {dict(item)!r}."
        )
    negative, image = (None if item.get(name) == "" else item.get(name) for name in ("negative_prompt", "image"))
    return Prompt(
        item["prompt"],
        item.get("weight", 1.0),
        negative,
        folder / user_path(image) if isinstance(image, str | Path) else image,
        {name: value for name, value in item.items() if name not in FIELDS},
    )


def check_fields(records: Sequence[Prompt], read: Collection[str], model: str) -> None:
    """Raise ValueError for a record with a negative prompt or an image that the model does not read.

    Args:
        records: to check.
        read: which of ``negative_prompt`` and ``image`` the model reads.
        model: its name.
    """
    for name in ("negative_prompt", "image"):
        for record in () if name in read else records:
            if getattr(record, name) is not None:
                raise ValueError(
                    f"the prompt {record.text!r} has the field {name!r}, which the model {model!r} does not read; "
                    "leave it out, or take a model that does."
                )


def check_no_negative_prompts(records: Sequence[Prompt]) -> None:
    """Raise ValueError for a record with a negative prompt, beside an environment whose prompts have none."""
    for record in records:
        if record.negative_prompt is not None:
            raise ValueError(
                f"the prompt {record.text!r} has the 'negative_prompt' {record.negative_prompt!r}, and no prompt of "
                "the environment has one; give one to any of those, or leave it out here."
            )


def _checked_image(image: Any, text: str) -> Any:
    """Return a picture as it is, and its path as a Path."""
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise ValueError(f"there is no image {str(image)!r}, which the prompt {text!r} names.")
        return Path(image)
    if image is not None:
        from PIL.Image import Image

        if not isinstance(image, Image):
            raise TypeError(f"the image of {text!r} must be a path or a PIL image, got {type(image).__name__}.")
    return image


def _image_key(image: Any) -> str:
    if isinstance(image, Path):
        return image.as_posix()
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def _plain(value: Any, what: str, levels: int = LEVELS) -> Any:
    """Return a copy of what JSON can hold, tuples as lists; raises TypeError or ValueError for anything else."""
    if isinstance(value, str):
        return _encodable(value, what)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} holds {value!r}, which JSON has no number for; leave the field out, or give null.")
    if value is None or isinstance(value, bool | int | float):
        return value
    if not levels:
        raise ValueError(f"{what} must be nested at most {LEVELS} levels deep, got more, or a list that holds itself.")
    if isinstance(value, list | tuple):
        return [_plain(each, what, levels - 1) for each in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {_encodable(name, what): _plain(each, what, levels - 1) for name, each in value.items()}
    raise TypeError(
        f"{what} must be texts, numbers, lists, and mappings with texts as names, as JSON holds them; got "
        f"{type(value).__name__}: {value!r}."
    )


def _copied(value: Any) -> Any:
    """Return a copy of what :func:`_plain` returned; many times quicker than deepcopy."""
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _encodable(text: str, what: str = "the prompt") -> str:
    """Return the text; raises ValueError for half a character, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds half of a surrogate pair, which is not a character, in {text!r}.") from error
    return text
