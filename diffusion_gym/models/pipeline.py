"""The base of all families of diffusers pipelines; a family's file holds only what differs.

A family gives its denoiser's call, its conditioning and its shapes. Loading, adapters, export and pickling are here,
decoding is in ``images.py``.
"""

import copy
import dataclasses
import functools
import inspect
import math
import shutil
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_gym.errors import reason
from diffusion_gym.libraries import dtype_argument, no_progress_bars
from diffusion_gym.models.adapters import TRANSFORMER_LORA_GROUPS as TRANSFORMER_LORA_GROUPS
from diffusion_gym.models.adapters import UNET_LORA_GROUPS as UNET_LORA_GROUPS
from diffusion_gym.models.adapters import Groups, check_targets, merged, with_adapters
from diffusion_gym.models.base import DTYPES, Denoiser, LoRAConfig, ModelDtype, ModelSettings
from diffusion_gym.models.files import variant_of
from diffusion_gym.models.images import ImageModel
from diffusion_gym.models.probe import check_channels, check_runs, check_sample_size
from diffusion_gym.models.schedulers import DIFFUSION_SCHEDULERS, named_scheduler, read_scheduler_config
from diffusion_gym.models.single_file import load_single_file
from diffusion_gym.models.sizes import check_size, sized
from diffusion_gym.models.start import merge, taken
from diffusion_gym.paths import user_path
from diffusion_gym.recommended import FILE, in_folder
from diffusion_gym_torchvision import repair_torchvision

#: Stable Diffusion's pipelines refuse heights and widths that this does not divide, whatever their VAE.
_PIPELINES_ASK_FOR = 8


class PipelineDenoiser(Denoiser):
    """A pipeline's network behind the denoiser's signature; a family says how it is called.

    The network is registered under its component's name in the pipeline, by which checkpoints name its weights.
    """

    component: ClassVar[str]

    def __init__(self, network: nn.Module) -> None:
        """Args: network: the pipeline's component, owned by this denoiser."""
        super().__init__()
        self.add_module(self.component, network)

    @property
    def network(self) -> Any:
        """Return the diffusers network."""
        return getattr(self, self.component)

    @property
    def dtype(self) -> torch.dtype:
        """Return the network's dtype; diffusers' own property walks through all modules at each call."""
        return next(self.network.parameters()).dtype


class PipelineModel(ImageModel):
    """A pipeline's folder or hub id. A family sets the class attributes, and gives the abstract methods.

    Attributes:
        pipe: the diffusers pipeline, frozen and in evaluation mode.
        load_arguments: what ``from_pretrained`` was given beside the folder.
    """

    prompt_fields: ClassVar[frozenset[str]] = frozenset({"negative_prompt"})
    #: Wraps the trained network; its ``component`` is the network's name in the pipeline.
    denoiser_class: ClassVar[type[PipelineDenoiser]]
    #: Names for groups of layers in ``LoRAConfig.targets``.
    lora_groups: ClassVar[Groups] = UNET_LORA_GROUPS
    #: Whether the pipeline has ``load_lora_weights``; without it adapters are merged into exported weights.
    has_lora_loader: ClassVar[bool] = True
    #: Classes of the schedulers that tell how such a model was trained.
    schedulers: ClassVar[Sequence[str]] = DIFFUSION_SCHEDULERS
    #: Given to ``from_pretrained`` beside the dtype.
    load_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    #: How many latents the network takes in its channels: the noisy ones, and in families that edit an image its own.
    latent_inputs: ClassVar[int] = 1
    #: Whether the VAE stays float32 beside networks in float16, in which some overflow.
    float32_vae: ClassVar[bool] = False
    #: Whether the pipeline cuts prompts to the tokenizer's own maximum, which text encoders then must take.
    tokenizer_cuts: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        source: str,
        device: torch.device,
        dtype: ModelDtype,
        settings: ModelSettings = ModelSettings(),  # noqa: B008 - frozen
    ) -> None:
        """Load the pipeline from the folder or hub id ``source``.

        Raises:
            ValueError: diffusers cannot load it (a missing file, a network that is not there), the family cannot use
                what it holds, its parts do not run together, or its recommended settings are no such file.
        """
        self.name, self.device, self.dtype, self.settings = name, device, dtype, settings
        self.recommended = in_folder(source, type(self).recommended)
        self.default_prompts = self.recommended.prompts or type(self).default_prompts
        self.pipe = self._load(source).to(device)
        if settings.scheduler is not None:
            self.pipe.scheduler = named_scheduler(name, settings.scheduler, self.pipe.scheduler.config, self.schedulers)
        self._start_from()
        self.pipe.set_progress_bar_config(disable=True)
        for part in self.networks:
            part.requires_grad_(False).eval()
        scheduler = self.pipe.scheduler
        self.scheduler_config = read_scheduler_config(name, type(scheduler).__name__, scheduler.config, self.schedulers)
        self._check_parts()
        self._check_tokenizers()
        self._prepare_vae()
        self.latent_shape, self.image_shape = self._shapes()
        check_size(self)
        self.conditioning_shapes = self._conditioning_shapes()
        check_runs(self)

    # -- what a family gives ----------------------------------------------------------------------------------------

    @abstractmethod
    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one image's conditioning; "prompt_embedding" (L, D) first."""

    def _load_options(self, source: str) -> Mapping[str, Any]:
        """Return what ``from_pretrained`` is given beside the dtype; here the class's ``load_options``."""
        return self.load_options

    def _check_parts(self) -> None:
        """Raise ValueError for a pipeline that cannot be used, after it is loaded."""

    def _shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Return (c, h, w) of the latents and (3, H, W) of the images; here from the network's ``sample_size``.

        A family that can draw other sizes asks :func:`sized` for them.
        """
        network = getattr(self.pipe, self.denoiser_class.component)
        check_sample_size(self.name, self.denoiser_config)
        check_channels(self.name, network, self.pipe.vae, self.latent_inputs)
        size = network.config.sample_size
        h, w = (size, size) if isinstance(size, int) else size
        scale = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        patch = getattr(network.config, "patch_size", 1)  # of a transformer
        height, width = sized(self, (h * scale, w * scale), math.lcm(patch * scale, _PIPELINES_ASK_FOR))
        channels = network.config.in_channels // self.latent_inputs
        return (channels, height // scale, width // scale), (3, height, width)

    # -- the contract of a model ------------------------------------------------------------------------------------

    @property
    def networks(self) -> list[nn.Module]:
        """Return the pipeline's components that have weights."""
        return [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]

    @property
    def rescales_guidance(self) -> bool:
        """Return whether the pipeline takes ``guidance_rescale``."""
        return "guidance_rescale" in inspect.signature(type(self.pipe).__call__).parameters

    @property
    def prompt_readers(self) -> Mapping[str, int]:
        """Return tokenizer in the pipeline -> tokens of a prompt that its text encoder reads, if there are any."""
        return {}

    @property
    def longest_prompt(self) -> int | None:
        """Return the most tokens that any of its text encoders reads."""
        return max(self.prompt_readers.values(), default=None)

    def read_of(self, prompts: Sequence[str]) -> list[Hashable]:
        """Return the tokens that all text encoders together read of each of n texts."""
        read: list[Hashable] = list(prompts) if not self.prompt_readers else [()] * len(prompts)
        for part, limit in self.prompt_readers.items():
            tokenizer = getattr(self.pipe, part)
            tokens = tokenizer(self._expanded(prompts, tokenizer), truncation=True, max_length=limit).input_ids
            read = [(before, tuple(more)) for before, more in zip(read, tokens, strict=True)]
        return read

    def _expanded(self, prompts: Sequence[str], tokenizer: Any) -> list[str]:
        """Return the prompts with textual inversions of several vectors written out, as the pipeline does."""
        convert = getattr(self.pipe, "maybe_convert_prompt", None)  # Stable Diffusion 3 has no textual inversions
        return list(prompts) if convert is None else convert(list(prompts), tokenizer)

    @property
    def denoiser_config(self) -> Mapping[str, Any]:
        """Return the network's configuration."""
        config: Mapping[str, Any] = getattr(self.pipe, self.denoiser_class.component).config
        return config

    @property
    def solver_config(self) -> Mapping[str, Any]:
        """Return the configuration of the pipeline's own scheduler, as ``from_config`` is given it."""
        config: Mapping[str, Any] = self.pipe.scheduler.config
        return config

    def build_denoiser(self, lora: LoRAConfig | None = None) -> PipelineDenoiser:
        """Return a copy of the network: float32 and fully trainable, or frozen with float32 adapters.

        With adapters the frozen weights are shared with the pipeline: they are in memory once.

        Raises:
            ValueError: no layer matches one of the adapter's targets.
        """
        self._check_targets(lora, {self.denoiser_class.component: self.lora_groups})
        return self.denoiser_class(self._trainable(self.denoiser_class.component, lora, self.lora_groups))

    def export(self, denoiser: Denoiser, folder: Path, lora: LoRAConfig | None) -> None:
        """Write ``pytorch_lora_weights.safetensors`` (with the adapter's metadata), or a full pipeline folder."""
        if not isinstance(denoiser, self.denoiser_class):
            raise TypeError(f"expected the denoiser this model built, got {type(denoiser).__name__}.")
        if self.exports_lora_file(lora):
            self._save_lora(folder, {denoiser.component: denoiser.network})
        else:
            network: Any = merged(copy.deepcopy(denoiser.network))
            if network.dtype != DTYPES[self.dtype]:
                network = network.to(DTYPES[self.dtype])
            self._save_pipeline(folder, {denoiser.component: network})

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any] | None:
        """Return the pipeline's arguments, beside steps and eta, that draw as the policy does.

        Args:
            prompt: to draw.
            guidance_scale: the policy's; 1 without guidance.

        Returns:
            Name -> value, or None if the family does not say (model cards then have no code for the call).
        """
        return None

    def exports_lora_file(self, lora: LoRAConfig | None) -> bool:
        """Return whether :meth:`export` writes one LoRA file, not a pipeline folder."""
        return lora is not None and self.has_lora_loader

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its name."""
        from diffusion_gym.models import load_model

        reload = functools.partial(load_model, **dataclasses.asdict(self.settings))
        return reload, (self.name, str(self.device), self.dtype)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _load(self, source: str) -> Any:
        repair_torchvision()
        from diffusers import DiffusionPipeline

        self.load_arguments: dict[str, Any] = {**dtype_argument(DTYPES[self.dtype]), **self._load_options(source)}
        variant = self.settings.model_variant
        if variant is not None:
            self.load_arguments["variant"] = variant
        if self.settings.model_config is not None:
            config = str(user_path(self.settings.model_config))
            self.load_arguments |= {"config": config, "local_files_only": True}
            return load_single_file(self.name, source, self.load_arguments)
        if Path(source).is_dir():
            components = DiffusionPipeline.load_config(source)
            self.load_arguments["variant"] = variant_of(self.name, Path(source), components, variant)
        try:
            with no_progress_bars():
                return DiffusionPipeline.from_pretrained(source, **self.load_arguments)
        except Exception as error:  # the libraries raise many unrelated types; all mean "not a complete pipeline"
            raise ValueError(
                f"diffusers could not load the model {self.name!r} from {source!r}: {reason(error)}."
            ) from error

    def _start_from(self) -> None:
        """Merge the LoRA to start from into the weights, or keep it to be trained on."""
        source = self.settings.start_from
        if source is None:
            return
        if not self.has_lora_loader:
            raise ValueError(f"diffusers loads no LoRA into {self.name!r}; leave out start_from, got {source!r}.")
        if self.settings.start_from_mode == "merge":
            merge(self.pipe, self.name, source)
        else:
            self.start = taken(self.pipe, self.name, source, self._groups())

    def _groups(self) -> dict[str, Groups]:
        """Return the groups of layers of each component that LoRA can adapt."""
        return {self.denoiser_class.component: self.lora_groups}

    def _prepare_vae(self) -> None:
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            return
        if self.float32_vae and vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.float()
        if self.settings.vae_tiling:
            vae.enable_tiling()

    def _check_tokenizers(self) -> None:
        """Raise ValueError for a tokenizer that transformers made of missing files, without a word."""
        for part in self.prompt_readers:
            tokenizer, encoder = getattr(self.pipe, part), getattr(self.pipe, part.replace("tokenizer", "text_encoder"))
            config = getattr(encoder.config, "text_config", encoder.config)  # of a model that also reads images
            length, words = tokenizer.model_max_length, config.vocab_size
            limit = getattr(config, "max_position_embeddings", length)  # T5 has no limit
            if (self.tokenizer_cuts and length > limit) or len(tokenizer) < words // 2:
                raise ValueError(
                    f"the {part} of {self.name!r} is missing or broken: it has {len(tokenizer)} words and allows "
                    f"{length} tokens, its text encoder has {words} and {limit}. Copy the {part!r} folder again."
                )

    def _check_targets(self, lora: LoRAConfig | None, groups: Mapping[str, Groups]) -> None:
        """Raise ValueError for targets without layers; groups: of each component that gets adapters."""
        if self.start is not None:
            self.start.check(lora, set(groups))
        check_targets(self.name, lora, {part: (getattr(self.pipe, part), named) for part, named in groups.items()})

    def _trainable(self, component: str, lora: LoRAConfig | None, groups: Groups) -> nn.Module:
        """Return a copy of a component to train, as :meth:`build_denoiser` does."""
        pretrained = getattr(self.pipe, component)
        if lora is None:
            return copy.deepcopy(pretrained).float().requires_grad_(True)
        network = with_adapters(pretrained, lora, groups, own_method=self.has_lora_loader)
        if self.start is not None:
            self.start.put_into(component, network)
        return network

    def _save_lora(self, folder: Path, parts: Mapping[str, nn.Module]) -> None:
        """Write the adapters of some components with the pipeline's own writer."""
        from diffusers.training_utils import _collate_lora_metadata
        from peft import get_peft_model_state_dict

        layers = {}
        for name, part in parts.items():
            # Newer transformers have no text_model inside CLIPTextModel; LoRA files have the name in all versions.
            prefix = "text_model." if name.startswith("text_encoder") and not hasattr(part, "text_model") else ""
            adapters = get_peft_model_state_dict(part).items()
            layers[f"{name}_lora_layers"] = {prefix + key: value.detach().cpu() for key, value in adapters}
        type(self.pipe).save_lora_weights(folder, **layers, **_collate_lora_metadata(dict(parts)))

    def _save_pipeline(self, folder: Path, parts: Mapping[str, nn.Module]) -> None:
        """Write the pipeline with some components replaced, and the settings that it recommends."""
        tuned = copy.copy(self.pipe)
        for name, part in parts.items():
            setattr(tuned, name, part)
        with no_progress_bars():
            tuned.save_pretrained(folder)
        if Path(self.recommended.source).is_file():
            shutil.copyfile(self.recommended.source, folder / FILE)


def t5_tokens(tokenizer: Any, at_most: int) -> int:
    """Return the number of tokens that a pipeline gives to T5; without T5 (None) it is the number of zeros."""
    return at_most if tokenizer is None else min(at_most, int(tokenizer.model_max_length))
