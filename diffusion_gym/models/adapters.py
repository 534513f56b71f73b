"""Low-rank adapters in a pipeline's networks: targets, insertion and merging."""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from diffusion_gym.models.base import LoRAConfig

#: Names for groups of layers -> the endings of the layers' names.
Groups = Mapping[str, tuple[str, ...]]
#: Endings that an error lists.
_LISTED = 16

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
#: Groups of layers that LoRA adapts, by their suffixes in diffusers' UNets.
UNET_LORA_GROUPS: Groups = MappingProxyType(
    {
        "attention": _ATTENTION,
        "all": (
            *(*_ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
            *("conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj"),
        ),
    }
)
_JOINT_ATTENTION = (*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
#: The same in diffusers' transformers, whose text and image tokens attend jointly.
TRANSFORMER_LORA_GROUPS: Groups = MappingProxyType(
    {
        "attention": _JOINT_ATTENTION,
        "all": (
            *_JOINT_ATTENTION,
            *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
        ),
    }
)


def check_targets(name: str, lora: LoRAConfig | None, parts: Mapping[str, tuple[nn.Module, Groups]]) -> None:
    """Raise ValueError for a target without a layer, or a part without a target.

    Args:
        name: the model's.
        lora: adapters, or None where all weights are trained.
        parts: component of the pipeline -> (the network, its groups), all that are to be adapted.
    """
    if lora is None:
        return
    unknown = [t for t in lora.targets if not any(t in groups or _has(net, (t,)) for net, groups in parts.values())]
    untouched = [part for part, (network, groups) in parts.items() if not _has(network, lora.layers(groups))]
    if unknown or untouched:
        problem = f"none ends in {unknown[0]!r}" if unknown else f"none of its {untouched[0]} ends in one of them"
        raise ValueError(
            f"no layer of {name!r} could be adapted with LoRA targets {lora.targets}: {problem}. "
            f"Expected 'attention', 'all', or endings of its layers: {_listed(parts)}."
        )


def with_adapters(pretrained: nn.Module, lora: LoRAConfig, groups: Groups, own_method: bool) -> nn.Module:
    """Return a copy on the same frozen weights, with float32 adapters to train.

    Args:
        pretrained: the pipeline's network.
        lora: adapters whose targets :func:`check_targets` has seen.
        groups: the network's.
        own_method: whether the network has diffusers' or transformers' ``add_adapter``.

    Raises:
        ValueError: a target is a layer that peft cannot adapt.
    """
    import peft

    network = share_weights(pretrained)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.layers(groups)), init_lora_weights="gaussian"
    )
    if own_method:
        network.add_adapter(config)
    else:
        peft.inject_adapter_in_model(config, network)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return network


def share_weights(network: nn.Module) -> Any:
    """Return a copy of a frozen network that shares its weights: it takes no memory, and adapters can be added."""
    weights = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in weights})


def merged(network: nn.Module) -> nn.Module:
    """Merge a network's adapters into its weights, in place, remove them, and return the network."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, layer.get_base_layer())
    return network


def _has(network: nn.Module, endings: tuple[str, ...]) -> bool:
    """Return whether a layer's name ends so, as peft compares them."""
    after = tuple(f".{ending}" for ending in endings)
    return any(name in endings or name.endswith(after) for name, _ in network.named_modules())


def _listed(parts: Mapping[str, tuple[nn.Module, Groups]]) -> str:
    """Return the endings of each part's layers that can be adapted."""
    listed = []
    for component, (network, _) in parts.items():
        endings: dict[str, None] = {}
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                *before, last = name.rsplit(".", 2)
                endings[f"{before[-1]}.{last}" if last.isdecimal() and before else last] = None
        more = ", ..." if len(endings) > _LISTED else ""
        listed.append(f"{component} {', '.join(list(endings)[:_LISTED])}{more}")
    return "; ".join(listed)
