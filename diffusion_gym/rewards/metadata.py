"""The prompts' metadata for rewards: who takes them, what is needed of them, and the check before sampling."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from diffusion_gym.prompt_records import Prompt

#: Positional and named arguments.
Arguments = tuple[list[Any], dict[str, Any]]


def metadata_arguments(
    function: Callable[..., object], n: int, metadata: Sequence[Mapping[str, Any]] | None
) -> Arguments:
    """Return the arguments behind images and prompts: a copy of the metadata, or none.

    A function takes metadata if it has a third positional parameter without a default, or a parameter ``metadata``.

    Args:
        function: a reward, its ``pixels``, or a metric.
        n: number of images.
        metadata: n mappings; None is an empty one for each image.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in callables have no signature
        return [], {}
    third = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)][2:3]
    is_third = any(each.default is each.empty or each.name == "metadata" for each in third)
    by_name = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    is_bound = isinstance(function, partial) and "metadata" in function.keywords  # to metadata of the user's own
    if not is_third and (is_bound or "metadata" not in by_name):
        return [], {}
    given = [{} for _ in range(n)] if metadata is None else [copy.deepcopy(dict(each)) for each in metadata]
    return ([given], {}) if is_third else ([], {"metadata": given})


def check_metadata(reward: Callable[..., object], records: Sequence[Prompt], kind: str = "reward") -> None:
    """Raise ValueError, naming reward, field and prompt, for a record that lacks what a reward or metric needs.

    It says so by an attribute ``required_metadata``, names of fields, or by a method ``check_metadata(prompt,
    metadata)``, of a text and a mapping, which raises ValueError; it may have both, or neither. ``kind`` is what the
    error calls it.
    """
    from diffusion_gym.rewards.base import reward_name
    from diffusion_gym.rewards.combine import WeightedSum

    if isinstance(reward, WeightedSum):
        for part in reward.rewards.values():
            check_metadata(part, records, kind)
        return
    needed: Sequence[str] = getattr(reward, "required_metadata", ())
    check = getattr(reward, "check_metadata", None)
    for record in records:
        for name in (needed,) if isinstance(needed, str) else needed:
            if name not in record.metadata:
                has = f"has {sorted(record.metadata)}" if record.metadata else "has no metadata"
                raise ValueError(
                    f"the {kind} {reward_name(reward)!r} needs the field {name!r} of every prompt, but {record.text!r} "
                    f"{has}; add the field to its record, as in {{'prompt': {record.text!r}, {name!r}: ...}}."
                )
        if check is not None:
            try:
                check(record.text, record.metadata_copy())
            except ValueError as error:
                raise ValueError(
                    f"the {kind} {reward_name(reward)!r} cannot score the prompt {record.text!r}: {error}"
                ) from error
