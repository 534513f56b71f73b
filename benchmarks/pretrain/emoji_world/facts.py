"""What the world of emoji-world holds: its objects, colours, relations and numbers; importable without torch."""

from typing import NamedTuple

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The kinds of prompts, by GenEval's tags."""

RELATIONS = ("left of", "right of", "above", "below")
"""How the first object of a position prompt lies to the second."""

NUMBERS = ("one", "two", "three", "four")
"""The numbers of counting prompts."""

COLOURS = {
    "red": (225, 30, 40),
    "orange": (255, 135, 0),
    "yellow": (250, 220, 30),
    "green": (40, 170, 60),
    "blue": (45, 95, 230),
    "purple": (150, 50, 190),
}
"""The colours of tinted objects, in RGB."""


class Thing(NamedTuple):
    """One kind of object."""

    name: str
    """In prompts."""
    plural: str
    """In counting prompts."""
    glyph: str
    """The character that draws it."""
    own: tuple[str, ...] = ()
    """The colours that its glyph has anyway; no prompt asks for them."""


OBJECTS = (
    Thing("cat", "cats", "🐱", ("orange", "yellow")),
    Thing("rabbit", "rabbits", "🐰"),
    Thing("fox", "foxes", "🦊", ("orange",)),
    Thing("monkey", "monkeys", "🐵"),
    Thing("pig", "pigs", "🐷"),
    Thing("frog", "frogs", "🐸", ("green",)),
    Thing("chicken", "chickens", "🐔"),
    Thing("turtle", "turtles", "🐢", ("green",)),
    Thing("dolphin", "dolphins", "🐬", ("blue",)),
    Thing("butterfly", "butterflies", "🦋", ("orange",)),
    Thing("spider", "spiders", "🕷"),
    Thing("duck", "ducks", "🦆"),
    Thing("car", "cars", "🚗", ("red",)),
    Thing("tree", "trees", "🌲", ("green",)),
    Thing("house", "houses", "🏠"),
    Thing("umbrella", "umbrellas", "☂", ("blue", "purple")),
    Thing("mushroom", "mushrooms", "🍄", ("red",)),
    Thing("airplane", "airplanes", "✈", ("blue",)),
    Thing("cup", "cups", "☕"),
    Thing("guitar", "guitars", "🎸", ("red",)),
)
"""The objects: animals of the paper and things, chosen so that each stays legible at 20 pixels in every colour."""

NAMES = tuple(thing.name for thing in OBJECTS)


def asked_colours(thing: Thing) -> tuple[str, ...]:
    """Return the colours that a prompt may ask for."""
    return tuple(colour for colour in COLOURS if colour not in thing.own)


def labels() -> tuple[str, ...]:
    """Return the detectors' classes: each object as it is ("fox"), then in every colour that is asked ("red fox")."""
    tinted = [f"{colour} {thing.name}" for thing in OBJECTS for colour in asked_colours(thing)]
    return (*NAMES, *tinted)
