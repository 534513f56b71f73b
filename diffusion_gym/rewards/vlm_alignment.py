"""Prompt alignment (Black et al. 2023, section 5.3): a VLM describes the image, BERTScore compares with the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diffusion_gym.models.base import ModelDtype
from diffusion_gym.rewards.models.bertscore import load_bertscore
from diffusion_gym.rewards.models.captioner import Describe, load_captioner
from diffusion_gym.rewards.models.served import ServedCaptioner
from diffusion_gym.rewards.models.weights import check_placement, embedded
from diffusion_gym.rewards.templates import fields, fill

#: The paper's question and its wording of the prompt (appendix; their code uses the same).
QUESTION = "Answer concisely: what is going on in this image?"
TEMPLATE = "The image contains {prompt}"


@dataclass(eq=False)
class VLMAlignment:
    """BERTScore recall of ``"The image contains {prompt}"`` in what a vision-language model says of the image.

    The paper uses LLaVA and microsoft/deberta-xlarge-mnli. By default both models are the package's small ones for
    the emoji-animals world. The vision-language model runs in this process, or behind an OpenAI-compatible server
    (``url=``); BERTScore always runs here.

    Attributes:
        model: folder or hub id of the vision-language model; with ``url``, its name there.
        bert: folder or hub id of BERTScore's encoder.
        url: root of an OpenAI-compatible API, as ``http://host:8000/v1``.
        question: to the model about each image; may hold ``{prompt}``, and ``{field}`` for a field of its metadata.
        template: the reference text, with ``{prompt}`` or such fields.
        layer: of the encoder, see :class:`~diffusion_gym.rewards.models.bertscore.BERTScore`.
        baseline: a number or file for BERTScore's rescaling. It changes the scale of the reward, not its order.
        max_new_tokens: longest description.
        chunk_size: images, or texts, at a time.
        device: where the models run; None follows the images.
        dtype: of the vision-language model; the encoder keeps float32.
        concurrency, timeout, retries, pause, key_variable: of the server, see
            :class:`~diffusion_gym.rewards.models.served.ServedCaptioner`.
    """

    model: str | None = None
    bert: str | None = None
    url: str | None = None
    question: str = QUESTION
    template: str = TEMPLATE
    layer: int | None = None
    baseline: str | None = None
    max_new_tokens: int = 64
    chunk_size: int = 16
    device: str | None = None
    dtype: ModelDtype = "float32"
    concurrency: int = 16
    timeout: float = 60.0
    retries: int = 6
    pause: float = 1.0
    key_variable: str | None = None
    name: ClassVar[str] = "vlm_alignment"

    def __post_init__(self) -> None:
        """Load the models that run here; raises ValueError for settings that do not fit, or missing weights."""
        check_placement(self.chunk_size, self.device)
        if not fields(self.template):
            raise ValueError(f"the template must hold {{prompt}}, or a field of its metadata, got {self.template!r}.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        self._describe = self._captioner()
        self._bertscore = load_bertscore(
            self.bert or embedded("bert"), self.layer, self.baseline, self.chunk_size, self.device
        )

    def _captioner(self) -> Describe:
        if self.url is None:
            model = self.model or embedded("captioner")
            return load_captioner(model, self.device, self.dtype, self.chunk_size, self.max_new_tokens)
        if self.model is None:
            raise ValueError(f"vlm_alignment with url={self.url} needs model=NAME, the model's name on the server.")
        shared = ("max_new_tokens", "concurrency", "timeout", "retries", "pause", "key_variable")
        return ServedCaptioner(self.url, self.model, **{name: getattr(self, name) for name in shared})

    def __deepcopy__(self, memo: dict[int, Any]) -> "VLMAlignment":
        return self

    @property
    def required_metadata(self) -> list[str]:
        """The fields that question and template name."""
        return [name for name in fields(self.question + self.template) if name != "prompt"]

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
        rows = list(zip(prompts, metadata or [{}] * len(prompts), strict=True))
        questions, references = ([fill(text, *row) for row in rows] for text in (self.question, self.template))
        return self._bertscore(self.describe(images, questions), references, images.device).to(images.device)
