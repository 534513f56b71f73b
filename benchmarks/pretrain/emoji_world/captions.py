"""The captions of emoji-world: a prompt for every fact that a scene can be asked to show."""

from itertools import product

from benchmarks.pretrain.emoji_world.facts import COLOURS, KINDS, NAMES, NUMBERS, OBJECTS, RELATIONS
from diffusion_gym.prompts import with_article

PREFIX = "a photo of "
"""Begins every prompt of GenEval; a share of the training captions goes without."""

_RADICES = {
    "single_object": (len(OBJECTS),),
    "two_object": (len(OBJECTS), len(OBJECTS)),
    "counting": (len(OBJECTS), len(NUMBERS)),
    "colors": (len(OBJECTS), len(COLOURS)),
    "position": (len(OBJECTS), len(OBJECTS), len(RELATIONS)),
    "color_attr": (len(OBJECTS), len(OBJECTS), len(COLOURS), len(COLOURS)),
}
"""What a caption of each kind is numbered by: the first object, the second, then the kind's own facts."""


def caption(kind: str, *facts: int) -> str:
    """Return the caption of a kind and its facts, which are indices in the order of ``_RADICES``."""
    first = OBJECTS[facts[0]]
    if kind == "single_object":
        return PREFIX + with_article(first.name)
    if kind == "counting":
        return PREFIX + NUMBERS[facts[1]] + " " + (first.plural if facts[1] else first.name)
    if kind == "colors":
        return PREFIX + with_article(f"{list(COLOURS)[facts[1]]} {first.name}")
    second = NAMES[facts[1]]
    if kind == "two_object":
        return f"{PREFIX}{with_article(first.name)} and {with_article(second)}"
    if kind == "position":
        return f"{PREFIX}{with_article(first.name)} {RELATIONS[facts[2]]} {with_article(second)}"
    one, other = (list(COLOURS)[index] for index in facts[2:])
    return f"{PREFIX}{with_article(f'{one} {first.name}')} and {with_article(f'{other} {second}')}"


def captions() -> tuple[str, ...]:
    """Return all captions, kind after kind, each kind's facts counting up like the digits of a number.

    Those of an object with itself and of an object in a colour of its own are listed, for the numbering, but never
    drawn.
    """
    return tuple(caption(kind, *facts) for kind in KINDS for facts in product(*map(range, _RADICES[kind])))


def offsets() -> dict[str, int]:
    """Return where each kind's captions begin in :func:`captions`."""
    starts, start = {}, 0
    for kind in KINDS:
        starts[kind] = start
        size = 1
        for radix in _RADICES[kind]:
            size *= radix
        start += size
    return starts
