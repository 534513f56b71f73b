"""Checks configuration fields against the choices that their annotations name."""

from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(config: Any) -> None:
    """Raise ValueError where a field annotated with a Literal holds another value."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            raise ValueError(f"{name} must be one of {list(get_args(hint))}, got {getattr(config, name)!r}.")
