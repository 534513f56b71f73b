"""The contract of a model family: the parts of a pretrained diffusion model that environment and policy need."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_gym.choices import LoRAConfig as LoRAConfig
from diffusion_gym.choices import ModelDtype as ModelDtype
from diffusion_gym.choices import ModelSettings as ModelSettings
from diffusion_gym.choices import Trained as Trained
from diffusion_gym.prompt_records import Prompt, check_fields
from diffusion_gym.recommended import Recommended
from diffusion_gym.transitions import Schedule, make_consistency_schedule, make_schedule

if TYPE_CHECKING:
    from diffusion_gym.models.start import StartingLoRA

#: A denoiser's conditioning beside latents and time: name -> (n, ...), float32; always with "prompt_embedding", or,
#: where text encoders are trained, with the prompt's tokens instead: (n, L), int64.
Conditioning = dict[str, Tensor]
PROMPT_EMBEDDING = "prompt_embedding"
POOLED_PROMPT_EMBEDDING = "pooled_prompt_embedding"
#: (n, L), 1 where the embedding has padding after the prompt's own tokens, else 0; of models that read it. Zeros, as of
#: rows that memory is measured with, are then the longest prompt.
PROMPT_PADDING = "prompt_padding"
#: The conditioning that comes from text encoders.
TEXT_CONDITIONING = (PROMPT_EMBEDDING, POOLED_PROMPT_EMBEDDING, PROMPT_PADDING)
#: Begins the names of a row's own unconditional side of guidance, each as large as the value that it stands beside:
#: there where prompts have negative prompts of their own.
NEGATIVE = "negative_"
#: The guidance scale (n,) that the policy gives to a model that takes it as an input; not in the observation.
GUIDANCE = "guidance"
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Denoiser(nn.Module, ABC):
    """The trainable network of a policy: ``(latents, timesteps, conditioning) -> model output``."""

    @abstractmethod
    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon, v or x_0, as the schedule says; a flow model the velocity ``noise - x_0``.

        Args:
            latents: (n, *latent_shape), float32, scaled latent units.
            timesteps: (n,), the schedule's: int64 training times, or float32 of a flow model.
            conditioning: name -> (n, ...), float32.

        Returns:
            (n, *latent_shape), the network's dtype.
        """


class DiffusionModel(ABC):
    """A frozen pretrained model, shared and read-only; policies train a copy of its denoiser.

    Attributes:
        name: by which :func:`diffusion_gym.load_model` finds it.
        device: where its networks are.
        dtype: of the frozen networks.
        latent_shape: of one image's latents, any number of axes; (c, h, w) for images.
        image_shape: (3, H, W) of one decoded image.
        conditioning_shapes: name -> shape of one image's conditioning; "prompt_embedding" is (L, D).
        scheduler_config: a diffusers scheduler configuration, which fixes noise schedule, spacing and prediction type.
        recommended: the default settings of its training.
        settings: how it was loaded, beside device and dtype.
        start: adapters that are trained further, or None where it begins with new ones.
    """

    name: str
    device: torch.device
    dtype: ModelDtype
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    conditioning_shapes: Mapping[str, tuple[int, ...]]
    scheduler_config: Mapping[str, Any]
    recommended: Recommended = Recommended()
    settings: ModelSettings = ModelSettings()
    start: "StartingLoRA | None" = None
    #: Which of a prompt's fields ``negative_prompt`` and ``image`` the family reads beside its text.
    prompt_fields: ClassVar[frozenset[str]] = frozenset()
    #: Names of the conditioning that comes from a prompt's image, in families that edit it. Guidance by text keeps it.
    image_conditioning: ClassVar[frozenset[str]] = frozenset()
    #: The prompts without a choice of the user's.
    default_prompts: str | tuple[str, ...] = "animals"

    def __deepcopy__(self, memo: dict[int, Any]) -> "DiffusionModel":
        """Return itself: the model is read-only, and Gymnasium deep-copies the arguments of ``make``."""
        return self

    @property
    def networks(self) -> list[nn.Module]:
        """Return the model's own networks, which take memory beside the policy's."""
        return []

    @property
    def rescales_guidance(self) -> bool:
        """Return whether the model's own pipeline can rescale guidance (``guidance_rescale``)."""
        return False

    @property
    def fields_read(self) -> frozenset[str]:
        """Return which of a prompt's fields are read: a guidance-distilled model has no place for a negative prompt."""
        return self.prompt_fields - {"negative_prompt"} if self.embeds_guidance else self.prompt_fields

    @property
    def denoiser_config(self) -> Mapping[str, Any]:
        """Return the denoiser's settings, which tell models of one family apart."""
        return {}

    @property
    def solver_config(self) -> Mapping[str, Any]:
        """Return the scheduler's configuration from which diffusers makes other schedulers."""
        return self.scheduler_config

    @property
    def embeds_guidance(self) -> bool:
        """Return whether the denoiser takes the guidance scale as an input (guidance-distilled)."""
        return False

    def schedule(self, num_inference_steps: int) -> Schedule:
        """Return the sampling grid with ``num_inference_steps`` steps."""
        if self.scheduler_config.get("_class_name") == "LCMScheduler":
            return make_consistency_schedule(self.scheduler_config, num_inference_steps)
        return make_schedule(self.scheduler_config, num_inference_steps)

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts; each value (n, ...), float32, on the model's device."""

    def check_records(self, records: Sequence[Prompt]) -> None:
        """Raise ValueError for a record with a field that the family does not read, or without one that it needs."""
        check_fields(records, self.fields_read, self.name)

    def encode_prompt_images(self, records: Sequence[Prompt]) -> Conditioning:
        """Encode the images of n records to :attr:`image_conditioning`; each value (n, ...), float32.

        Raises:
            ValueError: a family that edits no images, or as :meth:`check_records`.
        """
        raise ValueError(f"{self.name!r} ({type(self).__name__}) does not read the images of prompts; leave them out.")

    def encode_unconditional(self) -> Conditioning:
        """Return the unconditional side of guidance, one row, float32; here the empty prompt.

        Raises:
            ValueError: the model takes no prompts.
        """
        return self.encode_prompts([""])

    @property
    def longest_prompt(self) -> int | None:
        """Return the most tokens, special ones included, that the model reads of a prompt; None without a limit."""
        return None

    def read_of(self, prompts: Sequence[str]) -> list[Hashable]:
        """Return a key of each of n texts, equal for two that the model cannot tell apart; here the texts."""
        return list(prompts)

    @property
    def token_limits(self) -> Mapping[str, tuple[int, int]]:
        """Return name -> (L, size of the vocabulary) of the prompt's tokens, if a text encoder can be trained."""
        return {}

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        """Return the tokens of n texts, name -> (n, L), int64, on the model's device.

        Raises:
            ValueError: a family whose text encoder cannot be trained.
        """
        raise ValueError(
            f"the text encoder of {self.name!r} ({type(self).__name__}) cannot be trained, only that of Stable "
            "Diffusion 1.x, 2.x and SDXL. Train 'denoiser', and leave out prompt_tokens."
        )

    def unconditional_tokens(self) -> Conditioning:
        """Return the tokens of the unconditional side of guidance, one row; raises as :meth:`tokenize` does."""
        return self.tokenize([""])

    def build_text_denoiser(self, lora: LoRAConfig | None, trained: Trained) -> Denoiser:
        """Return a denoiser of tokens that trains its text encoders, alone or with the network; raises likewise."""
        self.tokenize([""])
        raise NotImplementedError(f"{type(self).__name__} has tokens, and must build what encodes them.")

    def guide(self, uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
        """Return the guided prediction; here classifier-free guidance (Ho and Salimans 2022), ``u + w (c - u)``.

        Args:
            uncond: (n, *latent_shape), float32, the prediction without the prompt.
            cond: the same with it.
            guidance_scale: w, more than 1.
        """
        return uncond + guidance_scale * (cond - uncond)

    @property
    def images_at_once(self) -> int:
        """Return how many images are decoded in one pass, for callers that decode with gradient and free the memory."""
        return 16

    @abstractmethod
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Decode latents (n, *latent_shape) to images (n, 3, H, W), float32 in [0, 1]; gradients reach the latents."""

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (n, *latent_shape) to images (n, 3, H, W), uint8: :meth:`decode_pixels`, rounded."""
        return rounded(self.decode_pixels(latents))

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images (n, 3, H, W), uint8, to latents (n, *latent_shape), float32."""

    @abstractmethod
    def build_denoiser(self, lora: LoRAConfig | None = None) -> Denoiser:
        """Return a copy of the pretrained denoiser, fully trainable, or frozen with trainable adapters."""

    @abstractmethod
    def export(self, denoiser: Denoiser, folder: Path, lora: LoRAConfig | None) -> None:
        """Write the trained weights into ``folder`` in diffusers' own format (LoRA file or pipeline folder)."""

    def exports_lora_file(self, lora: LoRAConfig | None) -> bool:
        """Return whether :meth:`export` writes one LoRA file, not the whole model."""
        return lora is not None


def rounded(pixels: Tensor) -> Tensor:
    """Return pixels in [0, 1] as uint8, rounded as diffusers' image processor does."""
    return (pixels * 255).round().to(torch.uint8)
