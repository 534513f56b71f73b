"""Trained weights and optimizer moments as named tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from algorithms.parallel.sharding import laid_out_as, whole

Named = Mapping[str, nn.Parameter]
Groups = dict[str, dict[str, Tensor]]


def get_tensors(
    named: Named,
    optimizer: torch.optim.Optimizer | None,
    others: Mapping[str, Mapping[str, Tensor]],
    device: torch.device | str | None = None,
    copy: bool = True,
) -> Groups:
    """Return tensors in groups: ``{"policy": {name: weight}, "optimizer": {name/moment: tensor}, **others}``.

    Collective where tensors are sharded, whose copies are whole.

    Args:
        named: the trained weights.
        optimizer: its moments; bitsandbytes' step counter, an integer, becomes a tensor of shape (), int64.
        others: further groups; empty ones are left out.
        device: of the copies; None leaves each beside its original.
        copy: False returns the tensors themselves where they are on the device already.
    """
    groups: Groups = {"policy": {name: _read(value, device, copy) for name, value in named.items()}}
    if optimizer is not None:
        groups["optimizer"] = {
            f"{name}/{key}": _read(torch.as_tensor(moment), device, copy)
            for name, value in named.items()
            for key, moment in optimizer.state.get(value, {}).items()
        }
    for group, tensors in others.items():
        if tensors:
            groups[group] = {name: _read(value, device, copy) for name, value in tensors.items()}
    return groups


def _read(value: Tensor, device: torch.device | str | None, copy: bool) -> Tensor:
    value = whole(value)
    return value.detach().to(value.device if device is None else device, copy=copy)


def set_tensors(
    named: Named, optimizer: torch.optim.Optimizer | None, groups: Groups, exact_match: bool = True
) -> None:
    """Write what :func:`get_tensors` returned.

    Args:
        named: the trained weights by name.
        optimizer: whose moments are set.
        groups: new values.
        exact_match: whether every weight must be given.

    Raises:
        ValueError: names or shapes that are not this policy's, or a value that is not finite; nothing is changed then.
    """
    weights, moments = groups.get("policy", {}), groups.get("optimizer", {})
    _check_match(weights, named, complete=exact_match)
    _check_moments(moments, named)
    _check_finite(weights)
    _check_finite(moments)
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(laid_out_as(value, named[name]))
    if optimizer is None:
        return
    optimizer.state.clear()
    for key, value in moments.items():
        name, _, moment = key.rpartition("/")
        parameter = named[name]
        if value.ndim == 0:  # a step counter: torch's is a tensor that stays on the CPU, bitsandbytes' an integer
            optimizer.state[parameter][moment] = value.clone() if value.is_floating_point() else int(value)
        else:
            optimizer.state[parameter][moment] = laid_out_as(value, parameter)


def flatten(groups: Groups) -> dict[str, Tensor]:
    """Join group and name with a slash, for one safetensors file."""
    return {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> Groups:
    """Undo :func:`flatten`."""
    groups: Groups = {}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    return groups


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError for names or shapes that differ from those expected, or a value that is not finite."""
    _check_match(given, expected, complete=True)
    _check_finite(given)


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values of the same names and shapes into tensors, in place."""
    for name, target in targets.items():
        target.copy_(laid_out_as(values[name], target))


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"{name!r} holds NaN or infinity; weights and moments must be finite. Use another checkpoint."
            )


def _check_moments(given: Mapping[str, Tensor], expected: Named) -> None:
    for key, value in given.items():
        name, _, moment = key.rpartition("/")
        if name not in expected or (moment.startswith("exp_avg") and value.shape != expected[name].shape):
            raise ValueError(
                f"the optimizer's {key!r} of shape {tuple(value.shape)} fits no weight of this policy. Are model, LoRA "
                "configuration and optimizer the same?"
            )


def _check_match(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], complete: bool) -> None:
    missing = sorted(set(expected) - set(given)) if complete else []
    surplus = sorted(set(given) - set(expected))
    wrong = [name for name in given if name in expected and given[name].shape != expected[name].shape]
    if missing or surplus or wrong:
        name = (missing or surplus or wrong)[0]
        kind = "lacks" if missing else ("has the unknown" if surplus else "has another shape for")
        raise ValueError(
            f"the weights do not fit this policy: the checkpoint {kind} {name!r} ({len(missing)} missing, "
            f"{len(surplus)} unknown, {len(wrong)} of another shape). Are model and LoRA configuration the same?"
        )
