"""The prompts' metadata for rewards: who takes them, what is needed of them, and the check before sampling."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from diffusion_gym.prompt_records import Prompt

#: Positional and named arguments.
Arguments = tuple[list[Any], dict[str, Any]]


def metadata_arguments(
    function: Callable[..., object], n: int, metadata: Sequence[Mapping[str, Any]] | None
) -> Arguments:
    """Return the arguments behind images and prompts: a copy of the metadata, or none.

    A function takes metadata if it has a third positional parameter without a default, or a parameter ``metadata``; of
    a ``torch.nn.Module`` the signature of ``forward`` is used. ``*args`` takes them too, unless a third parameter comes
    before it, as the third positional argument, as in ddpo-pytorch and trl, or else ``**kwargs`` by the name
    ``metadata``. So a decorator without ``functools.wraps`` loses no metadata.

    Args:
        function: a reward, its ``pixels``, or a metric.
        n: number of images.
        metadata: n mappings; None is an empty one for each image.
    """
    signature = signature_of(function)
    bound = isinstance(function, partial) and "metadata" in function.keywords  # to metadata of the user's own
    if signature is None or bound:
        return [], {}
    parameters = list(signature.parameters.values())
    third = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)][2:3]
    by_name = any(
        each.name == "metadata" and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) for each in parameters
    )
    kinds = [each.kind for each in parameters]
    is_third = any(each.default is each.empty or each.name == "metadata" for each in third)
    is_third |= not third and not by_name and inspect.Parameter.VAR_POSITIONAL in kinds
    if not is_third and not by_name and inspect.Parameter.VAR_KEYWORD not in kinds:
        return [], {}
    given = [{} for _ in range(n)] if metadata is None else [copy.deepcopy(dict(each)) for each in metadata]
    return ([given], {}) if is_third else ([], {"metadata": given})


def signature_of(function: Callable[..., object]) -> inspect.Signature | None:
    """Return what a function takes, of a module its ``forward``; None for built-in callables without a signature."""
    try:
        return inspect.signature(_forward(function))
    except (TypeError, ValueError):
        return None


def _forward(function: Any) -> Callable[..., object]:
    """Return a module's ``forward``, also behind torch.compile and partial, whose own signatures say nothing."""
    if isinstance(function, partial):
        return partial(_forward(function.func), *function.args, **function.keywords)
    function = getattr(function, "_orig_mod", function)
    is_plain = isinstance(function, torch.nn.Module) and type(function).__call__ is torch.nn.Module.__call__
    return function.forward if is_plain else function


def check_metadata(reward: Callable[..., object], records: Sequence[Prompt], kind: str = "reward") -> None:
    """Raise ValueError, naming reward, field and prompt, for a record that lacks what a reward or metric needs.

    It says so by an attribute ``required_metadata``, names of fields, or by a method ``check_metadata(prompt,
    metadata)``, of a text and a mapping, which raises an error; it may have both, or neither. Those of what it wraps
    count too, behind ``functools.partial`` and ``functools.wraps``. ``kind`` is what the error calls it.
    """
    from diffusion_gym.rewards.base import reward_name
    from diffusion_gym.rewards.combine import WeightedSum

    if isinstance(reward, WeightedSum):
        for part in reward.rewards.values():
            check_metadata(part, records, kind)
        return
    inner = _wrapped(reward)
    if inner is not None:
        check_metadata(inner, records, kind)
    needed: Sequence[str] = getattr(reward, "required_metadata", ())
    check = getattr(reward, "check_metadata", None)
    for record in records:
        for name in (needed,) if isinstance(needed, str) else needed:
            if name not in record.reward_metadata:
                has = f"has {sorted(record.reward_metadata)}" if record.reward_metadata else "has no metadata"
                raise ValueError(
                    f"the {kind} {reward_name(reward)!r} needs the field {name!r} of every prompt, but {record.text!r} "
                    f"{has}; add the field to its record, as in {{'prompt': {record.text!r}, {name!r}: ...}}."
                )
        if check is not None:
            try:
                check(record.text, record.metadata_copy())
            except Exception as error:  # such as the KeyError of a field that is missing
                why = str(error) if isinstance(error, ValueError) else repr(error)
                raise ValueError(
                    f"the {kind} {reward_name(reward)!r} cannot score the prompt {record.text!r}: {why}"
                ) from error


def _wrapped(reward: Callable[..., object]) -> Callable[..., object] | None:
    """Return what a partial, which leaves the metadata free, or a decorator wraps."""
    if isinstance(reward, partial):
        return None if "metadata" in reward.keywords else reward.func
    return getattr(reward, "__wrapped__", None)
