"""PickScore (Kirstain et al. 2023): a CLIP-H tuned to people's choices between two pictures of one prompt."""

from diffusion_gym.rewards.clip_score import PromptCosine
from diffusion_gym.rewards.models.clip_transformers import load_transformers_clip
from diffusion_gym.rewards.models.weights import check_placement

#: The published weights, and where their model card takes tokenizer and preprocessing from.
MODEL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScore(PromptCosine):
    """``exp(logit_scale) * cos(image, text)``, with the logit scale of the weights."""

    name = "pickscore"

    def __init__(
        self, model: str = MODEL, processor: str = PROCESSOR, chunk_size: int = 16, device: str | None = None
    ) -> None:
        """Load the model.

        Args:
            model: folder or hub id of a CLIPModel.
            processor: folder or hub id of its tokenizer and preprocessor_config.json.
            chunk_size: images at a time, and texts.
            device: where the model runs; None follows the images.

        Raises:
            ValueError: weights or a processor that cannot be had.
        """
        check_placement(chunk_size, device)
        clip = load_transformers_clip(model, processor, device)
        super().__init__(clip, "{prompt}", clip.logit_scale, chunk_size)
