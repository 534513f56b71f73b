"""Prompt alignment (Black et al. 2023, section 5.3): a VLM describes the image, BERTScore compares with the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diffusion_gym.rewards.models.asking import AskingReward, filled
from diffusion_gym.rewards.models.bertscore import load_bertscore
from diffusion_gym.rewards.models.weights import embedded
from diffusion_gym.rewards.templates import fields

#: The paper's question and its wording of the prompt (appendix; their code uses the same).
QUESTION = "Answer concisely: what is going on in this image?"
TEMPLATE = "The image contains {prompt}"


@dataclass(eq=False, kw_only=True)
class VLMAlignment(AskingReward):
    """BERTScore recall of ``"The image contains {prompt}"`` in what a vision-language model says of the image.

    The paper uses LLaVA and microsoft/deberta-xlarge-mnli. By default both models are the package's small ones for
    the emoji-animals world. The vision-language model runs in this process, or behind an OpenAI-compatible server
    (``url=``); BERTScore always runs here.

    Attributes:
        bert: folder or hub id of BERTScore's encoder.
        question: to the model about each image; may hold ``{prompt}``, and ``{field}`` for a field of its metadata.
        template: the reference text, with ``{prompt}`` or such fields.
        layer: of the encoder, see :class:`~diffusion_gym.rewards.models.bertscore.BERTScore`.
        baseline: a number or file for BERTScore's rescaling. It changes the scale of the reward, not its order.
        model, url, max_new_tokens, chunk_size, device, dtype, concurrency, timeout, retries, pause, key_variable: see
            :class:`~diffusion_gym.rewards.models.asking.AskingReward`; chunk size and device are the encoder's too,
            which keeps float32.
    """

    bert: str | None = None
    question: str = QUESTION
    template: str = TEMPLATE
    layer: int | None = None
    baseline: str | None = None
    name: ClassVar[str] = "vlm_alignment"

    def __post_init__(self) -> None:
        """Load the models that run here; raises ValueError for settings that do not fit, or missing weights."""
        super().__post_init__()
        if not fields(self.template):
            raise ValueError(f"the template must hold {{prompt}}, or a field of its metadata, got {self.template!r}.")
        self._describe = self.load(embedded("captioner") if self.model is None else None)
        self._bertscore = load_bertscore(
            self.bert or embedded("bert"), self.layer, self.baseline, self.chunk_size, self.device
        )

    def _templates(self) -> str:
        return self.question + self.template

    def describe(self, images: Tensor, questions: Sequence[str] | None = None) -> list[str]:
        """Return what the model answers about each image of (n, 3, H, W), uint8.

        Args:
            images: to describe.
            questions: n texts; None asks :attr:`question` about each.
        """
        return self._describe(images, self.question if questions is None else questions)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Tensor:
        """Return (n,), float32."""
        questions, references = (filled(text, prompts, metadata) for text in (self.question, self.template))
        return self._bertscore(self.describe(images, questions), references, images.device).to(images.device)
