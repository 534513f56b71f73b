"""Pipelines whose text encoder is a language model (Qwen): how many tokens it reads, and padding after them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import PROMPT_EMBEDDING, PROMPT_PADDING, Conditioning
from diffusion_gym.models.pipeline import PipelineModel

#: The pipelines divide times by this, whatever the scheduler's num_train_timesteps.
TIME_SCALE = 1000
#: Tokens that the pipelines read of a prompt.
_TOKENS = 512


class LanguagePipeline(PipelineModel):
    """A pipeline with one tokenizer and one language model, whose prompts are as long as they are.

    Embeddings are padded to one length, so that the observation and each forward pass have the same shape for all.
    """

    tokenizer_cuts: ClassVar[bool] = False

    @property
    def tokens(self) -> int:
        """Return L, the most tokens that are read of a prompt."""
        return min(_TOKENS, int(self.pipe.tokenizer.model_max_length))

    @property
    def prompt_readers(self) -> Mapping[str, int]:
        """Return the language model's tokenizer."""
        return {"tokenizer": self.tokens}

    @property
    def embedding_size(self) -> int:
        """Return D, the width of the language model's hidden states."""
        config = self.pipe.text_encoder.config
        return int(getattr(config, "text_config", config).hidden_size)  # of a model that also reads images

    def drawing_arguments(self) -> dict[str, int]:
        """Return the pipeline's arguments that are the same for each prompt: height and width in pixels, and L."""
        _, height, width = self.image_shape
        return {"height": height, "width": width, "max_sequence_length": self.tokens}

    def _expanded(self, prompts: Sequence[str], tokenizer: Any) -> list[str]:
        """Return the prompts as messages of a chat, as the pipelines do: the words around them are read, too."""
        chats = ([{"role": "user", "content": prompt}] for prompt in prompts)
        return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]

    def padded(self, embeddings: Sequence[Tensor]) -> Conditioning:
        """Return n embeddings, each (tokens, D), padded with zeros to (n, L, D), and where they are; float32."""
        padding = torch.ones(len(embeddings), self.tokens, device=self.device)
        together = torch.zeros(*padding.shape, embeddings[0].shape[-1], device=self.device)
        for row, embedding in enumerate(embeddings):
            together[row, : len(embedding)] = embedding
            padding[row, : len(embedding)] = 0
        return {PROMPT_EMBEDDING: together, PROMPT_PADDING: padding}
