"""GenEval's protocol (Ghosh et al. 2023, evaluate_images.py): does a picture show what its prompt asks?

The objects of a class that count are those above the confidence threshold, the surest first, at most 16. A picture is
right if each class has enough of them, and none too many; if the surest of them, as many as are asked for, all have the
colour that is asked for; and if each of these is where it should be, relative to each of its target's. The thresholds
are the paper's (section 3.2 and the defaults of its code). Where this differs from that code:

- Boxes replace masks: a detector that gives masks is not needed, and colours are named on the crop of the box.
- A position is checked even if the objects' colours are wrong. That changes only the graded score.
- What is not right is counted in shares, for the graded score; a picture is right if all shares are 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

from diffusion_gym.rewards.geneval.request import MOST, Asked, Request
from diffusion_gym.rewards.models.detection import Found


@dataclass(frozen=True)
class Rules:
    """GenEval's thresholds."""

    threshold: float = 0.3
    """An object counts if the detector is surer of it."""
    counting_threshold: float = 0.9
    """The same in counting prompts."""
    most: int = MOST
    """Objects of a class that are looked at."""
    max_overlap: float = 1.0
    """Of two objects of a class whose intersection over union is at least this, the less sure one does not count; 1
    keeps both."""
    margin: float = 0.1
    """Share of the two objects' sizes by which their centres must be apart."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value that is no number, or out of range."""
        for name in ("threshold", "counting_threshold"):
            _check(name, getattr(self, name), lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
        _check("max_overlap", self.max_overlap, lambda value: 0 < value <= 1, "a number above 0 and at most 1")
        _check("margin", self.margin, lambda value: 0 <= value < math.inf, "a finite number of at least 0")
        _check(
            "most", self.most, lambda value: isinstance(value, Integral) and int(value) >= 1, "an integer of at least 1"
        )

    def least(self, tag: str) -> float:
        """Return the threshold of a kind of prompts."""
        return self.counting_threshold if tag == "counting" else self.threshold


def _check(name: str, value: Any, is_right: Callable[[Any], bool], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not is_right(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}.")


class Check(NamedTuple):
    """One thing that a prompt asks, and how much of it a picture shows."""

    share: float
    """In [0, 1]; 1 is right."""
    reason: str
    """What is wrong, in a few words; "" where nothing is."""


@dataclass(frozen=True)
class Verdict:
    """What was found in a picture, and what of its prompt is right."""

    found: tuple[Found, ...]
    """The objects that count, the surest first."""
    checks: tuple[Check, ...]
    """For each class its count, then colours and positions that are asked, in the order of the prompt's record."""

    @property
    def right(self) -> bool:
        """Return whether all is right: GenEval's verdict."""
        return all(check.share == 1 for check in self.checks)

    @property
    def share(self) -> float:
        """Return the mean of the checks' shares, in [0, 1]; 1 if and only if all is right."""
        return sum(check.share for check in self.checks) / len(self.checks)

    @property
    def graded(self) -> float:
        """Return half the share, and half a point more if all is right: below 0.5, or 1."""
        return (self.share + self.right) / 2

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return what is wrong, in short words: "fox: 2 of 3", "cup is red, not blue", "fox is not left of cup"."""
        return tuple(check.reason for check in self.checks if check.reason)


def relations(first: Found, second: Found, margin: float = Rules.margin) -> set[str]:
    """Return where the first object is relative to the second: none, one or two of ``RELATIONS``."""
    offset, apart = [], []
    for axis in (0, 1):
        low, high = first.box[axis], first.box[axis + 2]
        other_low, other_high = second.box[axis], second.box[axis + 2]
        distance = (low + high - other_low - other_high) / 2
        offset.append(distance)
        gap = abs(distance) - margin * (abs(high - low) + abs(other_high - other_low))
        apart.append(math.copysign(max(gap, 0.0), distance))
    length = math.hypot(*offset)
    if max(map(abs, apart)) < 1e-3:
        return set()
    across, down = apart[0] / length, apart[1] / length
    held = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, true in held.items() if true}


def counted(found: Sequence[Found], tag: str, rules: Rules) -> list[Found]:
    """Return the objects that count, the surest first."""
    sure = sorted((one for one in found if one.confidence > rules.least(tag)), key=lambda one: -one.confidence)
    kept: list[Found] = []
    for name in dict.fromkeys(one.name for one in sure):
        apart: list[Found] = []
        for one in [each for each in sure if each.name == name][: rules.most]:
            if rules.max_overlap == 1 or all(_overlap(one, other) < rules.max_overlap for other in apart):
                apart.append(one)
        kept += apart
    return sorted(kept, key=lambda one: -one.confidence)


def groups(sure: Sequence[Found], request: Request) -> list[list[Found]]:
    """Return, for each entry of a request, the objects whose colours and positions count: the surest of their class."""
    return [[one for one in sure if one.name == asked.name][: asked.count] for asked in request.include]


def judge(found: Sequence[Found], request: Request, rules: Rules | None = None) -> Verdict:
    """Return the verdict on a picture with these objects."""
    rules = rules or Rules()
    sure = counted(found, request.tag, rules)
    names, members = [one.name for one in sure], groups(sure, request)
    checks = []
    for asked, group in zip(request.include, members, strict=True):
        checks.append(_count(asked, names.count(asked.name), request.most(asked.name)))
        if asked.colour is not None:
            checks.append(_colours(asked, group))
        if asked.position is not None:
            target = asked.position[1]
            checks.append(_positions(asked, group, request.include[target], members[target], rules.margin))
    asked_names = {asked.name for asked in request.include}
    for name in dict.fromkeys(name for name, _ in request.exclude if name not in asked_names):
        most, number = request.most(name) or 0, names.count(name)
        many = max(number - most, 0)
        checks.append(Check(max(0.0, 1 - many / max(most, 1)), f"{name}: {number}, at most {most}" if many else ""))
    return Verdict(tuple(sure), tuple(checks))


def _count(asked: Asked, number: int, most: int | None) -> Check:
    """Compare how many objects there are with how many there should be."""
    few, many = max(asked.count - number, 0), 0 if most is None else max(number - most, 0)
    share = max(0.0, 1 - (few + many) / asked.count)
    if few:
        return Check(share, f"no {asked.name}" if number == 0 else f"{asked.name}: {number} of {asked.count}")
    return Check(share, f"{asked.name}: {number}, not {most}" if many else "")


def _colours(asked: Asked, group: Sequence[Found]) -> Check:
    """Count the objects of the colour that is asked, of as many as are asked."""
    others = list(dict.fromkeys(one.colour or "of its own colour" for one in group if one.colour != asked.colour))
    right = sum(one.colour == asked.colour for one in group)
    reason = f"{asked.name} is {' and '.join(others)}, not {asked.colour}" if others else ""
    return Check(right / asked.count, reason)


def _positions(asked: Asked, group: Sequence[Found], target: Asked, others: Sequence[Found], margin: float) -> Check:
    """Count the pairs whose relative position is the one asked for, of as many as are asked for."""
    assert asked.position is not None
    relation = asked.position[0]
    pairs = [(one, other) for one in group for other in others]
    right = sum(relation in relations(one, other, margin) for one, other in pairs)
    wrong = f"{asked.name} is not {relation} {target.name}" if right < len(pairs) else ""
    return Check(right / (asked.count * target.count), wrong)


def _overlap(first: Found, second: Found) -> float:
    """Return the intersection over union of two boxes, whose last pixels count, as in GenEval's code."""

    def area(box: Sequence[float]) -> float:
        return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

    a, b = first.box, second.box
    both = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - both
    return both / union if union else 0.0
