"""What all families of diffusers pipelines share, so that a family's file holds only what differs.

A family names its denoiser's call, its conditioning and its shapes; loading, decoding, adapters, export and pickling
are here.
"""

import contextlib
import copy
import math
import shutil
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_gym.chunks import in_chunks
from diffusion_gym.models.adapters import check_targets, merged, with_adapters
from diffusion_gym.models.base import DTYPES, Denoiser, DiffusionModel, LoRAConfig, ModelDtype
from diffusion_gym.models.files import variant_of
from diffusion_gym.models.probe import check_channels, check_finite, check_runs, check_sample_size
from diffusion_gym.models.schedulers import DIFFUSION_SCHEDULERS, read_scheduler_config
from diffusion_gym.recommended import FILE, in_folder
from diffusion_gym_torchvision import repair_torchvision

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
#: Groups of layers that LoRA adapts, by their suffixes in diffusers' UNets.
UNET_LORA_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
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
TRANSFORMER_LORA_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": _JOINT_ATTENTION,
        "all": (
            *_JOINT_ATTENTION,
            *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
        ),
    }
)

#: Images that the VAE decodes or encodes at once, and pixels beyond which it is fewer: on the embedded model (64 x 64)
#: 4 take 5.8 ms each of a processor's thread, 8 take 5.3, and 1 takes 9.8; larger images gain nothing, and one of
#: 512 x 512 takes gigabytes.
_IMAGES_AT_ONCE = 4
_PIXELS_AT_ONCE = _IMAGES_AT_ONCE * 64 * 64


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the libraries' bars for single files off the terminal: they break the run's own progress bar."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was in zip(libraries, shown, strict=True):
            if was:
                library.enable_progress_bar()


def _dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """``dtype=``, or ``torch_dtype=`` for a diffusers that does not know the new name (the newer warns of the old)."""
    from diffusers.utils import deprecation_utils

    return {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}


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
        """The diffusers network."""
        return getattr(self, self.component)

    @property
    def dtype(self) -> torch.dtype:
        """The network's; diffusers' own ``dtype`` walks through all modules at each call."""
        return next(self.network.parameters()).dtype


class PipelineModel(DiffusionModel):
    """A pipeline's folder or hub id. A family sets the class attributes, and gives the abstract methods.

    Attributes:
        pipe: the diffusers pipeline, frozen and in evaluation mode.
        load_arguments: what ``from_pretrained`` was given beside the folder.
        vae_tiling: whether large images are decoded in overlapping tiles, which takes less memory.
    """

    #: Wraps the trained network; its ``component`` is the network's name in the pipeline.
    denoiser_class: ClassVar[type[PipelineDenoiser]]
    #: Names for groups of layers in ``LoRAConfig.targets``.
    lora_groups: ClassVar[Mapping[str, tuple[str, ...]]] = UNET_LORA_GROUPS
    #: Whether the pipeline has ``load_lora_weights``; without it adapters are merged into exported weights.
    has_lora_loader: ClassVar[bool] = True
    #: Classes of the schedulers that tell how such a model was trained.
    schedulers: ClassVar[Sequence[str]] = DIFFUSION_SCHEDULERS
    #: Given to ``from_pretrained`` beside the dtype.
    load_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    #: Whether the VAE stays float32 beside networks in float16, in which some overflow.
    float32_vae: ClassVar[bool] = False

    def __init__(
        self, name: str, source: str, device: torch.device, dtype: ModelDtype, vae_tiling: bool = False
    ) -> None:
        """Load the pipeline from the folder or hub id ``source``.

        Raises:
            ValueError: diffusers cannot load it (a missing file, a network that is not there), the family cannot use
                what it holds, its parts do not run together, or its recommended settings are no such file.
        """
        self.name, self.device, self.dtype, self.vae_tiling = name, device, dtype, vae_tiling
        self.recommended = in_folder(source, type(self).recommended)
        self.pipe = self._load(source).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        for part in self.networks:
            part.requires_grad_(False).eval()
        scheduler = self.pipe.scheduler
        self.scheduler_config = read_scheduler_config(name, type(scheduler).__name__, scheduler.config, self.schedulers)
        self._check_parts()
        self._prepare_vae()
        self.latent_shape, self.image_shape = self._shapes()
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
        """Return (c, h, w) of the latents and (3, H, W) of the images; here from the network's ``sample_size``."""
        network = getattr(self.pipe, self.denoiser_class.component)
        check_sample_size(self.name, self.denoiser_config)
        check_channels(self.name, network, self.pipe.vae)
        size = network.config.sample_size
        h, w = (size, size) if isinstance(size, int) else size
        scale = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        return (network.config.in_channels, h, w), (3, h * scale, w * scale)

    def _to_pixels(self, latents: Tensor) -> Tensor:
        """Decode latents (m, c, h, w), float32, to pixels (m, 3, H, W), float32, in [-1, 1] where they are valid."""
        vae = self.pipe.vae
        scale, shift = _vae_scale(vae)
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor * scale + shift
        return vae.decode(scaled, return_dict=False)[0].float()

    def _to_latents(self, pixels: Tensor) -> Tensor:
        """Encode pixels (m, 3, H, W), float32, in [-1, 1], to latents (m, c, h, w), float32."""
        vae = self.pipe.vae
        scale, shift = _vae_scale(vae)
        encoded = vae.encode(pixels.to(vae.dtype))
        # An AutoencoderTiny returns latents, the others a posterior.
        mode = (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()).float()
        return (mode - shift) / scale * vae.config.scaling_factor

    # -- the contract of a model ------------------------------------------------------------------------------------

    @property
    def networks(self) -> list[nn.Module]:
        """The pipeline's components that have weights."""
        return [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]

    @property
    def prompt_readers(self) -> Mapping[str, int]:
        """Tokenizer in the pipeline -> how many tokens of a prompt its text encoder reads; empty where none reads."""
        return {}

    @property
    def longest_prompt(self) -> int | None:
        """The most that any of its text encoders reads."""
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
        """Write each textual inversion of several vectors out, as the pipeline does before it tokenizes."""
        convert = getattr(self.pipe, "maybe_convert_prompt", None)  # Stable Diffusion 3 has no textual inversions
        return list(prompts) if convert is None else convert(list(prompts), tokenizer)

    @property
    def decodes_whole(self) -> bool:
        """Whether latents can be decoded only as a whole; the VAE's convolutions take any part of them."""
        return type(self)._to_pixels is not PipelineModel._to_pixels

    @property
    def denoiser_config(self) -> Mapping[str, Any]:
        """The network's configuration."""
        config: Mapping[str, Any] = getattr(self.pipe, self.denoiser_class.component).config
        return config

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Decode to images (n, 3, H, W), float32 in [0, 1], with gradient to the latents.

        Always as many images at once, the last chunk filled up, so that an image's pixels do not depend on how many are
        decoded, which the JPEG rewards would notice: 4 of up to 64 x 64 pixels, and from 91 x 91 on one.

        Raises:
            ValueError: pixels that are not finite, as of a VAE that overflows in float16.
        """
        finite: list[Tensor] = []

        def to_images(chunk: Tensor) -> Tensor:
            pixels = self._to_pixels(chunk)
            finite.append(pixels.isfinite().all())
            return (pixels / 2 + 0.5).clamp(0, 1)

        images = in_chunks(to_images, latents.to(self.device), self._images_at_once)
        check_finite(self, "a picture decoded by the VAE", self._vae_dtype, torch.stack(finite).all())
        return images

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode with the VAE (the mode of its posterior); (n, c, h, w), float32, scaled latent units.

        In the chunks of :meth:`decode`; raises as that does.
        """
        latents = in_chunks(
            lambda chunk: self._to_latents(chunk.to(self.device).float() / 127.5 - 1), images, self._images_at_once
        )
        check_finite(self, "a picture encoded by the VAE", self._vae_dtype, latents.isfinite().all())
        return latents

    def build_denoiser(self, lora: LoRAConfig | None = None) -> PipelineDenoiser:
        """Copy the network: float32 and fully trainable, or in the model's dtype, frozen, with float32 adapters.

        With adapters the modules are copied, and the frozen weights shared with the pipeline: they lie in memory once.

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
        """Return arguments, beside steps and eta, with which the pipeline draws as the policy does.

        Args:
            prompt: to draw.
            guidance_scale: the policy's; 1 where it takes none.

        Returns:
            Name -> value, or None where the family does not say (the model card then leaves the call to its reader).
        """
        return None

    def exports_lora_file(self, lora: LoRAConfig | None) -> bool:
        """Whether :meth:`export` writes one LoRA file; otherwise it writes a pipeline folder."""
        return lora is not None and self.has_lora_loader

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its name."""
        from diffusion_gym.models import load_model

        return load_model, (self.name, str(self.device), self.dtype, self.vae_tiling)

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def _images_at_once(self) -> int:
        return max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // math.prod(self.image_shape[1:])))

    @property
    def _vae_dtype(self) -> object:
        vae = getattr(self.pipe, "vae", None)
        return self.dtype if vae is None else vae.dtype

    def _load(self, source: str) -> Any:
        repair_torchvision()
        from diffusers import DiffusionPipeline

        self.load_arguments: dict[str, Any] = {**_dtype_argument(DTYPES[self.dtype]), **self._load_options(source)}
        if Path(source).is_dir():
            self.load_arguments["variant"] = variant_of(self.name, Path(source), DiffusionPipeline.load_config(source))
        try:
            with no_progress_bars():
                return DiffusionPipeline.from_pretrained(source, **self.load_arguments)
        except Exception as error:  # the libraries raise many unrelated types; all mean "not a complete pipeline"
            raise ValueError(f"diffusers could not load the model {self.name!r} from {source!r}: {error}") from error

    def _prepare_vae(self) -> None:
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            return
        if self.float32_vae and vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.float()
        if self.vae_tiling:
            vae.enable_tiling()

    def _check_tokenizer(self, part: str, limit: int) -> None:
        """Raise ValueError where transformers made an empty tokenizer of a missing file, without a word."""
        length = getattr(self.pipe, part).model_max_length
        if length > limit:
            raise ValueError(
                f"the {part} of {self.name!r} is missing or broken: it allows {length} tokens, but the text encoder "
                f"takes {limit}. Copy the model's {part!r} folder again."
            )

    def _check_targets(self, lora: LoRAConfig | None, groups: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
        """Raise ValueError where targets and layers do not meet; groups: of each component that is to be adapted."""
        check_targets(self.name, lora, {part: (getattr(self.pipe, part), named) for part, named in groups.items()})

    def _trainable(self, component: str, lora: LoRAConfig | None, groups: Mapping[str, tuple[str, ...]]) -> nn.Module:
        """Return a copy of a component to train, as :meth:`build_denoiser` does."""
        pretrained = getattr(self.pipe, component)
        if lora is None:
            return copy.deepcopy(pretrained).float().requires_grad_(True)
        return with_adapters(pretrained, lora, groups, own_method=self.has_lora_loader)

    def _save_lora(self, folder: Path, parts: Mapping[str, nn.Module]) -> None:
        """Write the adapters of some components with the pipeline's own writer."""
        from diffusers.training_utils import _collate_lora_metadata
        from peft import get_peft_model_state_dict

        layers = {}
        for name, part in parts.items():
            # Newer transformers have no text_model inside CLIPTextModel; in LoRA files the name stands in all versions.
            prefix = "text_model." if name.startswith("text_encoder") and not hasattr(part, "text_model") else ""
            adapters = get_peft_model_state_dict(part).items()
            layers[f"{name}_lora_layers"] = {prefix + key: value.detach().cpu() for key, value in adapters}
        type(self.pipe).save_lora_weights(folder, **layers, **_collate_lora_metadata(dict(parts)))

    def _save_pipeline(self, folder: Path, parts: Mapping[str, nn.Module]) -> None:
        """Write the pipeline with some components replaced; the settings it recommends are its copy's too."""
        tuned = copy.copy(self.pipe)
        for name, part in parts.items():
            setattr(tuned, name, part)
        with no_progress_bars():
            tuned.save_pretrained(folder)
        if Path(self.recommended.source).is_file():
            shutil.copyfile(self.recommended.source, folder / FILE)


def _vae_scale(vae: Any) -> tuple[float | Tensor, float | Tensor]:
    """Scale and shift of a VAE's latents beside its ``scaling_factor``: ``z = latents / factor * scale + shift``."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        like = {"device": vae.device, "dtype": vae.dtype}
        return torch.tensor(std, **like).reshape(1, -1, 1, 1), torch.tensor(mean, **like).reshape(1, -1, 1, 1)
    return 1.0, getattr(config, "shift_factor", None) or 0.0
