"""Tiny pipelines whose prompts a language model reads, of the real classes, with seeded random weights."""

import re
from pathlib import Path
from typing import Any

import torch

from tests.builders.pipelines import tiny_flow_vae
from tests.builders.tokenizers import TOKENS, byte_symbols

#: What the pipelines write around a prompt has as many tokens as with the published tokenizer: 34 before Qwen-Image's.
_SYSTEM = "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
_SYSTEM += "the objects and background:"
_WORDS = ["system", "user", "assistant", "cat", "dog", *dict.fromkeys(re.findall(r" ?\w+(?<!ing)|ing", _SYSTEM))]


def tiny_qwen_tokenizer() -> Any:
    """Return a Qwen2Tokenizer of bytes and a few words, with the published one's words around a chat's message."""
    from transformers import Qwen2Tokenizer

    vocabulary = {token: index for index, token in enumerate([*byte_symbols(), "<|endoftext|>"])}
    special = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    tokenizer = Qwen2Tokenizer(vocabulary, [], model_max_length=TOKENS, **special)
    tokenizer.add_tokens(_WORDS)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


#: A language model of width 16, which allows fewer tokens than its tokenizer does, as the published one of Qwen-Image.
_TEXT: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
_TEXT |= {"max_position_embeddings": TOKENS - 1}


def build_qwen_image(folder: Path) -> None:
    """Save a Qwen-Image: latents 4 x 8 x 8, pictures 16 x 16."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_qwen_tokenizer()
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {**_TEXT, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "rope_scaling": rope}
    text_encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.7, 0.1, 0.9, 0.0],
        latents_std=[2.8, 1.4, 1.1, 0.5],
    )
    vae.register_to_config(sample_size=16)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    shift = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    QwenImagePipeline(
        vae=vae,
        text_encoder=_telling(text_encoder),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=True, **shift),
    ).save_pretrained(folder)


def tiny_qwen3(tokenizer: Any, layers: int) -> Any:
    """Return a Qwen3ForCausalLM of so many layers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {**_TEXT, "num_hidden_layers": layers, "head_dim": 8, "vocab_size": len(tokenizer)}
    return _telling(Qwen3ForCausalLM(Qwen3Config(**sizes, bos_token_id=None, eos_token_id=None)))


def build_z_image(folder: Path) -> None:
    """Save a Z-Image: latents 4 x 8 x 8, pictures 16 x 16."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    tokenizer = tiny_qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 16, 16],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    ZImagePipeline(
        vae=tiny_flow_vae(),
        text_encoder=tiny_qwen3(tokenizer, 2).model,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)


def build_flux_2_klein(folder: Path, distilled: bool = False) -> None:
    """Save a Flux.2-klein, base or distilled: latents 16 x 4 x 4, pictures 16 x 16."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    tokenizer = tiny_qwen_tokenizer()
    vae = AutoencoderKLFlux2(
        sample_size=16,
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.2, 2.0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    for modulation in (
        transformer.double_stream_modulation_img,
        transformer.double_stream_modulation_txt,
        transformer.single_stream_modulation,
    ):
        modulation.linear.weight.data.mul_(6)  # otherwise two blocks would hardly read the prompt
    Flux2KleinPipeline(
        vae=vae,
        text_encoder=tiny_qwen3(tokenizer, 27),  # the pipeline joins the hidden states 9, 18 and 27
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=distilled,
    ).save_pretrained(folder)


def _telling(text_encoder: Any) -> Any:
    """Return it with embeddings wide enough that prompts differ; transformers initialises them at 0.02."""
    torch.nn.init.normal_(text_encoder.get_input_embeddings().weight)
    return text_encoder
