"""A vision-language model that describes images, through transformers' image-text-to-text classes."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.errors import first_run
from diffusion_gym.libraries import no_progress_bars
from diffusion_gym.models.base import DTYPES, ModelDtype
from diffusion_gym.rewards.models.weights import not_found
from diffusion_gym_torchvision import repair_torchvision


class Describe(Protocol):
    """Answers a question about each of several images, one for all or one for each."""

    def __call__(self, images: Tensor, question: str | Sequence[str]) -> list[str]:
        """Return n texts for (n, 3, H, W), uint8."""


def to_pillow(images: Tensor) -> list[Image.Image]:
    """Return n Pillow images for (n, 3, H, W), uint8."""
    return [Image.fromarray(array) for array in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


@cache
def load_captioner(
    model: str, device: str | None, dtype: ModelDtype, chunk_size: int, max_new_tokens: int
) -> "Captioner":
    """Return the captioner, loaded once per process; arguments as :class:`Captioner`'s."""
    return Captioner(model, device, dtype, chunk_size, max_new_tokens)


#: What tests run of transformers' image-text-to-text models, by ``model_type``; others are tried when they are loaded.
TESTED = (
    *("gemma3", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "mllama", "qwen2_vl", "qwen2_5_vl"),
    "qwen3_vl",
)


class Captioner:
    """LLaVA (Liu et al. 2023) or another model that continues a conversation about an image; decodes greedily.

    :data:`TESTED` lists the kinds that are known to work. It needs a chat template; LLaVA alone can do without.
    """

    def __init__(
        self,
        model: str,
        device: str | None = None,
        dtype: ModelDtype = "float32",
        chunk_size: int = 16,
        max_new_tokens: int = 64,
    ) -> None:
        """Load model and processor.

        Args:
            model: folder or hub id.
            device: where it runs; None follows the images.
            dtype: of the weights.
            chunk_size: images at a time; the last chunk is filled up, so that a text does not depend on its neighbours.
            max_new_tokens: longest answer.

        Raises:
            ValueError: weights that cannot be loaded, an unknown dtype, or a model of another kind, which a first
                question shows.
        """
        if dtype not in DTYPES:
            raise ValueError(f"the captioner's dtype must be one of {list(DTYPES)}, got {dtype!r}.")
        repair_torchvision()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            with no_progress_bars():
                self._processor = AutoProcessor.from_pretrained(model)
                loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=DTYPES[dtype])
        except Exception as error:  # transformers and the hub client raise many unrelated types
            not_found("model", model, error)
        self._model = loaded.eval().requires_grad_(False)
        if device is not None:
            self._model.to(device)
        self._device, self._dtype = device, DTYPES[dtype]
        self._chunk_size, self._max_new_tokens = chunk_size, max_new_tokens
        kind = loaded.config.model_type
        expected = f"a vision-language model with a chat template, such as {list(TESTED)}"
        with first_run(f"model={model} (a {kind})", "a first small input", expected):
            self._prepare(kind)
            self._answer([Image.new("RGB", (64, 64))], "What is this?", loaded.device, 1)

    def _prepare(self, kind: str) -> None:
        """Set up the tokenizer.

        Raises:
            ValueError: a model that is asked in a way that is not known.
        """
        if kind != "llava" and getattr(self._processor, "chat_template", None) is None:
            raise ValueError("it has no chat template, so how to ask it is not known")
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"  # so that generation continues each row's last token
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def __deepcopy__(self, memo: dict[int, Any]) -> "Captioner":
        return self

    def __call__(self, images: Tensor, question: str | Sequence[str]) -> list[str]:
        """Return n texts for (n, 3, H, W), uint8; images with one question go through the model together."""
        if not isinstance(question, str):
            found: dict[int, str] = {}
            for each in dict.fromkeys(question):
                which = [i for i, other in enumerate(question) if other == each]
                found |= zip(which, self(images[which], each), strict=True)
            return [found[i] for i in range(len(images))]
        device = torch.device(self._device or images.device)
        self._model.to(device)
        answers: list[str] = []
        for part in images.split(self._chunk_size):
            pictures = to_pillow(part)
            padding = [pictures[-1]] * (self._chunk_size - len(pictures))
            given = [*pictures, *padding]
            answers += self._answer(given, question, device, self._max_new_tokens)[: len(pictures)]
        return answers

    @torch.no_grad()
    def _answer(
        self, pictures: Sequence[Image.Image], question: str, device: torch.device, max_new_tokens: int
    ) -> list[str]:
        inputs = self._inputs(pictures, question).to(device, self._dtype)
        # Many models' files set a temperature and its like, which would only cause warnings here.
        sampling = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        tokens = self._model.generate(
            **inputs,
            **sampling,
            max_new_tokens=max_new_tokens,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        asked = inputs["input_ids"].shape[1]
        if not torch.equal(tokens[:, :asked], inputs["input_ids"]):
            raise ValueError("its answer does not follow the question, but is generated separately")
        answers = tokens[:, asked:]
        return [text.strip() for text in self._processor.batch_decode(answers, skip_special_tokens=True)]

    def _inputs(self, pictures: Sequence[Image.Image], question: str) -> Any:
        text, tokenizer = self._prompt(question), self._processor.tokenizer
        starts = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)  # some templates write it
        return self._processor(
            images=[[picture] for picture in pictures],
            text=[text] * len(pictures),
            padding=True,
            add_special_tokens=not starts,
            return_tensors="pt",
        )

    def _prompt(self, question: str) -> str:
        if getattr(self._processor, "chat_template", None) is None:
            # Older folders carry no template; this is LLaVA 1.5's.
            return f"USER: {self._processor.image_token}\n{question} ASSISTANT:"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        conversation = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(conversation, add_generation_prompt=True))
