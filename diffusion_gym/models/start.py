"""A LoRA that training starts from: merged into the pretrained weights, or trained on; loaded by diffusers itself."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffusion_gym.choices import CHECKPOINTS, LoRAConfig
from diffusion_gym.errors import reason
from diffusion_gym.libraries import no_progress_bars
from diffusion_gym.models.adapters import Groups
from diffusion_gym.models.files import came_of, check_files
from diffusion_gym.paths import user_path

#: As diffusers writes it, and as runs export it.
_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class StartingLoRA:
    """Adapters that are trained further.

    Attributes:
        source: where they come from.
        lora: their rank, alpha and targets.
        weights: component of the pipeline -> name -> tensor.
    """

    source: str
    lora: LoRAConfig
    weights: Mapping[str, Mapping[str, Tensor]]

    def check(self, lora: LoRAConfig | None, components: set[str]) -> None:
        """Raise ValueError for adapters, or trained components, that are not those of the LoRA."""
        adapted = set(self.weights)
        if lora != self.lora:
            asked = "all weights" if lora is None else f"rank {lora.rank}, alpha {lora.alpha:g} on {lora.targets}"
            raise ValueError(
                f"the LoRA {self.source!r} has rank {self.lora.rank} and alpha {self.lora.alpha:g} on "
                f"{_shown(self.lora.targets)}, and is trained on as it is; got {asked}. Leave out the adapter's "
                "settings, or merge it (start_from_mode 'merge')."
            )
        if components != adapted:
            raise ValueError(
                f"the LoRA {self.source!r} adapts {_shown(sorted(adapted))}, but {_shown(sorted(components))} would be "
                "trained; set what is trained (policy.train) accordingly, or merge it (start_from_mode 'merge')."
            )

    def put_into(self, component: str, network: nn.Module) -> None:
        """Give the adapters of one component's network their values."""
        from peft import set_peft_model_state_dict

        loaded = set_peft_model_state_dict(network, dict(self.weights[component]))
        assert not loaded.unexpected_keys


def place_of(source: str) -> tuple[str, str | None]:
    """Return what diffusers loads a LoRA from: a folder and a file's name in it, or a hub id and None.

    Raises:
        ValueError: there is no such file, folder or hub id, or no single file of weights in the folder.
    """
    path = user_path(source)
    check_files(path, f"LoRA {source!r}")
    if path.is_file() and path.suffix == ".safetensors":
        return str(path.parent), path.name
    found = sorted(file.name for file in path.glob("*.safetensors"))
    if _FILE in found or len(found) == 1:
        return str(path), _FILE if _FILE in found else found[0]
    if path.exists() or path.suffix in CHECKPOINTS or source.count("/") != 1 or source.startswith((".", "/", "~")):
        came = came_of(path, f"{len(found)} .safetensors files")
        raise ValueError(
            f"start_from {source!r} must be a LoRA's .safetensors file, a folder with {_FILE} or a single such file (a "
            f"run's folder, for example), or a hub id such as 'owner/name'; {came}."
        )
    return source, None


def merge(pipe: Any, name: str, source: str) -> None:
    """Merge a LoRA into a pipeline's weights, as diffusers' ``fuse_lora`` does, with the arguments of :func:`taken`."""
    _attach(pipe, name, source)
    pipe.fuse_lora()
    pipe.unload_lora_weights()


def taken(pipe: Any, name: str, source: str, groups: Mapping[str, Groups]) -> StartingLoRA:
    """Return a LoRA to train on, and leave the pipeline as it was.

    Args:
        pipe: the pipeline.
        name: the model's.
        source: file, folder or hub id.
        groups: component -> its groups of layers, by which targets are named.

    Raises:
        ValueError: it cannot be loaded, or its layers differ in what this package has one setting for.
    """
    from peft import get_peft_model_state_dict

    _attach(pipe, name, source)
    try:
        weights: dict[str, dict[str, Tensor]] = {}
        found: set[tuple[int, float, bool]] = set()
        targets: dict[str, None] = {}
        for component, network in _adapted(pipe):
            (adapter,) = network.peft_config
            config = network.peft_config[adapter]
            uneven = config.rank_pattern or config.alpha_pattern or config.use_dora or config.lora_bias
            found.add((config.r, float(config.lora_alpha), bool(uneven)))
            tensors = get_peft_model_state_dict(network, adapter_name=adapter)
            weights[component] = {key: value.detach().clone() for key, value in tensors.items()}
            targets |= dict.fromkeys(_targets(network, config, groups.get(component, {})))
        rank, alpha, uneven = next(iter(found))
        if len(found) > 1 or uneven or config.peft_type != "LORA":
            raise ValueError(
                f"the layers of the LoRA {source!r} differ in rank or alpha, or are no plain adapters, so it cannot be "
                "trained on; merge it (start_from_mode 'merge')."
            )
    finally:
        pipe.unload_lora_weights()
    return StartingLoRA(source, LoRAConfig(rank, alpha, tuple(targets)), weights)


def _attach(pipe: Any, name: str, source: str) -> None:
    """Load a LoRA with diffusers' own loader; raises ValueError unless each of its layers has a place."""
    folder, file = place_of(source)
    given = {"weight_name": file, "use_safetensors": True}
    try:
        with no_progress_bars(), _errors_alone():
            pipe.load_lora_weights(folder, **given)
            loaded = type(pipe).lora_state_dict(folder, **given)
    except Exception as error:  # the libraries raise many unrelated types
        raise ValueError(
            f"diffusers could not load the LoRA {source!r} into {name!r}: {reason(error)}. It must have been trained "
            "on this kind of model."
        ) from error
    tensors = loaded[0] if isinstance(loaded, tuple) else loaded
    layers = {key.split(".lora")[0] for key in tensors if ".lora" in key}
    placed = sum(len(_layers(network)) for _, network in _adapted(pipe))
    if not placed or placed < len(layers):
        pipe.unload_lora_weights()
        raise ValueError(
            f"the LoRA {source!r} does not fit {name!r}: of its {len(layers)} layers {placed} have a place there. It "
            "must have been trained on this kind of model."
        )


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """Keep diffusers from warning of the pipeline's parts that a LoRA leaves alone."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _adapted(pipe: Any) -> Iterator[tuple[str, Any]]:
    """Yield the components that have adapters."""
    for component, network in pipe.components.items():
        if isinstance(network, nn.Module) and _layers(network):
            yield component, network


def _layers(network: nn.Module) -> set[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)}


def _targets(network: nn.Module, config: Any, groups: Groups) -> tuple[str, ...]:
    """Return how a LoRAConfig names a network's adapted layers: a group, endings, or the layers' whole names."""
    layers = _layers(network)
    wrapped = {name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    names = {name.removesuffix(".base_layer") for name in wrapped if ".lora_" not in name}
    own = () if isinstance(config.target_modules, str) else tuple(sorted(config.target_modules))
    for targets, endings in [*(((group,), groups[group]) for group in groups), (own, own)]:
        if {name for name in names if name in endings or name.endswith(tuple(f".{end}" for end in endings))} == layers:
            return targets
    return tuple(sorted(layers))


def _shown(names: Any, most: int = 8) -> str:
    """Return names for a message, the first of many."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
