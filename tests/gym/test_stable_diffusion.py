"""The Stable Diffusion family against diffusers' own pipeline, on a tiny pipeline with random weights."""

import copy
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from torch import Tensor

import diffusion_gym
from diffusion_gym import LoRAConfig, load_model
from diffusion_gym.models import DiffusionModel
from diffusion_gym.models.loading import ASSETS
from diffusion_gym.models.stable_diffusion import StableDiffusion, UNetDenoiser
from diffusion_gym.transitions import make_transition

STEPS = 4


@pytest.fixture
def model(tiny_sd: str) -> StableDiffusion:
    """Return the cached tiny model."""
    loaded = load_model(tiny_sd)
    assert isinstance(loaded, StableDiffusion)
    return loaded


def _plain(folder: str | Path) -> StableDiffusionPipeline:
    """Load the pipeline as somebody does who never heard of this package."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _batch(n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, 8, 8, generator=generator), torch.tensor([951, 401, 1])[:n]


def _prompts(model: DiffusionModel) -> dict[str, Tensor]:
    return model.encode_prompts(["cat", "a dog", "ant eating fish"])


# ---- against the pipeline's own call


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_loop_gives_the_pipelines_own_image(tiny_sd_each: str, eta: float, guidance: float) -> None:
    """Environment, denoiser and transition, stepped by hand, against ``pipe(prompt, generator=...)``, epsilon and v."""
    prompt, seed = "a cat", 42
    pipe = _plain(tiny_sd_each)
    call = {"num_inference_steps": STEPS, "eta": eta, "guidance_scale": guidance}
    expected = pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **call).images
    picture = pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="pil", **call).images[0]

    env = gymnasium.make(diffusion_gym.ENV_ID, model=tiny_sd_each, num_inference_steps=STEPS)
    model = load_model(tiny_sd_each)
    denoiser, transition = model.build_denoiser(), make_transition(model.schedule(STEPS), "ddim", eta)
    # The pipeline draws each step's noise from the generator that drew the initial latent.
    noise = torch.Generator().manual_seed(seed)
    torch.randn(1, 4, 8, 8, generator=noise)
    uncond = model.encode_prompts([""])["prompt_embedding"]
    observation, _ = env.reset(seed=seed, options={"prompts": [prompt]})
    for step in range(STEPS):
        latent = torch.from_numpy(observation["latent"])[None]
        cond = torch.from_numpy(observation["prompt_embedding"])[None]
        time = torch.from_numpy(observation["timestep"]).long()
        with torch.no_grad():
            if guidance == 1.0:
                output = denoiser(latent, time, {"prompt_embedding": cond})
            else:
                both = {"prompt_embedding": torch.cat([uncond, cond])}
                low, high = denoiser(latent.repeat(2, 1, 1, 1), time.repeat(2), both).chunk(2)
                output = low + guidance * (high - low)
        drawn = torch.randn(1, 4, 8, 8, generator=noise) if eta > 0 else torch.zeros(1, 4, 8, 8)
        action = transition(output, latent, torch.tensor([step])).sample(drawn)
        observation, _, done, _, info = env.step(action[0].numpy())
    assert done
    # float32 rounding over four steps; at the noisiest the prediction of x_0 multiplies it by 1 / sqrt(a) = 15.
    torch.testing.assert_close(torch.from_numpy(observation["latent"])[None], expected, rtol=1e-4, atol=1e-4)
    difference = np.abs(info["image"].astype(int) - np.asarray(picture))
    assert difference.max() <= 1, "at most a level where rounding falls on the other side"
    assert (difference > 0).mean() < 0.01


def test_prompts_and_guidance_matter(tiny_sd: str) -> None:
    """The comparison above would prove nothing on a UNet that ignores its prompt."""
    pipe = _plain(tiny_sd)

    def latents(prompt: str, guidance: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(
            prompt, generator=generator, guidance_scale=guidance, num_inference_steps=STEPS, output_type="latent"
        ).images

    base = latents("a cat", 1.0)
    assert (latents("a dog", 1.0) - base).abs().max() > 1e-2
    assert (latents("a cat", 5.0) - base).abs().max() > 1e-2


def test_decode_is_the_pipelines_image(model: StableDiffusion, tiny_sd: str) -> None:
    pipe, latents = _plain(tiny_sd), _batch(3)[0]
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    pictures = pipe.image_processor.postprocess(decoded, output_type="pil")
    images = model.decode(latents)
    assert images.dtype == torch.uint8
    assert images.shape == (3, *model.image_shape)
    np.testing.assert_array_equal(
        images.permute(0, 2, 3, 1).numpy(), np.stack([np.asarray(picture) for picture in pictures])
    )
    assert images.float().std() > 10, "a flat picture would prove nothing"


def test_decode_of_many_is_decode_of_each(model: StableDiffusion) -> None:
    """In chunks of 16; another batch size may round a level to the other side."""
    latents = torch.randn(19, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    together = model.decode(latents).int()
    alone = torch.cat([model.decode(row[None]) for row in latents]).int()
    assert together.shape == (19, 3, 16, 16)
    assert (together - alone).abs().max() <= 1


def test_encode_images_is_the_vaes_mode(model: StableDiffusion, tiny_sd: str) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    pipe = _plain(tiny_sd)
    pixels = pipe.image_processor.preprocess(images.permute(0, 2, 3, 1).numpy().astype(np.float32) / 255)
    with torch.no_grad():
        expected = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    latents = model.encode_images(images)
    assert latents.shape == (2, *model.latent_shape)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    not (ASSETS / "emoji-animals" / "model_index.json").is_file(), reason="the embedded model is not there"
)
def test_encode_and_decode_of_the_embedded_model_are_nearly_inverse() -> None:
    """A random VAE inverts nothing; the trained one gives a picture it decoded back to better than 20 dB."""
    model = load_model("emoji-animals")
    pipe = _plain(ASSETS / "emoji-animals")
    latents = pipe(
        ["cat", "dog"], num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="latent"
    ).images
    images = model.decode(latents)
    again = model.decode(model.encode_images(images))
    error = (again.float() - images.float()).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / error)).min() > 20


def test_encode_prompts_is_the_text_encoder(model: StableDiffusion, tiny_sd: str) -> None:
    pipe, prompts = _plain(tiny_sd), ["a cat", "", "a very long prompt that is cut at the end of the context"]
    ids = pipe.tokenizer(prompts, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipe.text_encoder(ids).last_hidden_state
    embedding = model.encode_prompts(prompts)["prompt_embedding"]
    assert embedding.dtype == torch.float32
    assert embedding.shape[1:] == model.conditioning_shapes["prompt_embedding"]
    torch.testing.assert_close(embedding, expected, rtol=1e-5, atol=1e-5)


# ---- the denoiser


def test_denoiser_is_the_unet(model: StableDiffusion, tiny_sd: str) -> None:
    (latents, times), conditioning = _batch(), _prompts(model)
    with torch.no_grad():
        actual = model.build_denoiser()(latents, times, conditioning)
        expected = _plain(tiny_sd).unet(latents, times, conditioning["prompt_embedding"]).sample
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_full_denoiser_is_a_copy(model: StableDiffusion) -> None:
    before = copy.deepcopy(model.pipe.unet.state_dict())
    denoiser = model.build_denoiser()
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in denoiser.parameters())
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.pipe.unet.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.pipe.unet.parameters())


def _lora(model: DiffusionModel, config: LoRAConfig, trained: bool = True) -> UNetDenoiser:
    """Return a denoiser whose adapters are at their start (no change at all), or moved away from it."""
    denoiser = model.build_denoiser(config)
    assert isinstance(denoiser, UNetDenoiser)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if trained and "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return denoiser


def test_lora_starts_as_the_pretrained_model_and_trains_adapters_alone(model: StableDiffusion) -> None:
    (latents, times), conditioning = _batch(), _prompts(model)
    denoiser = _lora(model, LoRAConfig(rank=3), trained=False)
    trainable = {name: parameter for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert {parameter.shape[0] for name, parameter in trainable.items() if "lora_A" in name} == {3}
    # Four blocks' attentions (two down, two up with two layers each, one mid), self and cross, four projections each.
    assert (
        sum("lora_A" in name for name in trainable)
        == sum(type(module).__name__ == "Attention" for module in model.pipe.unet.modules()) * 4
    )
    with torch.no_grad():
        torch.testing.assert_close(
            denoiser(latents, times, conditioning), model.build_denoiser()(latents, times, conditioning), rtol=0, atol=0
        )


def test_lora_leaves_the_cached_pipeline_untouched(model: StableDiffusion) -> None:
    before = copy.deepcopy(model.pipe.unet.state_dict())
    denoiser = _lora(model, LoRAConfig())
    (latents, times), conditioning = _batch(), _prompts(model)
    denoiser(latents, times, conditioning).square().sum().backward()
    after = model.pipe.unet.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not getattr(model.pipe.unet, "peft_config", {})
    assert all(parameter.grad is None for parameter in model.pipe.unet.parameters())
    assert all((parameter.grad is not None) == ("lora_" in name) for name, parameter in denoiser.named_parameters()), (
        "gradients reach the adapters alone"
    )


def test_two_loras_are_independent(model: StableDiffusion) -> None:
    first, second = _lora(model, LoRAConfig()), _lora(model, LoRAConfig(), trained=False)
    (latents, times), conditioning = _batch(), _prompts(model)
    with torch.no_grad():
        torch.testing.assert_close(
            second(latents, times, conditioning), model.build_denoiser()(latents, times, conditioning), rtol=0, atol=0
        )
        assert (first(latents, times, conditioning) - second(latents, times, conditioning)).abs().max() > 1e-3


def test_lora_of_no_layer_is_refused(model: StableDiffusion) -> None:
    with pytest.raises(ValueError, match=r"could be adapted with LoRA targets \('nothing',\)"):
        model.build_denoiser(LoRAConfig(targets=("nothing",)))


# ---- what training leaves behind


@pytest.mark.parametrize(
    "config", [LoRAConfig(rank=4, alpha=4.0), LoRAConfig(rank=2, alpha=8.0), LoRAConfig(rank=4, alpha=1.0)]
)
def test_exported_lora_in_plain_diffusers(
    model: StableDiffusion, tiny_sd: str, tmp_path: Path, config: LoRAConfig
) -> None:
    """``load_lora_weights`` gives the tuned UNet's output, also with alpha different from rank."""
    denoiser = _lora(model, config)
    model.export(denoiser, tmp_path, config)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipe = _plain(tiny_sd)
    (latents, times), conditioning = _batch(), _prompts(model)
    with torch.no_grad():
        base = pipe.unet(latents, times, conditioning["prompt_embedding"]).sample
        pipe.load_lora_weights(tmp_path)
        actual = pipe.unet(latents, times, conditioning["prompt_embedding"]).sample
        expected = denoiser(latents, times, conditioning)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert (expected - base).abs().max() > 1e-2


def test_exported_lora_states_its_alpha(model: StableDiffusion, tmp_path: Path) -> None:
    config = LoRAConfig(rank=2, alpha=8.0)
    model.export(_lora(model, config), tmp_path, config)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - a safetensors file is no mapping
    assert metadata["unet.lora_alpha"] == 8.0
    assert metadata["unet.r"] == 2
    assert all(tensor.dtype == torch.float32 for tensor in tensors)


def test_exported_pipeline_in_plain_diffusers_and_here(model: StableDiffusion, tmp_path: Path) -> None:
    denoiser = model.build_denoiser()
    assert isinstance(denoiser, UNetDenoiser)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.export(denoiser, tmp_path, None)
    (latents, times), conditioning = _batch(), _prompts(model)
    again = load_model(str(tmp_path))
    with torch.no_grad():
        expected = denoiser(latents, times, conditioning)
        base = model.build_denoiser()(latents, times, conditioning)
        plain = _plain(tmp_path).unet(latents, times, conditioning["prompt_embedding"]).sample
        ours = again.build_denoiser()(latents, times, conditioning)
    torch.testing.assert_close(plain, expected, rtol=0, atol=0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert (expected - base).abs().max() > 1e-2
    assert torch.equal(again.decode(latents), model.decode(latents))


def test_export_leaves_the_cached_pipeline_untouched(model: StableDiffusion, tmp_path: Path) -> None:
    unet, parts = model.pipe.unet, {name: id(part) for name, part in model.pipe.components.items()}
    model.export(model.build_denoiser(), tmp_path, None)
    assert model.pipe.unet is unet
    assert {name: id(part) for name, part in model.pipe.components.items()} == parts


def test_export_of_a_foreign_denoiser_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected the denoiser this model built, got ExactDenoiser"):
        model.export(load_model("exact-gaussian").build_denoiser(), tmp_path, None)


# ---- precision, sharing, loading


def test_half_precision(tiny_sd: str) -> None:
    """Frozen networks in bfloat16; conditioning, latents, adapters and fully trained weights in float32."""
    model, full = load_model(tiny_sd, dtype="bfloat16"), load_model(tiny_sd)
    assert model is not full
    assert isinstance(model, StableDiffusion)
    assert {part.dtype for part in (model.pipe.unet, model.pipe.vae, model.pipe.text_encoder)} == {torch.bfloat16}
    (latents, times), conditioning = _batch(), _prompts(model)
    assert conditioning["prompt_embedding"].dtype == torch.float32
    torch.testing.assert_close(conditioning["prompt_embedding"], _prompts(full)["prompt_embedding"], rtol=0, atol=0.1)
    assert (model.decode(latents).int() - full.decode(latents).int()).float().abs().mean() < 2
    assert model.encode_images(model.decode(latents)).dtype == torch.float32
    assert {parameter.dtype for parameter in model.build_denoiser().parameters()} == {torch.float32}
    lora = model.build_denoiser(LoRAConfig())
    for name, parameter in lora.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    with torch.no_grad():
        expected = full.build_denoiser()(latents, times, conditioning)
        torch.testing.assert_close(lora(latents, times, conditioning).float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loaded_once_copied_and_pickled_as_one_object(tiny_sd: str, dtype: str) -> None:
    model = load_model(tiny_sd, dtype=dtype)
    assert load_model(tiny_sd, "cpu", dtype) is model
    assert copy.deepcopy(model) is model
    assert pickle.loads(pickle.dumps(model)) is model


def test_shapes_come_from_the_pipeline(model: StableDiffusion) -> None:
    assert model.latent_shape == (4, 8, 8)
    assert model.image_shape == (3, 16, 16)
    assert dict(model.conditioning_shapes) == {"prompt_embedding": (16, 32)}
    assert model.scheduler_config["steps_offset"] == 1


def test_prediction_type_comes_from_the_pipeline(tiny_sd_each: str) -> None:
    schedule = load_model(tiny_sd_each).schedule(10)
    assert schedule.prediction_type in tiny_sd_each
    assert schedule.timesteps.tolist() == list(range(901, 0, -100))


def test_loading_warns_of_nothing(tiny_sd: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StableDiffusion("fresh", tiny_sd, torch.device("cpu"), "float32")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_a_missing_part_is_named(tiny_sd: str, tmp_path: Path, part: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)could not load the model '.*broken' from .*no file named"):
        load_model(_without(part, tiny_sd, tmp_path))


def test_a_missing_tokenizer_is_refused(tiny_sd: str, tmp_path: Path) -> None:
    """transformers makes an empty tokenizer of nothing, of length 1e30 and without a word: no prompt would be read."""
    with pytest.raises(ValueError, match="tokenizer"):
        load_model(_without("tokenizer", tiny_sd, tmp_path))


def _without(part: str, source: str, tmp_path: Path) -> str:
    folder = tmp_path / "broken"
    shutil.copytree(source, folder)
    shutil.rmtree(folder / part)
    return str(folder)


def test_a_models_folder_may_be_a_path(tiny_sd: str) -> None:
    """The message for other types says "a folder", and ``prompts`` takes paths too."""
    given: Any = Path(tiny_sd)
    assert load_model(given).latent_shape == (4, 8, 8)
