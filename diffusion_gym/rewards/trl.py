"""An adapter for reward functions of trl's DDPOTrainer and of Flow-GRPO."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.rewards.base import RewardFunction, check_takes, reward_name

#: ``(images 0 to 1, prompts, metadata) -> (scores, metadata)``.
TRLReward = Callable[[Tensor, Any, Any], tuple[Any, Any]]
#: The entry of a mapping of scores that Flow-GRPO trains on.
TOTAL = "avg"


def from_trl(
    reward_fn: TRLReward, metadata: Mapping[str, Any] | None = None, *, differentiable: bool = False
) -> RewardFunction:
    """Return trl's ``reward_fn(images, prompts, metadata) -> (scores, metadata)`` as a reward.

    Args:
        reward_fn: is given images (n, 3, H, W), float32 in [0, 1], n texts and n metadata, and returns a pair: n scores
            (a tensor, an array or a list), or as in Flow-GRPO a mapping from names to such scores, of which ``"avg"``
            or the only one is the reward; and metadata, which nothing here uses.
        metadata: of each prompt, by its text; without it that of the prompts' records is given.
        differentiable: the scores are tensors with a gradient with respect to the images, as AlignProp needs them.

    Raises:
        TypeError: something that cannot be called with these three arguments.
    """
    if not callable(reward_fn):
        raise TypeError(f"from_trl takes a function of trl's, got {type(reward_fn).__name__}.")
    check_takes(reward_fn, ([None] * 3, {}), "trl's (images, prompts, metadata)")
    return (_DifferentiableFromTRL if differentiable else _FromTRL)(reward_fn, metadata)


class _FromTRL:
    """The reward that :func:`from_trl` returns; a class, for pickle cannot load a function inside a function."""

    def __init__(self, reward_fn: TRLReward, metadata: Mapping[str, Any] | None) -> None:
        self.name = reward_name(reward_fn)
        self._function, self._metadata = reward_fn, metadata
        self.required_metadata = getattr(reward_fn, "required_metadata", ()) if metadata is None else ()

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Tensor:
        """Return (n,).

        Raises:
            ValueError: a prompt without metadata, where a mapping of it was given.
            TypeError: no pair, or several scores without a total.
        """
        return self._score(images.float() / 255, prompts, metadata)

    def _score(self, pixels: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> Tensor:
        if self._metadata is not None:
            for prompt in prompts:
                self.check_metadata(prompt, {})
            metadata = [self._metadata[prompt] for prompt in prompts]
        result = self._function(pixels, tuple(prompts), tuple(metadata or [{} for _ in prompts]))
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"expected a pair (scores, metadata) as for trl, got {type(result).__name__}")
        scores = result[0]
        if isinstance(scores, Mapping):
            if TOTAL not in scores and len(scores) != 1:
                raise TypeError(f"expected the total under {TOTAL!r}, or a single score; got {sorted(scores)}")
            scores = scores.get(TOTAL, next(iter(scores.values())))
        return scores if isinstance(scores, Tensor) else torch.as_tensor(scores)

    def check_metadata(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raise ValueError for a prompt without metadata, where a mapping of it was given."""
        if self._metadata is not None and prompt not in self._metadata:
            raise ValueError(f"from_trl was given metadata, but none of the prompt {prompt!r}")


class _DifferentiableFromTRL(_FromTRL):
    """The same with a gradient."""

    def pixels(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Tensor:
        """Return (n,), with gradient to images (n, 3, H, W), float32 in [0, 1]; raises as a call does."""
        return self._score(images, prompts, metadata)
