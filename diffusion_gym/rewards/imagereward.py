"""ImageReward (Xu et al. 2023): a BLIP tuned to people's rankings of pictures of one prompt."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffusion_gym.rewards.models.blip import load_image_reward
from diffusion_gym.rewards.models.weights import check_placement

#: The published weights, and BERT's tokenizer, both on the model hub.
CHECKPOINT = "THUDM/ImageReward/ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"


class ImageReward:
    """The published score, standardised by its authors: about 0 on average on the pictures it was tuned on."""

    name = "imagereward"

    def __init__(
        self,
        checkpoint: str = CHECKPOINT,
        tokenizer: str = TOKENIZER,
        chunk_size: int = 16,
        device: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            checkpoint: a .pt or .safetensors file under the published names, or ``owner/repository/file`` on the hub.
            tokenizer: folder or hub id of BERT's uncased tokenizer.
            chunk_size: images at a time.
            device: where the model runs; None follows the images.

        Raises:
            ValueError: files that cannot be had, or hold other weights.
        """
        check_placement(chunk_size, device)
        self._scorer, self._chunk_size = load_image_reward(checkpoint, tokenizer, device), chunk_size

    def __deepcopy__(self, memo: dict[int, Any]) -> "ImageReward":
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32."""
        return self._scorer.score(images, prompts, self._chunk_size)

    def pixels(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32, with gradient to images (n, 3, H, W), float32 in [0, 1]."""
        return self._scorer.pixels(images, prompts, self._chunk_size)
