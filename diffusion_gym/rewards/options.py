"""Options in a reward's text, ``name?key=value&key=value``, by the annotations of its constructor."""

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from diffusion_gym.naming import did_you_mean
from diffusion_gym.paths import expanded


def parse_options(name: str, constructor: Callable[..., Any], text: str) -> dict[str, Any]:
    """Return the part behind the question mark as keyword arguments.

    Values are texts, numbers or ``true``/``false``, as the constructor's annotations say. ``%2C``, ``%26`` and ``%25``
    are a comma, an ampersand and a percent sign.

    Args:
        name: the reward's, for messages.
        constructor: takes the arguments.
        text: ``key=value&key=value``, or nothing.

    Raises:
        ValueError: an unknown or repeated key, or a value of another type.
    """
    types_of = _options(constructor)
    given: dict[str, Any] = {}
    for part in text.split("&") if text else ():
        key, equals, value = part.partition("=")
        if key not in types_of:
            known = f"expected some of {sorted(types_of)}" if types_of else "it has no options"
            raise ValueError(f"unknown option {key!r} of reward {name!r}; {known}.{did_you_mean(key, types_of)}")
        if key in given:
            raise ValueError(f"option {key!r} of reward {name!r} is given twice.")
        if not equals or not value:
            raise ValueError(f"option {key!r} of reward {name!r} has no value; expected {name}?{key}=VALUE.")
        given[key] = _convert(name, key, unquote(value), types_of[key])
    return given


def _options(constructor: Callable[..., Any]) -> dict[str, type]:
    """Return the types of the parameters that a text can give: texts, numbers and truth values, by name."""
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    hints = typing.get_type_hints(function)
    found = {key: _plain_type(hints[key]) for key in inspect.signature(constructor).parameters if key in hints}
    return {key: kind for key, kind in found.items() if kind is not None}


def _plain_type(hint: Any) -> type | None:
    if typing.get_origin(hint) is typing.Literal:
        return str
    alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [kind for kind in alternatives if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (str, int, float, bool) else None


def _convert(name: str, key: str, value: str, kind: type) -> Any:
    try:
        if kind is str:
            return expanded(value)  # a text that begins with ~/ is a path in the home folder
        return {"true": True, "false": False}[value] if kind is bool else kind(value)
    except (KeyError, ValueError) as error:
        expected = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"option {key!r} of reward {name!r} must be {expected}, got {value!r}.") from error
