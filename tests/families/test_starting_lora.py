"""A LoRA that training starts from: what the KL is to, resuming, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from algorithms import DDPO, DenoisingPolicy, PolicyConfig
from algorithms.checkpoints.tensors import flatten
from diffusion_gym import LoRAConfig, load_model


@pytest.fixture(scope="module")
def lora(build: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``lora(train="denoiser")``: the folder of a LoRA for the tiny Stable Diffusion."""

    def write(train: Any = "denoiser") -> str:
        folder, model = tmp_path_factory.mktemp("lora"), build("sd").model
        config = PolicyConfig(train=train, lora=LoRAConfig(2, 8.0))
        policy = DenoisingPolicy(model, 3, config)
        with torch.no_grad():
            for value in policy.trainable_parameters().values():
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
        model.export(policy.denoiser, folder, config.lora)
        return str(folder)

    return write


SIZES: dict[str, Any] = {"images_per_iteration": 4, "num_envs": 4, "updates_per_iteration": 1, "kl_to_start": True}


@pytest.mark.parametrize("mode", ["merge", "train"])
def test_the_kl_is_to_the_merged_and_a_run_resumes(
    build: Callable, make_env: Callable, lora: Callable, tmp_path: Path, mode: str
) -> None:
    folder, start = build("sd").folder, lora()
    algorithm = DDPO(make_env(folder, start_from=start, start_from_mode=mode), **SIZES, guidance_scale=1.0)
    rows = algorithm.policy.blank_rows(2)
    rows.latents.normal_(generator=torch.Generator().manual_seed(0))
    assert algorithm.reference is not None
    with torch.no_grad():
        kl = algorithm.reference.kl(rows, algorithm.policy.distribution(rows))
    assert (kl == 0).all() if mode == "merge" else (kl > 1e-6).all()
    algorithm.learn(12)
    algorithm.save(tmp_path / "file")
    resumed = DDPO.load(tmp_path / "file")
    assert resumed.mdp.model is algorithm.mdp.model
    for each in (algorithm, resumed):
        each.learn(12, reset_num_timesteps=False)
    ours, theirs = flatten(algorithm.get_parameters()), flatten(resumed.get_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(ValueError, match="weights are others" if mode == "merge" else r"\(start_from\) is another"):
        DDPO.load(tmp_path / "file", make_env(folder))


def test_text_encoders_are_merged_and_trained_on(build: Callable, lora: Callable) -> None:
    folder, start = build("sd").folder, lora("both")
    merged = load_model(folder, start_from=start)
    before, after = (model.encode_prompts(["a cat"])["prompt_embedding"] for model in (build("sd").model, merged))
    assert (before - after).abs().max() > 1e-3
    further = load_model(folder, start_from=start, start_from_mode="train")
    policy = DenoisingPolicy(further, 3, PolicyConfig(train="both"))
    tokens = further.tokenize(["a cat"])
    with torch.no_grad():
        encoded = further.encode_tokens(policy.denoiser.encoders, tokens)["prompt_embedding"]  # type: ignore[attr-defined]
    torch.testing.assert_close(encoded, after, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"adapts text_encoder, unet, but unet would be trained; set what is trained"):
        DenoisingPolicy(further, 3, PolicyConfig())


def test_what_does_not_fit_is_refused(build: Callable, lora: Callable, tmp_path: Path) -> None:
    folder, start = build("sd").folder, lora()
    further = load_model(folder, start_from=start, start_from_mode="train")
    for config in (PolicyConfig(lora=LoRAConfig(8)), PolicyConfig(trainable="full")):
        with pytest.raises(ValueError, match="has rank 2 and alpha 8 on attention, and is trained on as it is; got"):
            DenoisingPolicy(further, 3, config)
    with pytest.raises(ValueError, match="start_from_mode 'train' needs a LoRA"):
        load_model(folder, start_from_mode="train")
    tensors = load_file(Path(start) / "pytorch_lora_weights.safetensors")
    half = {name.replace("attentions.0", "attentions.7"): value for name, value in tensors.items()}
    for name, wrong, message in [
        ("other", half, "on this kind of model"),
        ("empty", {"x": torch.zeros(1)}, "on this kind of model"),
    ]:
        save_file(wrong, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=message):
            load_model(folder, start_from=str(tmp_path / f"{name}.safetensors"))
    tensors |= {name: value[:1] for name, value in tensors.items() if "to_q.lora_A" in name}
    tensors |= {name: value[:, :1].contiguous() for name, value in tensors.items() if "to_q.lora_B" in name}
    save_file(tensors, tmp_path / "uneven.safetensors")
    with pytest.raises(ValueError, match="differ in rank or alpha"):
        load_model(folder, start_from=str(tmp_path / "uneven.safetensors"), start_from_mode="train")
    load_model(folder, start_from=str(tmp_path / "uneven.safetensors"))
