"""Parameters of the newer families' published networks, for docs/families.md, counted without weights.

``python docs/tools/parameters.py`` prints the table's rows. diffusers' defaults are the published transformers of
Qwen-Image and Z-Image; the other settings are those of the models' ``config.json``.
"""

from typing import Any

import torch
from torch import nn


def qwen_image() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the transformer, text encoder (Qwen2.5-VL-7B) and VAE of Qwen/Qwen-Image."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28}
    text = {**heads, "hidden_size": 3584, "intermediate_size": 18944, "vocab_size": 152064}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return QwenImageTransformer2DModel(), Qwen2_5_VLForConditionalGeneration(config), AutoencoderKLQwenImage()


def z_image() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the transformer, text encoder (Qwen3-4B) and VAE (Flux's) of Tongyi-MAI/Z-Image."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel

    blocks: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 4}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 4, "block_out_channels": (128, 256, 512, 512)}
    plain = {"use_quant_conv": False, "use_post_quant_conv": False}
    return (
        ZImageTransformer2DModel(),
        _qwen3(),
        AutoencoderKL(latent_channels=16, layers_per_block=2, **blocks, **plain),
    )


def flux_2_klein() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the transformer, text encoder (Qwen3-4B) and VAE of black-forest-labs/FLUX.2-klein-4B."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    sizes = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 3 * 2560}
    return Flux2Transformer2DModel(**sizes, guidance_embeds=False), _qwen3(), AutoencoderKLFlux2()


def _qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3Model

    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 36, "head_dim": 128}
    return Qwen3Model(Qwen3Config(hidden_size=2560, intermediate_size=9728, vocab_size=151936, **heads))


def row(name: str, networks: tuple[nn.Module, ...]) -> str:
    """Return a row: parameters in millions, GB of frozen half precision, and GB with full weights (16 bytes each)."""
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    frozen = 2 * sum(sizes)
    whole = frozen + 16 * sizes[0]
    return f"| {name} | {', '.join(f'{size / 1e6:,.0f}' for size in sizes)} | {frozen / 1e9:.1f} | {whole / 1e9:.3g} |"


if __name__ == "__main__":
    with torch.device("meta"):
        print(row("Qwen-Image", qwen_image()))
        print(row("Z-Image", z_image()))
        print(row("Flux.2-klein 4B", flux_2_klein()))
