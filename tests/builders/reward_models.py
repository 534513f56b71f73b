"""Tiny reward models under the published file names: CLIP, LAION's head, BERT and LLaVA, with random weights."""

import json
import math
from functools import partial
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


#: CLIP's normalisation of pictures.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pickscore_tensors(
    device: str = "cpu",
    vision: tuple[int, int, int, int] = (16, 2, 8, 16),
    text: tuple[int, int, int, int] = (16, 2, 520, TOKENS),
    dimension: int = 12,
) -> dict[str, torch.Tensor]:
    """Return random tensors under the names of the published file, whose sizes are CLIP-H's.

    Args:
        device: of the tensors; "meta" for shapes alone.
        vision: width, layers, patch and image size.
        text: width, layers, vocabulary and context.
        dimension: of the embedding.
    """
    (wide, layers, patch, image), (width, depth, vocabulary, context) = vision, text
    places = (image // patch) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (context, width),
        "text_projection.weight": (dimension, width),
        "vision_model.embeddings.class_embedding": (wide,),
        "vision_model.embeddings.patch_embedding.weight": (wide, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (places, wide),
        "visual_projection.weight": (dimension, wide),
    }
    linear = {f"self_attn.{part}_proj": (1, 1) for part in "kvq"} | {"self_attn.out_proj": (1, 1)}
    linear |= {"mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for tower, size, count in (("text_model", width, depth), ("vision_model", wide, layers)):
        norms = [f"{tower}.encoder.layers.{k}.layer_norm{n}" for k in range(count) for n in (1, 2)]
        norms += ["text_model.final_layer_norm"] if tower == "text_model" else []
        norms += ["vision_model.pre_layrnorm", "vision_model.post_layernorm"] if tower == "vision_model" else []
        shapes |= {f"{name}.{kind}": (size,) for name in norms for kind in KINDS}
        for k in range(count):
            for name, (rows, columns) in linear.items():
                shapes[f"{tower}.encoder.layers.{k}.{name}.weight"] = (rows * size, columns * size)
                shapes[f"{tower}.encoder.layers.{k}.{name}.bias"] = (rows * size,)
    source = torch.Generator(device if device != "meta" else "cpu").manual_seed(0)
    draw = torch.empty if device == "meta" else partial(torch.randn, generator=source)
    tensors = {name: draw(shape, device=device) / shape[-1] ** 0.25 for name, shape in shapes.items()}
    tensors["logit_scale"] = torch.tensor(math.log(100.0), device=device)
    for tower, count in (("text", context), ("vision", places)):
        tensors[f"{tower}_model.embeddings.position_ids"] = torch.arange(count, device=device)[None]
    return tensors


def build_pickscore(folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Save a CLIPModel as PickScore is published, with its processor: files of transformers 4.27, in small."""
    from safetensors.torch import save_file

    write_clip_tokenizer(folder)
    save_file(tensors or pickscore_tensors(), folder / "model.safetensors", {"format": "pt"})
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "hidden_act": "gelu", "vocab_size": 520, "max_position_embeddings": TOKENS, "eos_token_id": 2}
    vision = {**sizes, "hidden_act": "gelu", "image_size": 16, "patch_size": 8}
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 12, "torch_dtype": "float32"}
    config |= {"text_config": text, "vision_config": vision, "logit_scale_init_value": 2.6592}
    steps = {f"do_{step}": True for step in ("center_crop", "normalize", "resize")}
    processor = {**steps, "crop_size": 16, "size": 16, "resample": 3, "image_mean": MEAN, "image_std": STD}
    processor["feature_extractor_type"] = "CLIPFeatureExtractor"
    special = {f"{role}_token": "<|endoftext|>" for role in ("eos", "pad", "unk")} | {"bos_token": "<|startoftext|>"}
    files = {"config": config, "preprocessor_config": processor}
    files["tokenizer_config"] = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def imagereward_tensors(
    vision: tuple[int, int, int, int] = (128, 2, 8, 16), text: tuple[int, int, int, int] = (64, 2, 40, 40)
) -> dict[str, torch.Tensor]:
    """Return random tensors under the names of ImageReward.pt, whose sizes are (1024, 24, 16, 224), (768, 12, ...).

    Args:
        vision: width, layers, patch and image size.
        text: width, layers, vocabulary and positions.
    """
    (wide, layers, patch, image), (width, depth, vocabulary, positions) = vision, text
    places = (image // patch) ** 2 + 1
    encoder = "blip.text_encoder"
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, wide),
        "blip.visual_encoder.pos_embed": (1, places, wide),
        "blip.visual_encoder.patch_embed.proj.weight": (wide, 3, patch, patch),
        "blip.visual_encoder.patch_embed.proj.bias": (wide,),
        f"{encoder}.embeddings.word_embeddings.weight": (vocabulary, width),
        f"{encoder}.embeddings.position_embeddings.weight": (positions, width),
    }
    norms = {"blip.visual_encoder.norm": wide, f"{encoder}.embeddings.LayerNorm": width}
    linear = {"blip.vision_proj": (8, wide), "blip.text_proj": (8, width)}
    for k in range(layers):
        block = f"blip.visual_encoder.blocks.{k}"
        norms |= {f"{block}.norm1": wide, f"{block}.norm2": wide}
        linear |= {f"{block}.attn.qkv": (3 * wide, wide), f"{block}.attn.proj": (wide, wide)}
        linear |= {f"{block}.mlp.fc1": (4 * wide, wide), f"{block}.mlp.fc2": (wide, 4 * wide)}
    for k in range(depth):
        layer = f"{encoder}.encoder.layer.{k}"
        for kind, given in (("attention", width), ("crossattention", wide)):
            linear |= {f"{layer}.{kind}.self.query": (width, width), f"{layer}.{kind}.output.dense": (width, width)}
            linear |= {f"{layer}.{kind}.self.{part}": (width, given) for part in ("key", "value")}
            norms[f"{layer}.{kind}.output.LayerNorm"] = width
        linear |= {f"{layer}.intermediate.dense": (4 * width, width), f"{layer}.output.dense": (width, 4 * width)}
        norms[f"{layer}.output.LayerNorm"] = width
    for name, (rows, columns) in linear.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    shapes |= {f"{name}.{kind}": (size,) for name, size in norms.items() for kind in KINDS}
    source = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=source) / shape[-1] ** 0.3 for name, shape in shapes.items()}
    tensors[f"{encoder}.embeddings.position_ids"] = torch.arange(positions)[None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tensors | {f"mlp.{name}": value for name, value in head_tensors((width, 16, 8, 8, 4, 1)).items()}
