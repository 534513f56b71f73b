"""Tiny object detectors of transformers with random weights: with COCO's names, and zero-shot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.builders.tokenizers import TOKENS, word_tokenizer, write_clip_tokenizer

COCO = {0: "person", 1: "cat", 2: "mouse", 3: "sofa", 4: "orange"}
_NAMES = {"id2label": COCO, "label2id": {name: index for index, name in COCO.items()}}
_HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}


def _detr(_: Path) -> tuple[Any, Any]:
    import transformers as t

    backbone = t.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, patch_size=4, out_features=["stage2"])
    config = t.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        num_queries=6, d_model=16, encoder_layers=1, decoder_layers=1, **_HEADS, **_NAMES,
    )  # fmt: skip
    return t.DetrForObjectDetection(config), t.DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64})


def _yolos(_: Path) -> tuple[Any, Any]:
    import transformers as t

    config = t.YolosConfig(
        image_size=[32, 32], patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_detection_tokens=6, use_mid_position_embeddings=False, **_NAMES,
    )  # fmt: skip
    return t.YolosForObjectDetection(config), t.YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 48})


def _rt_detr(_: Path) -> tuple[Any, Any]:
    import transformers as t

    stages = {"out_features": ["stage2", "stage3", "stage4"], "out_indices": [2, 3, 4]}
    backbone = t.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", **stages
    )
    config = t.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8] * 3, encoder_layers=1, d_model=16,
        num_queries=6, decoder_in_channels=[16] * 3, decoder_layers=2, decoder_n_points=2, num_denoising=0,
        **_HEADS, **_NAMES,
    )  # fmt: skip
    return t.RTDetrForObjectDetection(config), t.RTDetrImageProcessor(size={"height": 64, "width": 64})


def _owlvit(folder: Path) -> tuple[Any, Any]:
    import transformers as t

    write_clip_tokenizer(folder / "vocabulary")
    tokenizer = t.CLIPTokenizer.from_pretrained(folder / "vocabulary", model_max_length=TOKENS, pad_token="!")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    config = t.OwlViTConfig(text_config=text, vision_config=vision, projection_dim=16)
    pictures = t.OwlViTImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    return t.OwlViTForObjectDetection(config), t.OwlViTProcessor(pictures, tokenizer)


def _grounding_dino(_: Path) -> tuple[Any, Any]:
    import transformers as t

    roles = ("pad", "unk", "cls", "sep", "mask")
    tokenizer = word_tokenizer({f"{role}_token": f"[{role.upper()}]" for role in roles}, "[CLS] $A [SEP]")
    stages = ["stage2", "stage3", "stage4"]
    backbone = t.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
        out_features=stages,
    )  # fmt: skip
    text = t.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = t.GroundingDinoConfig(
        backbone_config=backbone, use_pretrained_backbone=False, text_config=text, num_queries=6, encoder_layers=1,
        decoder_layers=2, d_model=32, max_text_len=32, **_HEADS,
    )  # fmt: skip
    pictures = t.GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    return t.GroundingDinoForObjectDetection(config), t.GroundingDinoProcessor(pictures, tokenizer)


CLOSED: dict[str, Callable[[Path], tuple[Any, Any]]] = {"detr": _detr, "yolos": _yolos, "rt_detr": _rt_detr}
ZERO_SHOT: dict[str, Callable[[Path], tuple[Any, Any]]] = {"owlvit": _owlvit, "grounding_dino": _grounding_dino}


def build_detector(folder: Path, kind: str) -> str:
    """Save a detector and its processor, as ``from_pretrained`` loads them, and return the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = (CLOSED | ZERO_SHOT)[kind](folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
