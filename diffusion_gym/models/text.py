"""Families whose text encoders can be trained: the denoiser encodes the prompt's tokens itself (TexForce).

Chen et al. 2023 (arXiv 2311.15657) tune the text encoder alone: it decides what the frozen denoiser is asked for.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_gym.models.adapters import Groups, share_weights
from diffusion_gym.models.base import DTYPES, Conditioning, Denoiser, LoRAConfig, Trained
from diffusion_gym.models.pipeline import PipelineDenoiser, PipelineModel

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
#: Groups of layers that LoRA adapts, by their suffixes in CLIP's text encoders.
TEXT_LORA_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"attention": _ATTENTION, "all": (*_ATTENTION, "fc1", "fc2")}
)
#: In the place of every token: no prompt at all, whose embedding is zero.
NO_PROMPT = -1

#: (text encoders by component, conditioning with tokens) -> embeddings.
EncodeTokens = Callable[[Any, Conditioning], Conditioning]


class TextDenoiser(Denoiser):
    """A denoiser with text encoders before it: its conditioning has tokens instead of their embedding."""

    def __init__(self, denoiser: PipelineDenoiser, encoders: Mapping[str, nn.Module], encode: EncodeTokens) -> None:
        """Store the denoiser and its encoders.

        Args:
            denoiser: takes the embeddings that ``encode`` returns.
            encoders: the pipeline's component -> a text encoder that this denoiser owns.
            encode: (encoders, tokens) -> embeddings, with gradients.
        """
        super().__init__()
        self.denoiser, self.encoders, self._encode = denoiser, nn.ModuleDict(encoders), encode

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Encode the tokens, each (n, L), int64, and predict as the denoiser does."""
        return self.denoiser(latents, timesteps, {**conditioning, **self._encode(self.encoders, conditioning)})

    def trained_components(self) -> dict[str, nn.Module]:
        """Return the pipeline's components that have weights to train."""
        parts = {self.denoiser.component: self.denoiser.network, **self.encoders}
        return {name: part for name, part in parts.items() if any(p.requires_grad for p in part.parameters())}


class TrainableTextModel(PipelineModel):
    """A pipeline with CLIP text encoders that can be trained. A family gives the names and :meth:`encode_tokens`."""

    #: Text encoder -> its tokens' name in the observation; its tokenizer has the same ending.
    text_encoders: ClassVar[Mapping[str, str]]
    #: Whether the unconditional prompt has zeros for an embedding, and not the empty prompt's.
    zero_unconditional: bool = False

    @abstractmethod
    def encode_tokens(self, encoders: Mapping[str, Any], conditioning: Conditioning) -> Conditioning:
        """Return what ``encode_prompts`` returns, from the given encoders and with gradients.

        Args:
            encoders: the pipeline's component -> text encoder.
            conditioning: holds the tokens, each (n, L), int64.
        """

    def _groups(self) -> dict[str, Groups]:
        return super()._groups() | dict.fromkeys(self.text_encoders, TEXT_LORA_GROUPS)

    @property
    def prompt_readers(self) -> Mapping[str, int]:
        """Return each text encoder's tokenizer, which pads or cuts to its own length."""
        names = [_tokenizer_of(encoder) for encoder in self.text_encoders]
        return {name: int(getattr(self.pipe, name).model_max_length) for name in names}

    @property
    def token_limits(self) -> Mapping[str, tuple[int, int]]:
        """Return name -> (L, size of the vocabulary), of each text encoder's tokens."""
        limits = {}
        for encoder, name in self.text_encoders.items():
            words = getattr(self.pipe, encoder).get_input_embeddings().num_embeddings
            limits[name] = (self._tokenizer(encoder).model_max_length, words)
        return limits

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        """Return each text encoder's tokens as the pipeline makes them, padded or cut to (n, L), int64."""
        tokens = {}
        for encoder, name in self.text_encoders.items():
            tokenizer = self._tokenizer(encoder)
            length = tokenizer.model_max_length
            texts = self._expanded(prompts, tokenizer)
            encoded = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            tokens[name] = encoded.input_ids.to(self.device)
        return tokens

    def unconditional_tokens(self) -> Conditioning:
        """Return the empty prompt's tokens, each (1, L), or :data:`NO_PROMPT` throughout if its embedding is zero."""
        tokens = self.tokenize([""])
        if self.zero_unconditional:
            return {name: torch.full_like(value, NO_PROMPT) for name, value in tokens.items()}
        return tokens

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any]:
        """Return the prompt, the picture's size and the guidance scale."""
        _, height, width = self.image_shape
        return {"prompt": prompt, "height": height, "width": width, "guidance_scale": guidance_scale}

    def build_text_denoiser(self, lora: LoRAConfig | None, trained: Trained) -> TextDenoiser:
        """Return a denoiser with its own text encoders, trainable in full or by adapters; frozen parts are shared.

        Raises:
            ValueError: no layer matches the adapter's targets, or the text encoder masks padding.
        """
        for encoder in self.text_encoders:
            if getattr(getattr(self.pipe, encoder).config, "use_attention_mask", False):
                raise ValueError(
                    f"the {encoder} of {self.name!r} masks padding, which is not supported in training it."
                )
        component = self.denoiser_class.component
        adapted = dict.fromkeys(self.text_encoders, TEXT_LORA_GROUPS)
        self._check_targets(lora, adapted | ({component: self.lora_groups} if trained == "both" else {}))
        encoders = {name: self._trainable(name, lora, TEXT_LORA_GROUPS) for name in self.text_encoders}
        if trained == "both":
            denoiser = self.denoiser_class(self._trainable(component, lora, self.lora_groups))
            return TextDenoiser(denoiser, encoders, self.encode_tokens)
        frozen = share_weights(getattr(self.pipe, component))
        return TextDenoiser(self.denoiser_class(frozen), encoders, self.encode_tokens)

    def export(self, denoiser: Denoiser, folder: Path, lora: LoRAConfig | None) -> None:
        """Write a LoRA file or a pipeline folder, with what was trained of denoiser and text encoders."""
        if not isinstance(denoiser, TextDenoiser):
            return super().export(denoiser, folder, lora)
        parts = denoiser.trained_components()
        if self.exports_lora_file(lora):
            return self._save_lora(folder, parts)
        dtype = DTYPES[self.dtype]
        return self._save_pipeline(folder, {name: copy.deepcopy(part).to(dtype) for name, part in parts.items()})

    def _tokenizer(self, encoder: str) -> Any:
        return getattr(self.pipe, _tokenizer_of(encoder))


def _tokenizer_of(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")
