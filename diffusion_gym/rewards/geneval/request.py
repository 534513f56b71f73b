"""What a prompt asks for, in the fields of GenEval's evaluation_metadata.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's kinds of prompts, the values of ``tag``."""

RELATIONS = ("left of", "right of", "above", "below")
"""Where an object may have to be, relative to an earlier one of its prompt."""

MOST = 16
"""Objects of a class that GenEval looks at."""

EXAMPLE = '{"prompt": "a photo of two cats", "tag": "counting", "include": [{"class": "cat", "count": 2}]}'


@dataclass(frozen=True)
class Asked:
    """Objects of one class that a picture must show."""

    name: str
    """The class."""
    count: int
    """How many, at least."""
    colour: str | None = None
    """Of each of them; None where any is right."""
    position: tuple[str, int] | None = None
    """One of ``RELATIONS``, and the index of the earlier entry that it is relative to."""


@dataclass(frozen=True)
class Request:
    """Everything that a prompt asks for."""

    tag: str
    """One of ``TAGS``."""
    include: tuple[Asked, ...]
    """What must be there, one or more entries."""
    exclude: tuple[tuple[str, int], ...] = ()
    """Classes, each with the number from which on its objects are too many."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the classes that a detector has to know, each once."""
        return tuple(dict.fromkeys([*(asked.name for asked in self.include), *(name for name, _ in self.exclude)]))

    def most(self, name: str) -> int | None:
        """Return how many objects of a class a picture may show, or None without a limit."""
        return min((count - 1 for banned, count in self.exclude if banned == name), default=None)


def read_request(prompt: str, metadata: Mapping[str, Any]) -> Request:
    """Return what a prompt's record asks for; fields other than ``tag``, ``include`` and ``exclude`` are ignored.

    Raises:
        ValueError: a missing field, or one that is not as GenEval writes it, with the prompt.
    """
    for field in ("tag", "include"):
        if field not in metadata:
            _refuse(prompt, f"has no field {field!r}; expected GenEval's fields, as in {EXAMPLE}")
    tag, include, exclude = metadata["tag"], metadata["include"], metadata.get("exclude", [])
    if tag not in TAGS:
        _refuse(prompt, f"has the tag {tag!r}; expected one of {list(TAGS)}")
    if not _is_list(include) or not include:
        _refuse(prompt, f"includes {include!r}; expected a list of one or more objects, as in {EXAMPLE}")
    if not _is_list(exclude):
        _refuse(prompt, f'excludes {exclude!r}; expected a list such as [{{"class": "cat", "count": 3}}]')
    request = Request(
        tag,
        tuple(_asked(prompt, entry, place) for place, entry in enumerate(include)),
        tuple((_name(prompt, entry, ()), _count(prompt, entry)) for entry in exclude),
    )
    names = [asked.name for asked in request.include]
    for place, asked in enumerate(request.include):
        if asked.name in names[:place]:  # whose objects would be whose? GenEval has no such prompt
            _refuse(prompt, f"includes {asked.name!r} twice; expected each class once, with its count and one colour")
        most = request.most(asked.name)
        if most is not None and most < asked.count:
            _refuse(prompt, f"asks for {asked.count} and for at most {most} of {asked.name!r}; no picture shows both")
    return request


def _asked(prompt: str, entry: Any, place: int) -> Asked:
    """Return an entry of ``include``."""
    name, count = _name(prompt, entry, ("color", "position")), _count(prompt, entry)
    colour, position = entry.get("color"), entry.get("position")
    if colour is not None and not isinstance(colour, str):
        _refuse(prompt, f"asks for the colour {colour!r} of {name!r}; expected a word such as 'red'")
    if position is None:
        return Asked(name, count, colour)
    if not _is_list(position) or len(position) != 2 or position[0] not in RELATIONS:
        _refuse(
            prompt,
            f"asks for the position {position!r} of {name!r}; expected one of {list(RELATIONS)} and the index of an "
            "earlier object, such as ['left of', 0]",
        )
    relation, target = position
    if not _is_whole(target) or not 0 <= target < place:
        _refuse(
            prompt,
            f"asks that {name!r} be {relation} object {target!r}; expected an earlier object's index, below {place}",
        )
    return Asked(name, count, colour, (relation, target))


def _name(prompt: str, entry: Any, more: tuple[str, ...]) -> str:
    """Return an entry's class, once its fields are known to be ``class``, ``count`` and some of ``more``."""
    known = ("class", "count", *more)
    if not isinstance(entry, Mapping) or not {"class", "count"} <= set(entry) <= set(known):
        _refuse(
            prompt, f"has the object {entry!r}; expected the fields 'class' and 'count', and of others {list(more)}"
        )
    if not isinstance(entry["class"], str) or not entry["class"].strip():
        _refuse(prompt, f"has the class {entry['class']!r}; expected a name such as 'cat'")
    return str(entry["class"])


def _count(prompt: str, entry: Mapping[str, Any]) -> int:
    """Return an entry's number of objects."""
    count = entry["count"]
    if not _is_whole(count) or not 1 <= count <= MOST:
        _refuse(prompt, f"has the count {count!r} of {entry['class']!r}; expected a whole number from 1 to {MOST}")
    return int(count)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _refuse(prompt: str, what: str) -> NoReturn:
    raise ValueError(f"the metadata of the prompt {prompt!r} {what}.")
