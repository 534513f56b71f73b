"""What Flux has beside the others: packed latents with their places, guidance as an input, a size of its VAE's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from algorithms import RWR, DenoisingPolicy, PolicyConfig
from diffusion_gym import ENV_ID, load_model
from diffusion_gym.models.flux import Flux, pack, unpack

PROMPTS = ["a cat", "dog", ""]


@pytest.fixture
def flux(build: Callable[[str], Any]) -> Any:
    """The tiny pipeline of Flux dev's kind."""
    return build("flux")


def _copy(folder: str, tmp_path: Path, file: str = "model_index.json", **changes: Any) -> Path:
    """Copy the pipeline, with another value in one of its JSON files."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    path = target / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


def test_packing_is_the_pipelines(flux: Any) -> None:
    """Not square, so that rows and columns cannot be mistaken for each other."""
    pipe = flux.plain()
    latents = torch.randn(3, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    tokens = pack(latents)
    assert torch.equal(tokens, pipe._pack_latents(latents, 3, 4, 6, 10))
    assert torch.equal(unpack(tokens, (4, 6, 10)), latents)
    assert torch.equal(pipe._unpack_latents(tokens, 12, 20, pipe.vae_scale_factor), latents)


def test_what_the_transformer_is_given_is_the_pipelines(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places of image and text tokens, time, guidance and embeddings, as the pipeline itself passes them."""
    pipe, model, given = flux.plain(), flux.model, []
    forward = type(pipe.transformer).forward
    monkeypatch.setattr(
        type(pipe.transformer), "forward", lambda *args, **kwargs: given.append(kwargs) or forward(*args, **kwargs)
    )
    call = {"num_inference_steps": 2, "guidance_scale": 3.5, "height": 16, "width": 16, "max_sequence_length": 16}
    pipe(["a cat"], generator=torch.Generator().manual_seed(0), output_type="latent", **call)
    policy = DenoisingPolicy(model, 2, PolicyConfig(guidance_scale=3.5, trainable="full", eta=0.0))
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.model_output(latents, policy.transition.timesteps[:1], model.encode_prompts(["a cat"]))
    theirs, ours = given[0], given[-1]
    assert len(given) == 3, "guidance costs no second forward"
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6, msg=name)
    assert {name for name, value in theirs.items() if isinstance(value, torch.Tensor)} <= set(ours)
    assert ours["guidance"].tolist() == [3.5]
    assert ours["timestep"].tolist() == [1.0]


def test_guidance_is_an_input_of_dev_and_a_second_forward_of_schnell(build: Callable[[str], Any]) -> None:
    outputs = {}
    for name in ("flux", "flux-schnell"):
        model = build(name).model
        latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        for scale in (1.0, 3.5):
            policy = DenoisingPolicy(model, 4, PolicyConfig(guidance_scale=scale))
            assert policy.forwards_per_row == (2 if name == "flux-schnell" and scale != 1 else 1)
            with torch.no_grad():
                outputs[scale] = policy.model_output(latents, torch.tensor([750.0]), model.encode_prompts(["a cat"]))
        assert (outputs[1.0] - outputs[3.5]).abs().max() > 1e-4
    distilled = build("flux").model
    with torch.no_grad():
        plain = distilled.build_denoiser()(latents, torch.tensor([750.0]), distilled.encode_prompts(["a cat"]))
        policy = DenoisingPolicy(distilled, 4, PolicyConfig())
        unguided = policy.model_output(latents, torch.tensor([750.0]), distilled.encode_prompts(["a cat"]))
    assert torch.equal(plain, unguided), "called without the policy, the denoiser reads a guidance of 1"


def test_a_distilled_model_has_no_prediction_without_guidance_to_fit(flux: Any) -> None:
    env = gymnasium.make(ENV_ID, model=flux.folder, reward="compressibility", prompts=["cat"], num_inference_steps=2)
    settings = {"images_per_iteration": 2, "images_per_prompt": 2, "num_envs": 2, "guidance_scale": 3.5}
    with pytest.raises(ValueError, match=r"cfg_training=False fits the prediction without guidance, but .*distilled"):
        RWR(env, **settings, cfg_training=False)


def test_conditioning_is_the_pipelines(flux: Any) -> None:
    embedding, pooled, _ = flux.plain().encode_prompt(PROMPTS, device="cpu", max_sequence_length=16)
    encoded = flux.model.encode_prompts(PROMPTS)
    torch.testing.assert_close(encoded["prompt_embedding"], embedding, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded["pooled_prompt_embedding"], pooled, rtol=0, atol=1e-5)
    assert flux.model.conditioning_shapes == {"prompt_embedding": (16, 24), "pooled_prompt_embedding": (32,)}
    assert {name: tuple(value.shape[1:]) for name, value in encoded.items()} == flux.model.conditioning_shapes


def test_size_is_the_vaes_in_whole_patches(flux: Any, tmp_path: Path) -> None:
    """16 pixels are 8 latents, 4 tokens a side; of 18 pixels the last two are no whole patch; 96 are 48 latents."""
    assert (flux.model.latent_shape, flux.model.image_shape) == ((4, 8, 8), (3, 16, 16))
    for pixels, latents in ((18, 8), (96, 48)):
        folder = _copy(flux.folder, tmp_path / str(pixels), "vae/config.json", sample_size=pixels)
        model = load_model(str(folder))
        assert (model.latent_shape, model.image_shape) == ((4, latents, latents), (3, 2 * latents, 2 * latents))


def test_shift_follows_the_size(flux: Any, tmp_path: Path) -> None:
    """At 1,024 tokens and more the times lean further toward noise than at 16."""
    large = load_model(str(_copy(flux.folder, tmp_path, "vae/config.json", sample_size=256)))
    assert isinstance(large, Flux)
    assert large.schedule(10).shift > 1.3 * flux.model.schedule(10).shift
    assert (large.schedule(10).sigmas[1:-1] > flux.model.schedule(10).sigmas[1:-1]).all()


def test_networks_in_bfloat16(flux: Any) -> None:
    model = load_model(flux.folder, dtype="bfloat16")
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy = DenoisingPolicy(model, 4, PolicyConfig(guidance_scale=3.5))
        output = policy.model_output(latents, torch.tensor([750.0]), model.encode_prompts(["a cat"]))
        policy = DenoisingPolicy(flux.model, 4, PolicyConfig(guidance_scale=3.5))
        exact = policy.model_output(latents, torch.tensor([750.0]), flux.model.encode_prompts(["a cat"]))
    assert output.dtype == torch.float32
    assert (output - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_missing_tokenizer_is_named(flux: Any, tmp_path: Path, part: str) -> None:
    target = _copy(flux.folder, tmp_path)
    shutil.rmtree(target / part)
    with pytest.raises(ValueError, match=part):
        load_model(str(target))
