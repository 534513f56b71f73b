"""Tiny reward models under the published file names: CLIP, LAION's head, BERT and LLaVA, with random weights."""

import json
from pathlib import Path

import torch

from tests.builders.tokenizers import TOKENS, word_tokenizer, write_clip_tokenizer

KINDS = ("weight", "bias")


def build_clip(folder: Path) -> None:
    """Save an open_clip model for 16 x 16 pictures, embeddings of size 12, under open_clip's own file names."""
    import open_clip
    from safetensors.torch import save_file
    from transformers import CLIPTokenizer

    write_clip_tokenizer(folder / "vocabulary")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "vocabulary", model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    vision = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": TOKENS, "vocab_size": len(tokenizer), "width": 16, "heads": 2, "layers": 2}
    model = open_clip.CLIP(12, vision, text)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {**text, "hf_tokenizer_name": "any"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


def head_tensors(sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return random tensors under the names of LAION's head; its sizes are 768, 1024, 128, 64, 16, 1."""
    layers = zip((0, 2, 4, 6, 7), sizes[:-1], sizes[1:], strict=True)
    shapes = {f"layers.{k}.{kind}": (n, m) if kind == "weight" else (n,) for k, m, n in layers for kind in KINDS}
    return {name: torch.randn(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}


def build_bert(folder: Path) -> None:
    """Save a BertModel of three layers and its tokenizer."""
    from transformers import BertConfig, BertModel

    roles = ("pad", "unk", "cls", "sep", "mask")
    tokenizer = word_tokenizer({f"{role}_token": f"[{role.upper()}]" for role in roles}, "[CLS] $A [SEP]")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,  # at the usual 0.02 all words look alike
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_captioner(folder: Path) -> None:
    """Save a LLaVA for 16 x 16 pictures whose answers are random words that depend on the picture."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = word_tokenizer(special, "<s> $A")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=16, patch_size=8, initializer_factor=20.0)
    text = LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=1.0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=4,
        initializer_range=1.0,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    side = {"height": 16, "width": 16}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}USER: {% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
        ),
    ).save_pretrained(folder)
