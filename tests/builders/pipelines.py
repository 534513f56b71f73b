"""Tiny pipelines of each family's real classes, with seeded random weights."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.builders.tokenizers import TOKENS, write_clip_tokenizer


def tiny_clip(folder: Path, projection: bool = False) -> tuple[Any, Any]:
    """Return a tokenizer and a text encoder of width 32."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    write_clip_tokenizer(folder / "vocabulary")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "vocabulary", model_max_length=TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=24,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    # transformers initialises embeddings at 0.02, which would make all prompts nearly equal to the denoiser.
    torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return tokenizer, encoder


def tiny_vae(**config: Any) -> Any:
    """Return an AutoencoderKL from 16 x 16 pictures to latents (4, 8, 8)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **{"latent_channels": 4, "scaling_factor": 0.5, **config},
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )


def tiny_unet(**config: Any) -> Any:
    """Return a UNet2DConditionModel for latents (4, 8, 8)."""
    from diffusers import UNet2DConditionModel

    sizes: dict[str, Any] = {"block_out_channels": (8, 16), "attention_head_dim": 4, "norm_num_groups": 4}
    sizes |= {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1}
    return UNet2DConditionModel(**{**sizes, **config})


def sd_scheduler(**config: Any) -> Any:
    """Return the scheduler of Stable Diffusion 1.x."""
    from diffusers import DDIMScheduler

    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return DDIMScheduler(**betas, **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **config})


#: Attention in all blocks but the innermost, as the real ones.
SD_UNET: dict[str, Any] = {
    "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def _save_sd(folder: Path, unet: Any, vae: Any, text: tuple[Any, Any], scheduler: Any) -> None:
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text[1],
        tokenizer=text[0],
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def build_tiny_sd(folder: Path, prediction_type: str) -> None:
    """Save the Stable Diffusion that most tests use: latents 4 x 8 x 8, pictures 16 x 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = tiny_unet(**SD_UNET, block_out_channels=(16, 32), norm_num_groups=8)
        vae, text = tiny_vae(), tiny_clip(folder)
    _save_sd(folder, unet, vae, text, sd_scheduler(prediction_type=prediction_type))


def build_sd(folder: Path, **scheduler: Any) -> None:
    """Save a Stable Diffusion 1.x with a smaller UNet."""
    text, unet = tiny_clip(folder), tiny_unet(**SD_UNET)
    _save_sd(folder, unet, tiny_vae(), text, sd_scheduler(**scheduler))


def source_image(text: str) -> Any:
    """Return the picture that a prompt of the tiny InstructPix2Pix edits: 16 x 16, of coarse noise."""
    from PIL import Image

    colours = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(sum(text.encode())))
    return Image.fromarray((colours * 255).byte().numpy()).resize((16, 16))


def build_instruct_pix2pix(folder: Path) -> None:
    """With the images of three prompts beside it, and a file of prompts that edit them."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    tokenizer, text_encoder = tiny_clip(folder)
    StableDiffusionInstructPix2PixPipeline(
        vae=tiny_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=tiny_unet(**SD_UNET, in_channels=8),
        scheduler=sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    texts = ("a cat", "dog", "cat")
    for text in texts:
        source_image(text).save(folder / f"{text}.png")
    lines = [json.dumps({"prompt": text, "image": f"{text}.png"}) for text in texts]
    (folder / "edits.jsonl").write_text("\n".join(lines))


def build_sd_v(folder: Path) -> None:
    """Stable Diffusion 2.x as it should have been sampled (Lin et al. 2023): v, zero terminal SNR, trailing steps."""
    build_sd(
        folder,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def build_sdxl(folder: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    tokenizer, text_encoder = tiny_clip(folder)
    tokenizer_2, text_encoder_2 = tiny_clip(folder, projection=True)
    unet = tiny_unet(
        cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    StableDiffusionXLPipeline(
        vae=tiny_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=sd_scheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)


def tiny_t5(folder: Path, width: int) -> tuple[Any, Any]:
    """Return a tokenizer that spells in letters and pairs (with a few whole words), and a T5 encoder."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    words = [("▁cat", -1.0), ("▁dog", -1.0), ("▁a", -1.0), ("▁", -2.0)]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [(piece, -5.0) for piece in (*letters, *(a + b for a in "etaoinshrdlu" for b in "etaoinshrdlu"))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *words, *pieces]
    tokenizer = T5TokenizerFast(vocabulary, extra_ids=0, model_max_length=TOKENS)
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return tokenizer, T5EncoderModel(T5Config(**sizes, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1))


def tiny_flow_vae() -> Any:
    """Return a VAE as flow models have it: a shift, and no convolutions around the latents."""
    return tiny_vae(scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)


def build_sd3(folder: Path, t5: bool = True, **scheduler: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer, text_encoder = tiny_clip(folder, projection=True)
    tokenizer_2, text_encoder_2 = tiny_clip(folder, projection=True)
    tokenizer_3, text_encoder_3 = tiny_t5(folder, 72) if t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=72,
        caption_projection_dim=16,
        pooled_projection_dim=48,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        vae=tiny_flow_vae(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        text_encoder_3=text_encoder_3,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        tokenizer_3=tokenizer_3,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
    ).save_pretrained(folder)


def build_sd3_without_t5(folder: Path) -> None:
    build_sd3(folder, t5=False)


def build_sd3_dynamic(folder: Path) -> None:
    """The shift follows the number of image tokens: here 16, and extrapolated steeply from 8 and 32."""
    tokens = {"base_image_seq_len": 8, "max_image_seq_len": 32}
    build_sd3(folder, use_dynamic_shifting=True, **tokens)


def build_flux(folder: Path, distilled: bool = True) -> None:
    """Flux dev: guidance as an input, a shift that follows the resolution; or schnell, with neither."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, text_encoder = tiny_clip(folder)
    tokenizer_2, text_encoder_2 = tiny_t5(folder, 24)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=32,
        guidance_embeds=distilled,
        axes_dims_rope=(2, 2, 4),
    )
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if distilled else {"shift": 1.0}
    FluxPipeline(
        vae=tiny_flow_vae(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
    ).save_pretrained(folder)


def build_flux_schnell(folder: Path) -> None:
    build_flux(folder, distilled=False)


def build_pixart_sigma(folder: Path) -> None:
    """With the learned variance, the mask and the scheduler's settings of the published model."""
    from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    tokenizer, text_encoder = tiny_t5(folder, 24)
    torch.nn.init.normal_(text_encoder.get_input_embeddings().weight)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=24,
        use_additional_conditions=False,
    )
    PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=tiny_vae(scaling_factor=0.13025),
        transformer=transformer,
        scheduler=DDIMScheduler(clip_sample=False),
    ).save_pretrained(folder)


def build_ddpm(folder: Path) -> None:
    """The scheduler of the published models: clipped x_0, linear betas, steps_offset 0."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
