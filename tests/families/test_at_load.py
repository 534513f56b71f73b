"""What a model must be is checked when it is loaded, by running it: parts that do not fit, files that are none."""

import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_gym import load_model, models
from diffusion_gym.models.files import files_state, variant_of
from diffusion_gym.models.pipeline import PipelineModel
from diffusion_gym.rewards.models.weights import not_found
from tests.builders.lora import write_lora

Altered = Callable[..., str]


def scaled(part: str, weight: str, factor: float) -> Callable[[Any], None]:
    """Return what multiplies a weight of a pipeline's part."""

    def change(pipe: Any) -> None:
        getattr(pipe, part).get_parameter(weight).data.mul_(factor)

    return change


def configured(part: str, **settings: Any) -> Callable[[Any], None]:
    """Return what sets settings of a pipeline's part."""
    return lambda pipe: getattr(pipe, part).register_to_config(**settings)


# ---- parts that do not run together


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"in_channels": 9}, r"takes 9 channels, .* have 4; expected .* from noise and a text alone"),
        ({"in_channels": 8}, r"takes 8 channels, and the latents of its VAE have 4"),
        ({"in_channels": 3, "out_channels": 3}, "takes 3 channels, and the latents of its VAE have 4"),
        ({"out_channels": 8}, r"prediction of its UNet2DConditionModel has the shape \(1, 8, 8, 8\), expected \(1, 4"),
        ({"cross_attention_dim": 64}, r"prompt_embedding \(1, 16, 32\).*'cross_attention_dim': 64"),
        ({"num_class_embeds": 5}, "class_labels should be provided"),
        ({"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
          "projection_class_embeddings_input_dim": 72}, "'addition_embed_type': 'text_time'"),
    ],
)  # fmt: skip
def test_a_unet_that_does_not_fit(altered: Altered, parts: dict[str, Any], told: str) -> None:
    folder = altered("sd", unet=parts)
    with pytest.raises(ValueError, match=rf"altered'.*{told}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("family", "change", "told"),
    [
        ("sd", configured("unet", sample_size=None), "UNet2DConditionModel of .* has the sample_size None; expected"),
        ("ddpm", configured("unet", sample_size=None), "UNet2DModel of .* has the sample_size None"),
        ("sd", configured("unet", sample_size="8"), "has the sample_size '8'; expected the height and width"),
        ("ddpm", configured("unet", sample_size=[8, 0]), r"has the sample_size \[8, 0\]"),
        ("sd3", configured("transformer", sample_size=None), "SD3Transformer2DModel of .* has the sample_size None"),
        ("sd3", configured("transformer", sample_size=7), r"has the shape \(1, 4, 6, 6\), expected \(1, 4, 7, 7\)"),
        ("sd3", configured("transformer", sample_size=64), "has positions for images of up to 32 x 32 pixels"),
        ("sd", scaled("unet", "conv_in.weight", float("nan")), "float32 is not finite .*copy the model's folder again"),
        ("flux", scaled("transformer", "x_embedder.weight", float("nan")), "float32 is not finite"),
        ("flux", scaled("text_encoder_2", "shared.weight", float("nan")), "the prompt embedding of .* is not finite"),
    ],
)  # fmt: skip
def test_settings_and_weights_that_do_not_run(
    altered: Altered, family: str, change: Callable[[Any], None], told: str
) -> None:
    folder = altered(family, change)
    with pytest.raises(ValueError, match=f"altered'.*{told}|{told}"):
        load_model(folder)


def test_sizes_that_do_not_divide_still_run_where_the_network_can(altered: Altered) -> None:
    """Diffusers' UNets halve 7 to 4 and bring it back to 7."""
    model = load_model(altered("sd", configured("unet", sample_size=(7, 9))))
    assert (model.latent_shape, model.image_shape) == ((4, 7, 9), (3, 14, 18))


def test_the_vae_must_be_the_denoisers(altered: Altered) -> None:
    with pytest.raises(ValueError, match="takes 4 channels, and the latents of its VAE have 8"):
        load_model(altered("sd", vae={"latent_channels": 8}))


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_pixels_that_overflow_are_refused(altered: Altered, family: str) -> None:
    """Published VAEs go beyond 65,504; NaN would become black pictures, which compress best of all."""
    folder = altered(family, scaled("vae", "decoder.conv_in.weight", 3e5))
    with pytest.raises(
        ValueError, match=r"decoded by the VAE of '.*altered' in float16 is not finite.*dtype='bfloat16' or"
    ):
        load_model(folder, dtype="float16")
    assert load_model(folder, dtype="bfloat16").decode(torch.zeros(1, *load_model(folder).latent_shape)).shape[1] == 3


def test_pixels_are_refused_whenever_they_arise(build: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One of five pictures is enough, and pictures to encode are no exception."""
    model = build("sd").model
    assert isinstance(model, PipelineModel)
    latents = torch.randn(5, *model.latent_shape)
    latents[4] = torch.nan
    with pytest.raises(ValueError, match=r"a picture decoded by the VAE of .* in float32 is not finite"):
        model.decode(latents)
    monkeypatch.setattr(model, "_to_latents", lambda pixels: pixels.new_full((len(pixels), 4, 8, 8), torch.inf))
    with pytest.raises(ValueError, match=r"a picture encoded by the VAE of .* in float32 is not finite"):
        model.encode_images(torch.zeros(1, *model.image_shape, dtype=torch.uint8))


# ---- decoding in chunks


def test_pictures_do_not_depend_on_their_number(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the VAE gets the same number of rows, so that its kernels do the same to each."""
    model, sizes = built.model, set()
    assert isinstance(model, PipelineModel)
    latents = torch.randn(7, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    to_pixels, to_latents = model._to_pixels, model._to_latents
    monkeypatch.setattr(model, "_to_pixels", lambda chunk: sizes.add(len(chunk)) or to_pixels(chunk))
    monkeypatch.setattr(model, "_to_latents", lambda chunk: sizes.add(len(chunk)) or to_latents(chunk))
    images = model.decode(latents)
    encoded = model.encode_images(images)
    for n in (1, 2, 5):
        assert torch.equal(model.decode(latents[:n]), images[:n])
        assert torch.equal(model.encode_images(images[:n]), encoded[:n])
    assert sizes == {4}


@pytest.mark.parametrize(("side", "at_once"), [(16, 4), (64, 4), (90, 2), (128, 1), (512, 1)])
def test_large_pictures_are_decoded_alone(
    build: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, side: int, at_once: int
) -> None:
    model = build("sd").model
    monkeypatch.setattr(model, "image_shape", (3, side, side))
    assert model.images_at_once == at_once


# ---- AutoencoderTiny


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_tiny_autoencoder_decodes_and_encodes(altered: Altered, family: str) -> None:
    """It returns latents and no posterior; of Flux, whose size the VAE names otherwise, the pipeline's size holds."""
    from diffusers import AutoencoderTiny

    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    torch.manual_seed(0)
    vae = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    change = (lambda pipe: None) if family == "sd" else configured("vae", sample_size=16)
    model = load_model(altered(family, change, vae=vae))
    images = torch.randint(0, 256, (2, *model.image_shape), dtype=torch.uint8)
    with torch.no_grad():
        expected = vae.encode(images.float() / 127.5 - 1).latents
    torch.testing.assert_close(model.encode_images(images), expected, rtol=1e-4, atol=1e-4)
    assert model.decode(expected).shape == images.shape


# ---- variants


@pytest.mark.parametrize(("variant", "safe"), [("fp16", True), ("bf16", False), ("non_ema", True)])
def test_a_variant_alone_is_loaded(build: Callable[[str], Any], tmp_path: Path, variant: str, safe: bool) -> None:
    built = build("sd")
    built.plain().save_pretrained(tmp_path / "model", variant=variant, safe_serialization=safe)
    loaded, full = load_model(str(tmp_path / "model")), built.model
    assert isinstance(loaded, PipelineModel)
    assert isinstance(full, PipelineModel)
    assert torch.equal(loaded.pipe.unet.conv_in.weight, full.pipe.unet.conv_in.weight)
    assert loaded.read_of(["cat"]) == full.read_of(["cat"])


def _weights(folder: Path, **files: tuple[str, ...]) -> Path:
    for part, names in files.items():
        (folder / part).mkdir()
        for name in names:
            (folder / part / name).touch()
    return folder


def test_full_weights_are_preferred_and_mixtures_need_one_variant(tmp_path: Path) -> None:
    unet, text = "diffusion_pytorch_model", "model"
    mixed = {"unet": (f"{unet}.fp16.safetensors", f"{unet}.safetensors"), "vae": (f"{unet}.bin", "config.json")}
    folder = _weights(tmp_path, **mixed, scheduler=("scheduler_config.json",))
    assert variant_of("x", folder, dict.fromkeys(("unet", "vae", "scheduler", "_class_name"))) is None
    _weights(folder, text_encoder=(f"{text}.fp16-00001-of-00002.safetensors", f"{text}.ema.safetensors"))
    assert variant_of("x", folder, dict.fromkeys(("unet", "vae", "text_encoder"))) == "fp16"
    _weights(folder, text_encoder_2=(f"{text}-00001-of-00002.bf16.bin", f"{text}.safetensors.index.bf16.json"))
    assert variant_of("x", folder, dict.fromkeys(("unet", "text_encoder_2"))) == "bf16"
    with pytest.raises(ValueError, match=r"'x' holds its parts in different variants \(text_encoder: ema and fp16, t"):
        variant_of("x", folder, dict.fromkeys(("text_encoder", "text_encoder_2")))


# ---- files that are no model


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 492265880\n"


@pytest.mark.parametrize(
    "file", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json", "model_index.json"]
)
def test_git_lfs_pointers_are_named(build: Callable[[str], Any], tmp_path: Path, file: str) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(build("sd").folder, folder)
    (folder / file).write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{file}' of model .* is a Git LFS pointer.*git lfs pull"):
        load_model(str(folder))


def test_git_lfs_pointers_of_reward_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"model\.safetensors' of clip=.* is a Git LFS pointer"):
        not_found("clip", str(tmp_path), OSError("header too large"))


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "my-style.safetensors"])
def test_a_lora_is_no_model(tmp_path: Path, name: str) -> None:
    file = write_lora(tmp_path / "lora" / name)
    for given in (file, file.parent):
        with pytest.raises(ValueError, match=rf"model '{given}' is a LoRA, .* with start_from '{given}'"):
            load_model(str(given))


def test_a_runs_folder_is_no_model(build: Callable[[str], Any], tmp_path: Path) -> None:
    write_lora(tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(
        ValueError, match=rf"folder of a run: 'sample --run {tmp_path}' .* with start_from '{tmp_path}'"
    ):
        load_model(str(tmp_path))
    shutil.copytree(build("sd").folder, tmp_path / "pipeline")
    with pytest.raises(ValueError, match=rf"is the folder of a run; give '{tmp_path}/pipeline'"):
        load_model(str(tmp_path))


def test_other_things_that_are_no_model(build: Callable[[str], Any], tmp_path: Path) -> None:
    source = build("sd").folder
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0a1b"
    shutil.copytree(source, snapshot)
    torch.save({}, tmp_path / "sd.ckpt")
    told = {
        f"{source}/unet": f"is not a whole model; give '{source}'",
        str(snapshot.parents[1]): f"is not a whole model; give '{snapshot}'",
        str(snapshot.parent): f"is not a whole model; give '{snapshot}'",
        str(tmp_path / "sd.ckpt"): "is a single-file checkpoint, .* as model_config",
    }
    for given, expected in told.items():
        with pytest.raises(ValueError, match=rf"model '{given}' {expected}"):
            load_model(given)


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, build: Callable[[str], Any]) -> None:
    folder = Path(build("sd").folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model(f"~/{folder.name}").latent_shape == (4, 8, 8)
    with pytest.raises(ValueError, match=f"unknown model '{folder.parent}/nowhere'"):
        load_model("~/nowhere")


# ---- shared while somebody holds it


def test_a_changed_folder_is_loaded_again(build: Callable[[str], Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(build("sd").folder, folder)
    first = load_model(str(folder))
    assert load_model(str(folder)) is first
    before = files_state(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "timestep_spacing": "trailing"}))
    assert files_state(folder) != before
    second = load_model(str(folder))
    spacings = [model.scheduler_config["timestep_spacing"] for model in (first, second)]
    assert spacings == ["leading", "trailing"]
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    written = weights.stat().st_mtime_ns
    weights.write_bytes(weights.read_bytes())  # of the same size, and of the same time, as programs copy
    os.utime(weights, ns=(written, written))
    assert load_model(str(folder)) is not second


def test_a_model_that_nobody_holds_is_let_go(build: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_loaded", weakref.WeakValueDictionary())
    model = weakref.ref(load_model(build("sd").folder))
    gc.collect()
    assert model() is None
    held = load_model(build("sd").folder)
    assert load_model(build("sd").folder) is held
