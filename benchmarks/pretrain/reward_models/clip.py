"""The CLIP of emoji-animals: open_clip's ModifiedResNet and text transformer, small, trained by contrast."""

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pretrain.reward_models.aesthetic import SCALE, colourfulness
from benchmarks.pretrain.reward_models.views import Views, normalise
from benchmarks.pretrain.text import MAX_LENGTH, build_tokenizer, tokenize
from benchmarks.pretrain.training import Schedule, mixed_precision, optimise, step_generator
from benchmarks.pretrain.world import SIZE, captions
from diffusion_gym.prompts import ANIMALS

COLOUR_WEIGHT = 0.3
"""Weight of the squared error of the linear colourfulness probe beside the contrastive losses."""


def clip_config() -> dict[str, Any]:
    """Return open_clip's model configuration: OpenAI's ResNet family at 64 x 64 and the world's own words."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": {
            "context_length": MAX_LENGTH,
            "vocab_size": len(build_tokenizer()),
            "hf_tokenizer_name": "emoji-animals",  # any name: with local-dir: the files beside the weights are read
            "width": 64,
            "heads": 4,
            "layers": 2,
        },
    }


class ProbedCLIP(nn.Module):
    """CLIP with a linear probe of colourfulness on its image embedding, which is trained along and thrown away.

    Contrast alone lets the image tower forget everything that captions do not say, and a head without activations can
    only read what is linear in the embedding.
    """

    def __init__(self) -> None:
        """Build the untrained model."""
        super().__init__()
        config = clip_config()
        text = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
        self.clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text)
        self.probe = nn.Linear(config["embed_dim"], 1)
        nn.init.constant_(self.probe.bias, 6.0)  # about the renders' mean, or it would use up the clipped gradient

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised embeddings of pictures (n, 3, 64, 64) in [-1, 1] and texts (m, 16), and the probe (n,)."""
        inputs = normalise(pixels, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        with mixed_precision():
            image, text = self.clip.encode_image(inputs), self.clip.encode_text(tokens)
        image, text = (functional.normalize(part.float(), dim=-1) for part in (image, text))
        return image, text, self.probe(image).squeeze(-1)


def contrastive_loss(logits: Tensor, match: Tensor) -> Tensor:
    """Return CLIP's symmetric cross-entropy where several texts fit a picture; both (pictures, texts)."""
    pairs = match.sum()
    to_text, to_image = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    return -((to_text + to_image) * match).sum() / (2 * pairs)


def train_clip(model: ProbedCLIP, views: Views, schedule: Schedule, seed: int, checkpoint: Path) -> float:
    """Train in place on all captions, and on the bare animals, which are also true of pictures with an activity."""
    animal, activity = (torch.from_numpy(labels) for labels in (views.pictures.animal, views.pictures.activity))
    tokens = tokenize(build_tokenizer(), captions()[1:])  # without the empty caption
    count = len(ANIMALS)
    # What each caption says: animals without and with article, then every animal's three activities.
    said_animal = torch.cat([torch.arange(count).repeat(2), torch.arange(count).repeat_interleave(3)])
    said_activity = torch.cat([torch.zeros(2 * count, dtype=torch.int64), torch.arange(1, 4).repeat(count)])

    def loss(step: int) -> Tensor:
        rows, pixels = views.draw(schedule.batch, step_generator(seed, step))
        image, text, probe = model(pixels, tokens)
        logits = model.clip.logit_scale.clamp(max=math.log(100.0)).exp() * image @ text.T
        same_animal = animal[rows, None] == said_animal
        match = same_animal & (activity[rows, None] == said_activity)
        bare = functional.cross_entropy(logits[:, :count], animal[rows])
        target = colourfulness((pixels + 1.0) * 127.5) / SCALE
        return contrastive_loss(logits, match) + bare + COLOUR_WEIGHT * functional.mse_loss(probe, target)

    return optimise(model, loss, schedule, checkpoint)


def save_clip(clip: open_clip.CLIP, folder: Path) -> None:
    """Write the folder that open_clip loads as ``local-dir:<folder>``: configuration, float16 weights, tokenizer."""
    build_tokenizer().save_pretrained(folder)
    preprocess = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
    config = {"model_cfg": clip_config(), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in clip.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors")


@torch.no_grad()
def embed_images(clip: open_clip.CLIP, pixels: Tensor, batch: int = 256) -> Tensor:
    """Return the normalised embeddings (n, 128) of pictures (n, 3, 64, 64) in [-1, 1]."""
    parts = [
        clip.encode_image(normalise(part, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)) for part in pixels.split(batch)
    ]
    return functional.normalize(torch.cat(parts), dim=-1)
