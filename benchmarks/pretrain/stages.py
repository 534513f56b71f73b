"""The stages of pre-training in order; each keeps its result in the work folder and is skipped when it is there."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.pretrain.card import SAMPLERS, draw_grid, folder_megabytes, measure, write_card
from benchmarks.pretrain.config import PretrainConfig
from benchmarks.pretrain.denoiser import TextToNoise, build_unet, train_denoiser
from benchmarks.pretrain.judge import Judge, load_judge, save_judge, train_judge
from benchmarks.pretrain.pipeline import check_replaced, load_pipeline, replaced_folder, save_pipeline
from benchmarks.pretrain.reward_models.stages import run_reward_stages
from benchmarks.pretrain.text import build_text_encoder, build_tokenizer, tokenize
from benchmarks.pretrain.training import claim, describe_stage, run_stage, save_atomically
from benchmarks.pretrain.vae import build_vae, encode, train_vae
from benchmarks.pretrain.world import Pictures, captions, render_many
from benchmarks.provenance import processor
from benchmarks.runs.ownership import claimed


def run_stages(config: PretrainConfig) -> None:
    """Run all stages; see :func:`benchmarks.pretrain.pretrain`."""
    torch.set_num_threads(config.threads)
    if config.only != "reward-models":
        check_replaced(config.output)
        _check_judge(config.judge_output)
    if config.only != "generator":
        check_replaced(config.rewards.output)
    with claimed(config.work, lambda folder: (folder / "settings.json").is_file(), "stages of pretrain"):
        _run_stages(config)


def _run_stages(config: PretrainConfig) -> None:
    _claim(config)
    pictures = _pictures(config, "pictures", config.pictures, config.seed)
    held_out = _pictures(config, "held-out", config.held_out, config.seed + 1)
    if config.only != "reward-models":
        vae = _vae(config, pictures)
        judge = _judge(config, pictures)
        model = _denoiser(config, pictures, vae)
        _assemble(config, vae, judge, model, held_out)
    if config.only != "generator":
        run_reward_stages(config, pictures, held_out)


def _check_judge(file: Path) -> None:
    """Raise ValueError where the judge would replace a file that holds none."""
    if file.exists():
        try:
            load_judge(file)
        except Exception as error:  # a file of any kind fails in its own way
            raise ValueError(
                f"{str(file)!r} holds no judge, and is not replaced by one. Choose another place."
            ) from error


def _claim(config: PretrainConfig) -> None:
    """Refuse a work folder whose stages were made with other settings."""
    settings = dataclasses.asdict(config)
    rewards = {name: value for name, value in settings.pop("rewards").items() if name != "output"}
    made_here = ("output", "judge_output", "work", "font", "threads", "all_samplers", "seeds", "only")
    claim(config.work / "settings.json", {name: value for name, value in settings.items() if name not in made_here})
    if config.only != "generator":
        claim(config.work / "reward-settings.json", rewards)


def _pictures(config: PretrainConfig, name: str, count: int, seed: int) -> Pictures:
    """Render pictures, or read them back."""
    file = config.work / f"{name}.npz"
    if file.is_file():
        return Pictures.load(file)
    pictures = render_many(count, seed, config.font, config.activity_share, config.threads)
    partial = config.work / f"{name}.partial.npz"
    pictures.save(partial)
    partial.replace(file)
    return pictures


def _vae(config: PretrainConfig, pictures: Pictures) -> AutoencoderKL:
    """Train the autoencoder on the renders."""
    torch.manual_seed(config.seed)
    vae = build_vae()

    def train(checkpoint: Path) -> float:
        return train_vae(vae, pictures.images, config.vae, config.seed, checkpoint)

    run_stage(config.work, "vae", vae, train)
    return vae


def _judge(config: PretrainConfig, pictures: Pictures) -> Judge:
    """Train the judge on the renders."""
    torch.manual_seed(config.seed + 1)
    judge = Judge()

    def train(checkpoint: Path) -> float:
        return train_judge(
            judge, pictures.images, pictures.animal, pictures.activity, config.judge, config.seed, checkpoint
        )

    run_stage(config.work, "judge", judge, train)
    return judge


def _latents(config: PretrainConfig, pictures: Pictures, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Encode the pictures once, set the scaling factor for unit variance, return scaled means and deviations."""
    file = config.work / "latents.pt"
    if not file.is_file():
        means, stds = encode(vae, pictures.images)
        save_atomically({"means": means, "stds": stds}, file)
    state = torch.load(file, weights_only=True)
    variance = state["means"].var() + state["stds"].square().mean()
    vae.register_to_config(scaling_factor=round(float(variance.rsqrt()), 5))
    return state["means"] * vae.config.scaling_factor, state["stds"] * vae.config.scaling_factor


def _denoiser(config: PretrainConfig, pictures: Pictures, vae: AutoencoderKL) -> TextToNoise:
    """Train the UNet and the text encoder on the latents."""
    means, stds = _latents(config, pictures, vae)
    torch.manual_seed(config.seed + 2)
    tokenizer = build_tokenizer()
    model = TextToNoise(build_text_encoder(tokenizer), build_unet())
    table = tokenize(tokenizer, captions())  # the first caption is the empty one

    def train(checkpoint: Path) -> float:
        captioned = table[torch.from_numpy(pictures.caption)]
        return train_denoiser(model, means, stds, captioned, table[0], config.denoiser, config.seed, checkpoint)

    run_stage(config.work, "denoiser", model, train)
    return model


def _assemble(config: PretrainConfig, vae: AutoencoderKL, judge: Judge, model: TextToNoise, held_out: Pictures) -> None:
    """Save the pipeline and the judge, load them back, measure them and write the card."""
    save_judge(judge, config.judge_output)
    judge = load_judge(config.judge_output)
    with replaced_folder(config.output) as folder:
        save_pipeline(folder, vae, model.text_encoder, build_tokenizer(), model.unet)
        pipe = load_pipeline(folder)
        samplers = SAMPLERS if config.all_samplers else SAMPLERS[:1]
        card = measure(pipe, judge, held_out, config.seeds, samplers) | _provenance(config)
        draw_grid(pipe, folder / "grid.png")
        write_card(folder, card | {"megabytes": folder_megabytes(folder)})


def _provenance(config: PretrainConfig) -> dict[str, Any]:
    """Return how the model was made: seed, machine, and each stage's steps, batch and minutes."""
    training = {name: describe_stage(config.work, name, getattr(config, name)) for name in ("vae", "judge", "denoiser")}
    return {
        "seed": config.seed,
        "pictures": config.pictures,
        "hardware": f"{config.threads} threads of {processor()}",
        "training": training,
    }
