"""Checks a configuration's fields against what their annotations promise: kinds of values, finite numbers, choices."""

import math
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_KINDS: dict[type, str] = {bool: "True or False", int: "an integer", float: "a finite number", str: "text"}


def check_fields(config: Any) -> None:
    """Raise ValueError where a field annotated as bool, int, float, text or a choice holds something else.

    NaN and infinities are refused: NaN passes a bound such as ``value <= 0``, and JSON has neither.
    """
    for name, hint in get_type_hints(type(config)).items():
        value, hints = getattr(config, name), _alternatives(hint)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise ValueError(f"{name} must be one of {list(get_args(hint))}, got {value!r}.")
            continue
        kinds = [kind for kind in hints if kind in _KINDS]
        if not kinds or (value is None and type(None) in hints):
            continue
        if not any(_is(value, kind) for kind in kinds):
            raise ValueError(f"{name} must be {' or '.join(_KINDS[kind] for kind in kinds)}, got {value!r}.")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind)
