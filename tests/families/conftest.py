"""Tiny pipelines of each family's real classes, with seeded random weights, and how plain diffusers draws with them.

A new family is one builder, one function that draws, and one line in :data:`FAMILIES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

import diffusion_gym
from algorithms import DiffusionAlgorithm
from algorithms.rollouts import Rollout, collect
from diffusion_gym import load_model
from diffusion_gym.models import DiffusionModel

WriteTokenizer = Callable[[Path], None]
TOKENS = 16


@dataclass(frozen=True)
class Family:
    """What the tests must know of a family.

    Attributes:
        build: writes the pipeline into a folder.
        draw: plain diffusers: (pipeline, prompts, generators, output "latent" or "pt", steps, guidance, eta) ->
            final latents (n, c, h, w), or pictures (n, 3, H, W) in [0, 1].
        guidance: a scale other than 1, or 1 for a family without prompts.
        eta: noise that the pipeline itself can add, or None.
        lora_file: whether diffusers loads a LoRA into it.
        load_options: what plain diffusers must be told to load it.
    """

    build: Callable[[Path, WriteTokenizer], None]
    draw: Callable[..., Tensor]
    guidance: float = 3.0
    eta: float | None = 1.0
    lora_file: bool = True
    load_options: dict[str, Any] = field(default_factory=dict)


def _clip(folder: Path, write_tokenizer: WriteTokenizer, projection: bool = False) -> tuple[Any, Any]:
    """Return a tokenizer and a text encoder of width 32."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    write_tokenizer(folder / "vocabulary")
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


def _vae(**config: Any) -> Any:
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


def _unet(**config: Any) -> Any:
    """Return a UNet2DConditionModel for latents (4, 8, 8)."""
    from diffusers import UNet2DConditionModel

    sizes: dict[str, Any] = {"block_out_channels": (8, 16), "attention_head_dim": 4, "norm_num_groups": 4}
    sizes |= {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1}
    return UNet2DConditionModel(**{**sizes, **config})


def _ddim(**config: Any) -> Any:
    """Return the scheduler of Stable Diffusion 1.x."""
    from diffusers import DDIMScheduler

    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return DDIMScheduler(**betas, **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **config})


def _build_sd(folder: Path, write_tokenizer: WriteTokenizer, **scheduler: Any) -> None:
    from diffusers import StableDiffusionPipeline

    tokenizer, text_encoder = _clip(folder, write_tokenizer)
    unet = _unet(
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_ddim(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _build_sd_v(folder: Path, write_tokenizer: WriteTokenizer) -> None:
    """Stable Diffusion 2.x as it should have been sampled (Lin et al. 2023): v, zero terminal SNR, trailing steps."""
    _build_sd(
        folder,
        write_tokenizer,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def _build_sdxl(folder: Path, write_tokenizer: WriteTokenizer) -> None:
    from diffusers import StableDiffusionXLPipeline

    tokenizer, text_encoder = _clip(folder, write_tokenizer)
    tokenizer_2, text_encoder_2 = _clip(folder, write_tokenizer, projection=True)
    unet = _unet(
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
        vae=_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=_ddim(),
        add_watermarker=False,
    ).save_pretrained(folder)


def _t5(folder: Path, width: int) -> tuple[Any, Any]:
    """Return a tokenizer that spells in letters and pairs (with a few whole words), and a T5 encoder."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    words = [("▁cat", -1.0), ("▁dog", -1.0), ("▁a", -1.0), ("▁", -2.0)]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [(piece, -5.0) for piece in (*letters, *(a + b for a in "etaoinshrdlu" for b in "etaoinshrdlu"))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *words, *pieces]
    tokenizer = T5TokenizerFast(vocabulary, extra_ids=0, model_max_length=TOKENS)
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return tokenizer, T5EncoderModel(T5Config(**sizes, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1))


def _flow_vae() -> Any:
    """Return a VAE as flow models have it: a shift, and no convolutions around the latents."""
    return _vae(scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)


def _build_sd3(folder: Path, write_tokenizer: WriteTokenizer, t5: bool = True, **scheduler: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer, text_encoder = _clip(folder, write_tokenizer, projection=True)
    tokenizer_2, text_encoder_2 = _clip(folder, write_tokenizer, projection=True)
    tokenizer_3, text_encoder_3 = _t5(folder, 72) if t5 else (None, None)
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
        vae=_flow_vae(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        text_encoder_3=text_encoder_3,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        tokenizer_3=tokenizer_3,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
    ).save_pretrained(folder)


def _build_sd3_without_t5(folder: Path, write_tokenizer: WriteTokenizer) -> None:
    _build_sd3(folder, write_tokenizer, t5=False)


def _build_sd3_dynamic(folder: Path, write_tokenizer: WriteTokenizer) -> None:
    """The shift follows the number of image tokens: here 16, and extrapolated steeply from 8 and 32."""
    tokens = {"base_image_seq_len": 8, "max_image_seq_len": 32}
    _build_sd3(folder, write_tokenizer, use_dynamic_shifting=True, **tokens)


def _build_flux(folder: Path, write_tokenizer: WriteTokenizer, distilled: bool = True) -> None:
    """Flux dev: guidance as an input, a shift that follows the resolution; or schnell, with neither."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, text_encoder = _clip(folder, write_tokenizer)
    tokenizer_2, text_encoder_2 = _t5(folder, 24)
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
        vae=_flow_vae(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
    ).save_pretrained(folder)


def _build_flux_schnell(folder: Path, write_tokenizer: WriteTokenizer) -> None:
    _build_flux(folder, write_tokenizer, distilled=False)


def _build_ddpm(folder: Path, write_tokenizer: WriteTokenizer) -> None:
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


def _draw_from_text(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    eta: float = 0.0,
) -> Tensor:
    call = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": output}
    return pipe(list(prompts), generator=generators, eta=eta, **call).images


def _draw_sd3(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
) -> Tensor:
    call = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": output}
    tokens = 256 if pipe.tokenizer_3 is None else TOKENS
    return pipe(list(prompts), generator=generators, height=16, width=16, max_sequence_length=tokens, **call).images


def _draw_flux(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
) -> Tensor:
    """Guidance is the transformer's input in dev, and true guidance away from the empty prompt in schnell."""
    call = {"num_inference_steps": steps, "output_type": output, "height": 16, "width": 16}
    if pipe.transformer.config.guidance_embeds:
        call["guidance_scale"] = guidance
    else:
        call |= {"true_cfg_scale": guidance, "negative_prompt": [""] * len(prompts)}
    images = pipe(list(prompts), generator=generators, max_sequence_length=TOKENS, **call).images
    return images if output == "pt" else pipe._unpack_latents(images, 16, 16, pipe.vae_scale_factor)


def _draw_unconditional(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    eta: float = 0.0,
) -> Tensor:
    from diffusers import DDIMPipeline, DDIMScheduler

    assert guidance == 1.0
    pipe = DDIMPipeline(pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    call = {"batch_size": len(prompts), "generator": generators, "num_inference_steps": steps, "eta": eta}
    pictures = pipe(**call, output_type="pt").images
    return pictures if output == "pt" else pictures * 2 - 1


FAMILIES = {
    "sd": Family(_build_sd, _draw_from_text),
    "sdxl": Family(_build_sdxl, _draw_from_text),
    "sd3": Family(_build_sd3, _draw_sd3, eta=None),
    "flux": Family(_build_flux, _draw_flux, eta=None),
    "ddpm": Family(_build_ddpm, _draw_unconditional, guidance=1.0, lora_file=False),
}


#: Pipelines that differ from a family's in one thing; their images are compared with diffusers'. sd-v trains, too.
VARIANTS = {
    # At zero terminal SNR and eta 1 diffusers takes the root of a rounding error below 0, and draws NaN.
    "sd-v": Family(_build_sd_v, _draw_from_text, eta=0.9),
    "flux-schnell": Family(_build_flux_schnell, _draw_flux, eta=None),
    "sd3-without-t5": Family(
        _build_sd3_without_t5, _draw_sd3, eta=None, load_options={"text_encoder_3": None, "tokenizer_3": None}
    ),
    "sd3-dynamic-shift": Family(_build_sd3_dynamic, _draw_sd3, eta=None),
}


@dataclass(frozen=True)
class Built:
    """A family whose pipeline lies in ``folder``."""

    family: Family
    folder: str

    @property
    def model(self) -> DiffusionModel:
        """The pipeline as this package sees it."""
        return load_model(self.folder)

    def plain(self, folder: str | Path | None = None) -> Any:
        """Load the pipeline as somebody does who never heard of this package."""
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(folder or self.folder, **self.family.load_options)
        pipe.set_progress_bar_config(disable=True)
        return pipe


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: WriteTokenizer) -> Callable[[str], Built]:
    """Return a function from a family's name to its tiny pipeline; each is built once a session."""
    built: dict[str, Built] = {}

    def make(name: str) -> Built:
        if name not in built:
            folder = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                family = (FAMILIES | VARIANTS)[name]
                family.build(folder, write_tokenizer)
            built[name] = Built(family, str(folder))
        return built[name]

    return make


@pytest.fixture(params=[*FAMILIES, pytest.param("sd-v", marks=pytest.mark.slow)])
def built(request: pytest.FixtureRequest, build: Callable[[str], Built]) -> Built:
    """Each family's tiny pipeline."""
    return build(request.param)


@pytest.fixture(params=[*FAMILIES, *VARIANTS])
def built_or_variant(request: pytest.FixtureRequest, build: Callable[[str], Built]) -> Built:
    """Each family's tiny pipeline, and each variant."""
    return build(request.param)


@pytest.fixture
def altered(build: Callable[[str], Built], tmp_path: Path) -> Callable[..., str]:
    """``altered(family, change, unet={...})``: the folder of its tiny pipeline, of which something is different.

    ``change(pipe)`` alters it in place; parts are modules to replace its own, or of Stable Diffusion's UNet and VAE the
    settings that differ.
    """
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    blocks |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    builders = {"unet": lambda **given: _unet(**{"cross_attention_dim": 32, **blocks, **given}), "vae": _vae}

    def alter(family: str, change: Callable[[Any], None] = lambda pipe: None, **parts: Any) -> str:
        pipe = build(family).plain()
        for name, part in parts.items():
            setattr(pipe, name, builders[name](**part) if isinstance(part, dict) else part)
        change(pipe)
        pipe.save_pretrained(tmp_path / "altered")
        return str(tmp_path / "altered")

    return alter


@pytest.fixture
def make_env() -> Callable[..., gymnasium.Env]:
    """``make_env(folder, steps=3, ...)``: a single environment with two prompts and the JPEG reward."""

    def make(folder: str, steps: int = 3, **kwargs: Any) -> gymnasium.Env:
        settings = {"model": folder, "num_inference_steps": steps, "prompts": ["cat", "dog"], **kwargs}
        return gymnasium.make(diffusion_gym.ENV_ID, **settings)

    return make


@pytest.fixture
def sample() -> Callable[[DiffusionAlgorithm[Any], int], Rollout]:
    """``sample(algorithm, n)``: a rollout of the algorithm's environment and policy, as ``learn`` collects it."""

    def draw(algorithm: DiffusionAlgorithm[Any], n: int) -> Rollout:
        prompts = [algorithm.mdp.prompts[i % len(algorithm.mdp.prompts)] for i in range(n)]
        with torch.no_grad():
            return collect(algorithm.rollout_env, algorithm.policy, prompts, algorithm.config.seed)

    return draw
