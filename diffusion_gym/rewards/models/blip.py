"""ImageReward's network (Xu et al. 2023): BLIP's text encoder over an image's patches, and a linear head."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.chunks import in_chunks
from diffusion_gym.errors import first_run
from diffusion_gym.rewards.aesthetic import linear_layers
from diffusion_gym.rewards.models.embedder import Preprocess
from diffusion_gym.rewards.models.weights import local_file, not_found
from diffusion_gym_torchvision import repair_torchvision

#: Tokens of a prompt, and mean and deviation of the head's numbers, as in the package image-reward.
TOKENS, MEAN, STD = 35, 0.16717362830052426, 1.0333394966054072
#: Beginnings of names in BLIP's vision transformer and in transformers'.
_VISION = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("norm.", "post_layernorm."),
)
_BLOCK = (("attn.qkv.", "self_attn.qkv."), ("attn.proj.", "self_attn.projection."), ("norm", "layer_norm"))
#: What the published file holds for BLIP's training, which a score does not need.
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\..*|blip\.text_encoder\.embeddings\.position_ids")
_HEAD = 64  # width of an attention head in BLIP's transformers


@cache
def load_image_reward(checkpoint: str, tokenizer: str, device: str | None) -> "BlipScorer":
    """Return the network, loaded once per process; arguments as :class:`BlipScorer`'s."""
    return BlipScorer(checkpoint, tokenizer, device)


class BlipScorer:
    """``(head(t) - MEAN) / STD``, with t the text encoder's first token after it has looked at the image's patches."""

    def __init__(self, checkpoint: str, tokenizer: str, device: str | None) -> None:
        """Load the network; sizes are the file's.

        Args:
            checkpoint: a .pt or .safetensors file under ImageReward's names, or ``owner/repository/file`` on the hub.
                Loading executes no code.
            tokenizer: folder or hub id of BERT's uncased tokenizer.
            device: where it runs; None follows the images.

        Raises:
            ValueError: files that cannot be had, or hold other weights.
        """
        repair_torchvision()
        from transformers import AutoTokenizer

        tensors = _read(checkpoint)
        try:
            self._vision, self._text, self._head = _build(tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"checkpoint={checkpoint} does not hold ImageReward's weights: {error}.") from error
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except Exception as error:  # transformers and the hub client raise many unrelated types
            not_found("tokenizer", tokenizer, error)
        self._preprocess, self._device = Preprocess(self._vision.config.image_size), device
        with first_run(f"checkpoint={checkpoint}", "a first small input", f"weights that fit tokenizer={tokenizer}"):
            self(self._preprocess.levels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), [""], 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlipScorer":
        return self

    def score(self, images: Tensor, prompts: Sequence[str], chunk_size: int) -> Tensor:
        """Return (n,), float32, on the images' device, for pictures (n, 3, H, W), uint8, and n texts."""
        with torch.no_grad():
            return self(self._preprocess.levels(images), prompts, chunk_size)

    def pixels(self, images: Tensor, prompts: Sequence[str], chunk_size: int) -> Tensor:
        """Return (n,), float32, with gradient to pictures (n, 3, H, W), float32 in [0, 1]."""
        return self(self._preprocess.pixels(images), prompts, chunk_size)

    def __call__(self, inputs: Tensor, prompts: Sequence[str], chunk_size: int) -> Tensor:
        """Return (n,) for pictures after preprocessing; ``chunk_size`` pairs are scored at a time."""
        device = torch.device(self._device or inputs.device)
        for part in (self._vision, self._text, self._head):
            part.to(device)
        texts = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(device)

        def forward(rows: Tensor) -> Tensor:
            patches = self._vision(pixel_values=inputs[rows].to(device)).last_hidden_state
            rows = rows.to(device)
            seen = self._text(
                input_ids=texts["input_ids"][rows],
                attention_mask=texts["attention_mask"][rows],
                encoder_hidden_states=patches,
                encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=device),
            ).last_hidden_state
            return (self._head(seen[:, 0])[:, 0] - MEAN) / STD

        return in_chunks(forward, torch.arange(len(prompts), device=inputs.device), chunk_size).to(inputs.device)


def _read(checkpoint: str) -> dict[str, Tensor]:
    file = local_file("checkpoint", checkpoint, "'ImageReward.pt' from https://huggingface.co/THUDM/ImageReward")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many unrelated types
        not_found("checkpoint", checkpoint, error)


def _build(tensors: Mapping[str, Tensor]) -> tuple[Any, Any, nn.Module]:
    """Return vision transformer, text encoder and head; raises KeyError, RuntimeError or ValueError for other names."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    parts: dict[str, dict[str, Tensor]] = {"blip.visual_encoder.": {}, "blip.text_encoder.": {}, "mlp.": {}}
    for name, tensor in tensors.items():
        if not _UNUSED.fullmatch(name):
            begin = next((begin for begin in parts if name.startswith(begin)), None)
            if begin is None:
                raise ValueError(f"{name!r} is not among its names")
            parts[begin][name.removeprefix(begin)] = tensor.float()
    image, text, head = parts.values()
    width, _, patch, _ = image["patch_embed.proj.weight"].shape
    vocabulary, hidden = text["embeddings.word_embeddings.weight"].shape
    vision_config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(image["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_count(image, r"blocks\.(\d+)\."),
        num_attention_heads=width // _HEAD,
        image_size=round((image["pos_embed"].shape[1] - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # BLIP's own; transformers' default is another
    )
    text_config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        encoder_hidden_size=width,
        intermediate_size=len(text["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_count(text, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=hidden // _HEAD,
        max_position_embeddings=len(text["embeddings.position_embeddings.weight"]),
    )
    vision, encoder = BlipVisionModel(vision_config), BlipTextModel(text_config, add_pooling_layer=False)
    vision.load_state_dict({_vision_name(name): tensor for name, tensor in image.items()})
    encoder.load_state_dict(text)
    built = vision.eval().requires_grad_(False), encoder.eval().requires_grad_(False)
    return *built, linear_layers(head, "of the checkpoint")


def _vision_name(name: str) -> str:
    """Return transformers' name of a weight of BLIP's vision transformer."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
    rest, pairs = (block[2], _BLOCK) if block else (name, _VISION)
    for ours, theirs in pairs:
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
            break
    return f"encoder.layers.{block[1]}.{rest}" if block else rest


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in tensors if (match := re.match(pattern, name)))
