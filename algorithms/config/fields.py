"""Checks a configuration's fields against what their annotations promise: kinds of values, finite numbers, choices."""

import dataclasses
import math
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_KINDS: dict[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    str: "text",
    tuple[str, ...]: "a tuple of texts",
    tuple[float, ...]: "a tuple of finite numbers",
}


def check_fields(config: Any, group: str = "") -> None:
    """Raise ValueError where a field, also of a dataclass inside, holds another kind of value than its annotation.

    Checked are bool, int, float, text, tuples of texts or numbers, choices and dataclasses. NaN and infinities are
    refused: NaN passes a bound such as ``value <= 0``, and JSON has neither. ``group`` begins the fields' names.
    """
    for name, hint in get_type_hints(type(config)).items():
        value, hints = getattr(config, name), _alternatives(hint)
        shown = group + name
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise ValueError(f"{shown} must be one of {list(get_args(hint))}, got {value!r}.")
        elif dataclasses.is_dataclass(hint):
            if not isinstance(value, hint):  # type: ignore[arg-type]
                raise ValueError(f"{shown} must be a {hint.__name__}, got {value!r}.")  # type: ignore[union-attr]
            check_fields(value, f"{shown}.")
        else:
            kinds = [kind for kind in hints if kind in _KINDS]
            allowed = not kinds or (value is None and type(None) in hints) or any(_is(value, kind) for kind in kinds)
            if not allowed:
                raise ValueError(f"{shown} must be {' or '.join(_KINDS[kind] for kind in kinds)}, got {value!r}.")


def check_statistics(buffer_size: int, min_count: int) -> None:
    """Raise ValueError unless 1 <= min_count <= buffer_size, as per-prompt statistics need."""
    if not 1 <= min_count <= buffer_size:
        raise ValueError(
            f"expected 1 <= min_count <= buffer_size, got min_count={min_count}, buffer_size={buffer_size}."
        )


def check_range(name: str, value: object) -> None:
    """Raise ValueError unless the value is a pair of finite numbers that rise within [0, 1]."""
    pair = isinstance(value, tuple) and len(value) == 2 and all(_is(item, float) for item in value)
    if not (pair and 0 <= value[0] < value[1] <= 1):  # type: ignore[index]
        raise ValueError(f"{name} must be two numbers that rise within [0, 1], such as (0.65, 1.0), got {value!r}.")


def check_guidance(scale: float, rescale: float, image_scale: float, negative_prompt: str | None) -> None:
    """Raise ValueError for numbers out of range, and for what does nothing without guidance."""
    if scale < 0:
        raise ValueError(f"guidance_scale must be at least 0 (up to 1: no guidance), got {scale}.")
    if not 0 <= rescale <= 1 or (rescale > 0 and scale <= 1):
        raise ValueError(
            f"guidance_rescale must lie in [0, 1], and above 0 needs a guidance_scale above 1, got {rescale} with "
            f"guidance_scale {scale:g}."
        )
    if negative_prompt is not None and scale <= 1:
        raise ValueError(
            f"negative_prompt {negative_prompt!r} needs guidance: set guidance_scale above 1 (5 is usual), got "
            f"{scale:g}."
        )
    if not 1 <= image_scale < math.inf:
        raise ValueError(f"image_guidance_scale must be at least 1 (none), got {image_scale}.")


def check_kl_limit(limit: float) -> None:
    """Raise ValueError unless the limit of a KL is a positive, finite number."""
    if not 0 < limit < math.inf:
        raise ValueError(f"the limit of the KL must be a positive, finite number of nats per image, got {limit!r}.")


def check_patience(patience: object) -> None:
    """Raise ValueError unless the patience is an integer of at least 1."""
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise ValueError(f"patience must be an integer of at least 1, got {patience!r}.")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is(value: object, kind: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(item, get_args(kind)[0]) for item in value)
    return isinstance(value, kind)
