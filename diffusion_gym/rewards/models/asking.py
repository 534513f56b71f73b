"""What rewards share that ask a vision-language model about each image, in this process or behind a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusion_gym.models.base import ModelDtype
from diffusion_gym.rewards.models.captioner import Describe, load_captioner
from diffusion_gym.rewards.models.served import ServedCaptioner
from diffusion_gym.rewards.models.weights import check_placement
from diffusion_gym.rewards.templates import fields, fill


@dataclass(eq=False, kw_only=True)
class AskingReward:
    """Options of such a reward; a subclass says what is asked, and makes a score of the answers.

    Attributes:
        model: folder or hub id of the vision-language model; with ``url``, its name there.
        url: root of an OpenAI-compatible API, as ``http://host:8000/v1``.
        question: to the model about each image; may hold ``{prompt}``, and ``{field}`` for a field of its metadata.
        max_new_tokens: longest answer.
        chunk_size: images at a time.
        device: where the model runs; None follows the images.
        dtype: of the model.
        concurrency, timeout, retries, pause, key_variable: of the server, see
            :class:`~diffusion_gym.rewards.models.served.ServedCaptioner`.
    """

    model: str | None = None
    url: str | None = None
    question: str = ""
    max_new_tokens: int = 64
    chunk_size: int = 16
    device: str | None = None
    dtype: ModelDtype = "float32"
    concurrency: int = 16
    timeout: float = 60.0
    retries: int = 6
    pause: float = 1.0
    key_variable: str | None = None
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Raise ValueError for settings that do not fit; nothing is loaded yet."""
        check_placement(self.chunk_size, self.device)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if self.url is not None and self.model is None:
            raise ValueError(f"{self.name} with url={self.url} needs model=NAME, the model's name on the server.")

    def load(self, default: str | None = None) -> Describe:
        """Return the model, loaded once per process, or the server's client; raises ValueError for missing weights.

        Args:
            default: folder of the model where the user names none.
        """
        model = self.model or default
        if model is None:
            raise ValueError(
                f"{self.name} needs a vision-language model: model=FOLDER or a hub id, or url=http://host:8000/v1 and "
                "model=NAME of one behind a server."
            )
        if self.url is None:
            return load_captioner(model, self.device, self.dtype, self.chunk_size, self.max_new_tokens)
        shared = ("max_new_tokens", "concurrency", "timeout", "retries", "pause", "key_variable")
        return ServedCaptioner(self.url, model, **{name: getattr(self, name) for name in shared})

    def __deepcopy__(self, memo: dict[int, Any]) -> "AskingReward":
        return self

    def _templates(self) -> str:
        """Return the texts whose places are filled."""
        return self.question

    @property
    def required_metadata(self) -> list[str]:
        """The fields that question and other templates name."""
        return [name for name in fields(self._templates()) if name != "prompt"]


def filled(template: str, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Return a template with each prompt and its metadata in their places; None is no metadata."""
    return [fill(template, *row) for row in zip(prompts, metadata or [{}] * len(prompts), strict=True)]
