"""Encoded prompts and images, kept in main memory up to a number of bytes; the least recently used are dropped."""

import warnings
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from diffusion_gym.models import Conditioning, DiffusionModel
from diffusion_gym.models.probe import check_finite
from diffusion_gym.prompt_records import Prompt

#: Bytes that encoded prompts take before the least recently used are dropped; Flux's take 8.4 MB each, SDXL's 0.63.
PROMPT_CACHE_BYTES = 4 * 10**9
#: Pairs of equal prompts that a warning names.
_NAMED = 3


class PromptCache:
    """Prompts encoded by the frozen text encoders, on request with their tokens.

    A prompt is encoded in a batch of its own, so that its values do not depend on what else was asked for, and one that
    was dropped comes back the same bit for bit.
    """

    def __init__(self, model: DiffusionModel, tokens: bool = False, limit: int = PROMPT_CACHE_BYTES) -> None:
        """Begin empty.

        Args:
            model: whose text encoders and tokenizers are used.
            tokens: whether to keep the prompt's tokens, too.
            limit: bytes; what is asked for in one call stays whole, even where that alone takes more.
        """
        self.model, self.tokens, self.limit, self.nbytes = model, tokens, limit, 0
        self._kept: OrderedDict[str | None, Conditioning] = OrderedDict()
        self._read: dict[Hashable, str] = {}
        self._told: set[str] = set()

    def __len__(self) -> int:
        """Return the number of prompts kept."""
        return len(self._kept)

    def __call__(self, prompts: Sequence[str | None]) -> list[Conditioning]:
        """Return each prompt's conditioning, name -> (1, ...), on the CPU. Not copies: do not write to them.

        None is the unconditional side of guidance, as the model has it without a negative prompt.
        """
        self.tell_apart([prompt for prompt in prompts if prompt is not None])
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._kept:
                self._kept[prompt] = self._encode(prompt)
                self.nbytes += _bytes(self._kept[prompt])
            self._kept.move_to_end(prompt)
        while self.nbytes > self.limit and len(self._kept) > len(set(prompts)):
            _, dropped = self._kept.popitem(last=False)
            self.nbytes -= _bytes(dropped)
        return [self._kept[prompt] for prompt in prompts]

    def tell_apart(self, prompts: Sequence[str]) -> None:
        """Warn once of prompts that the model cannot tell apart, such as those equal up to the last token it reads."""
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._told]
        self._told.update(fresh)
        same = []
        for prompt, read in zip(fresh, self.model.read_of(fresh) if fresh else [], strict=True):
            first = self._read.setdefault(read, prompt)
            if first != prompt:
                same.append(f"{first!r} and {prompt!r}")
        if same:
            rest = f", and {len(same) - _NAMED} more pairs" if len(same) > _NAMED else ""
            warnings.warn(
                f"{self.model.name!r} cannot distinguish some prompts: it reads at most {self.model.longest_prompt} "
                f"tokens, the same ones of {'; '.join(same[:_NAMED])}{rest}. Shorten them, or leave one out.",
                stacklevel=2,
            )

    def _encode(self, prompt: str | None) -> Conditioning:
        if prompt is None:
            encoded = self.model.encode_unconditional() | (self.model.unconditional_tokens() if self.tokens else {})
        else:
            encoded = self.model.encode_prompts([prompt]) | (self.model.tokenize([prompt]) if self.tokens else {})
        for name, value in encoded.items():
            what = f"the {name.replace('_', ' ')} of {prompt!r} by the text encoder"
            check_finite(self.model.name, what, self.model.dtype, value.isfinite().all())
        return {name: value.to("cpu", copy=True) for name, value in encoded.items()}


class ImageCache:
    """The images of prompts, encoded by the frozen VAE, one by one; the least recently used are dropped."""

    def __init__(self, model: DiffusionModel, limit: int = PROMPT_CACHE_BYTES) -> None:
        """Begin empty; model: a family that edits images; limit: bytes, as :class:`PromptCache` has it."""
        self.model, self.limit, self.nbytes = model, limit, 0
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def __call__(self, records: Sequence[Prompt]) -> list[Conditioning]:
        """Return the conditioning of each record's image, name -> (1, ...), on the CPU. Not copies."""
        for record in records:
            if record.image_key not in self._kept:
                encoded = self.model.encode_prompt_images([record])
                self._kept[record.image_key] = {name: value.cpu() for name, value in encoded.items()}
                self.nbytes += _bytes(self._kept[record.image_key])
            self._kept.move_to_end(record.image_key)
        while self.nbytes > self.limit and len(self._kept) > len({record.image_key for record in records}):
            _, dropped = self._kept.popitem(last=False)
            self.nbytes -= _bytes(dropped)
        return [self._kept[record.image_key] for record in records]


def _bytes(row: Conditioning) -> int:
    return sum(value.nbytes for value in row.values())
