"""The PixArt-Sigma family: a small transformer with a learned variance, conditioned on T5's tokens and their mask."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import PROMPT_EMBEDDING, PROMPT_PADDING, Conditioning
from diffusion_gym.models.pipeline import TRANSFORMER_LORA_GROUPS, PipelineDenoiser, PipelineModel
from diffusion_gym.recommended import PIXART_SIGMA

#: Tokens that T5 reads of a prompt, as the pipeline has it, whatever length its tokenizer names.
_T5_TOKENS = 300


class PixArtDenoiser(PipelineDenoiser):
    """A PixArtTransformer2DModel behind the denoiser's signature."""

    component: ClassVar[str] = "transformer"

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon, (n, c, h, w); a learned variance, in c more channels, is left out, as the pipeline does."""
        dtype = self.dtype
        output = self.network(
            latents.to(dtype),
            encoder_hidden_states=conditioning[PROMPT_EMBEDDING].to(dtype),
            encoder_attention_mask=1 - conditioning[PROMPT_PADDING].to(dtype),
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]


class PixArtSigma(PipelineModel):
    """A PixArtSigmaPipeline folder or hub id."""

    denoiser_class: ClassVar[type[PipelineDenoiser]] = PixArtDenoiser
    lora_groups: ClassVar[Mapping[str, tuple[str, ...]]] = TRANSFORMER_LORA_GROUPS
    has_lora_loader: ClassVar[bool] = False
    recommended = PIXART_SIGMA

    def _check_parts(self) -> None:
        if self.pipe.transformer.use_additional_conditions:
            raise ValueError(
                f"the transformer of {self.name!r} takes the picture's size (use_additional_conditions), as that of "
                "PixArt-Alpha does, which its PixArtSigmaPipeline does not give; expected one of PixArt-Sigma."
            )

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any]:
        """Return the prompt, not rewritten, the picture's size, not replaced by a near one, and the guidance scale."""
        _, height, width = self.image_shape
        as_given = {"clean_caption": False, "use_resolution_binning": False}
        return {"prompt": prompt, "height": height, "width": width, "guidance_scale": guidance_scale, **as_given}

    @property
    def prompt_readers(self) -> Mapping[str, int]:
        """Return T5's tokenizer."""
        return {"tokenizer": _T5_TOKENS}

    def _expanded(self, prompts: Sequence[str], tokenizer: Any) -> list[str]:
        """Return the prompts in small letters, as the pipeline gives them to T5."""
        return list(self.pipe._text_preprocessing(list(prompts)))

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            PROMPT_EMBEDDING: (_T5_TOKENS, self.pipe.text_encoder.config.d_model),
            PROMPT_PADDING: (_T5_TOKENS,),
        }

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts: T5's tokens (n, L, D) and which are padding (n, L), float32."""
        embedding, mask, _, _ = self.pipe.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=self.device, max_sequence_length=_T5_TOKENS
        )
        return {PROMPT_EMBEDDING: embedding.float(), PROMPT_PADDING: 1 - mask.float()}
