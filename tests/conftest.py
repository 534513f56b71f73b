"""What every test shares: one torch thread, the repair of torchvision, and a tiny genuine Stable Diffusion pipeline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_gym._torchvision import repair_torchvision

torch.set_num_threads(1)
repair_torchvision()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a browser, unless ``-m`` names it; any other ``-m`` means what it says."""
    if "browser" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("browser")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


TOKENS = 16
"""Tokens of a prompt; unknown words are spelled, so longer prompts are cut."""


def _write_tokenizer(folder: Path) -> None:
    """Write a CLIP byte-pair vocabulary that spells everything in bytes and has a few words of one token."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(byte) for byte in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("a", "n"), ("an", "t</w>")]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def _build_pipeline(folder: Path, prediction_type: str) -> None:
    """Save a StableDiffusionPipeline with seeded random weights: latents 4 x 8 x 8, pictures 16 x 16."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    _write_tokenizer(folder / "vocabulary")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "vocabulary", model_max_length=TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            scaling_factor=0.5,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=32,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # transformers initialises embeddings at 0.02, which would make all prompts nearly equal to the UNet.
        torch.nn.init.normal_(text_encoder.get_input_embeddings().weight)
    # The scheduler configuration of Stable Diffusion 1.x.
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def build_tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from prediction type to the folder of a tiny pipeline; each is built once a session."""
    built: dict[str, str] = {}

    def build(prediction_type: str = "epsilon") -> str:
        if prediction_type not in built:
            folder = tmp_path_factory.mktemp(f"tiny-sd-{prediction_type}")
            _build_pipeline(folder, prediction_type)
            built[prediction_type] = str(folder)
        return built[prediction_type]

    return build


@pytest.fixture(scope="session")
def tiny_sd(build_tiny_sd: Callable[[str], str]) -> str:
    """Return the folder of a tiny StableDiffusionPipeline (epsilon), for ``model=``."""
    return build_tiny_sd("epsilon")


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def tiny_sd_each(request: pytest.FixtureRequest, build_tiny_sd: Callable[[str], str]) -> str:
    """Return the folder of a tiny pipeline for each prediction type."""
    return build_tiny_sd(request.param)


EXACT: dict[str, Any] = {
    "model": "exact-mixture",
    "reward": "exact-linear",
    "prompts": ["north", "east", "south", "west"],
    "num_inference_steps": 3,
}
"""Arguments of ``make`` for an environment that is ready in milliseconds and rewards points in the plane."""


@pytest.fixture
def exact() -> dict[str, Any]:
    """Return arguments of ``make``: the exact mixture, four prompts, three steps."""
    return dict(EXACT)


@pytest.fixture(params=["exact", "tiny-sd"])
def each_model(request: pytest.FixtureRequest, tiny_sd: str) -> dict[str, Any]:
    """Return arguments of ``make`` for the exact mixture, and for a real diffusers pipeline."""
    if request.param == "exact":
        return dict(EXACT)
    return {
        "model": tiny_sd,
        "reward": "compressibility",
        "prompts": ["cat", "dog", "ant", "fish"],
        "num_inference_steps": 3,
    }


@pytest.fixture(scope="session")
def comparison(tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished comparison: two algorithms, two seeds, three evaluations of twenty pictures. To be copied."""
    from algorithms import ALGORITHMS, EvaluationConfig
    from algorithms.config import override
    from benchmarks.results import collect_results, write_results
    from benchmarks.runs import run
    from benchmarks.settings import RunSpec, TaskConfig

    folder = tmp_path_factory.mktemp("comparison")
    task = TaskConfig(tiny_sd, "compressibility", "ten-animals", num_inference_steps=2, metrics=("diversity",))
    changes = {"images_per_iteration": 8, "num_envs": 8, "images_per_prompt": 8, "chunk_size": 8}
    changes |= {"updates_per_iteration": 1, "evaluation": EvaluationConfig(images=20), "learning_rate": 0.03}
    records = []
    for seed in (0, 1):
        for name in ("ddpo-is", "rwr"):
            config = override(ALGORITHMS[name].config, seed=seed, **changes)
            run_folder = folder / "compressibility" / name / f"seed-{seed}"
            records.append(run(RunSpec(name, config, task, 16), run_folder))
    write_results(collect_results(records, folder), folder / "results.json")
    return folder
