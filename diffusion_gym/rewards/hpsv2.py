"""Human Preference Score v2 (Wu et al. 2023): a ViT-H-14 tuned to people's rankings of pictures of one prompt."""

from diffusion_gym.rewards.clip_score import PromptCosine
from diffusion_gym.rewards.models.clip import load_clip
from diffusion_gym.rewards.models.weights import check_placement, local_file

#: The published weights of version 2.1, on the model hub.
CHECKPOINT = "xswu/HPSv2/HPS_v2.1_compressed.pt"
#: open_clip's name of the architecture.
ARCHITECTURE = "ViT-H-14"


class HPSv2(PromptCosine):
    """``cos(image, text)`` of the tuned towers, as the package hpsv2 returns it; its benchmark shows 100 times that.

    A picture that is not square is padded with black to a square, as there, and not cropped.
    """

    name = "hpsv2"

    def __init__(self, checkpoint: str = CHECKPOINT, chunk_size: int = 16, device: str | None = None) -> None:
        """Load the model.

        Args:
            checkpoint: a .pt file with a ``state_dict`` or a .safetensors file, under open_clip's names of weights, or
                ``owner/repository/file`` on the hub. Loading executes no code.
            chunk_size: images at a time, and texts.
            device: where the model runs; None follows the images.

        Raises:
            ValueError: a file that cannot be had, or holds other weights.
        """
        check_placement(chunk_size, device)
        file = local_file("checkpoint", checkpoint, "'HPS_v2.1_compressed.pt' from https://huggingface.co/xswu/HPSv2")
        clip = load_clip(f"{ARCHITECTURE}/{file}", device, "checkpoint", "longest")
        super().__init__(clip, "{prompt}", 1.0, chunk_size)
