"""What a run does not do: store a latent twice, encode a prompt twice, or take a tensor to NumPy and back."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import ALGORITHMS, DDPO, EvaluationConfig
from algorithms.config.base import override
from diffusion_gym.models import load_model
from diffusion_gym.rewards import differentiable
from tests.builders.algorithms import WEIGHINGS

ANIMALS = ["cat", "dog", "ant", "fish"]
SMALL = {"images_per_iteration": 8, "images_per_prompt": 4, "num_envs": 4, "chunk_size": 4, "updates_per_iteration": 1}


@differentiable
def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Score pictures without Pillow, in torch."""
    return images.mean((1, 2, 3))


def test_a_rollout_stores_each_latent_and_each_conditioning_once(
    make_env: Callable, sample: Callable, tiny_sd: str
) -> None:
    """8 images, T = 3: 4 latents an image, and one embedding; no storage is larger than what is seen of it."""
    algorithm = DDPO(make_env(tiny_sd, steps=3, reward=brightness, prompts=ANIMALS), **SMALL)
    rollout = sample(algorithm, 8)
    tensors = [rollout.latents, rollout.log_probs, *rollout.conditioning.values(), rollout.rewards, rollout.images]
    floats = (3 + 1) * 4 * 8 * 8 + 3 + 16 * 32 + 1
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == 8 * (4 * floats + 3 * 16 * 16)
    assert rollout.nbytes == 8 * (4 * floats + 3 * 16 * 16)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_each_prompt_is_encoded_once_a_run(
    make_env: Callable, tiny_sd: str, monkeypatch: pytest.MonkeyPatch, guidance_scale: float
) -> None:
    """Two iterations of two rounds, and three evaluations; the unconditional prompt only where it is needed."""
    model, texts = load_model(tiny_sd), []
    encode = model.encode_prompts
    monkeypatch.setattr(model, "encode_prompts", lambda prompts: texts.extend(prompts) or encode(prompts))
    env = make_env(tiny_sd, steps=2, reward=brightness, prompts=ANIMALS)
    DDPO(env, **SMALL, guidance_scale=guidance_scale, evaluation=EvaluationConfig(images=8)).learn(2 * 8 * 2)
    assert sorted(texts) == sorted([*ANIMALS, *([""] if guidance_scale > 1 else [])])


@pytest.mark.parametrize("name", [name for name in WEIGHINGS if name != "sb3-ppo"])  # whose buffer is NumPy's
def test_no_tensor_goes_to_numpy_and_none_comes_back(
    make_env: Callable, tiny_sd: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Rollout, reward, advantages, updates and log; of Pillow's JPEG, which needs arrays, only sizes come back."""
    entry = ALGORITHMS[name]
    fitting = {"batch_size": 8, "gradient_steps": 2, "visited_steps": 2}
    batch = {key: value for key, value in fitting.items() if hasattr(entry.config, key)}
    config = override(entry.config, **SMALL, **batch, trainable="full")
    algorithm = entry.cls(make_env(tiny_sd, steps=2, reward=brightness, prompts=ANIMALS), config)
    algorithm.learn(2 * 8)  # Stable-Baselines3 resets its NumPy face once when learning begins

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a tensor was made of an array, or an array of a tensor")

    monkeypatch.setattr(Tensor, "numpy", refuse)
    monkeypatch.setattr(Tensor, "__array__", refuse)
    monkeypatch.setattr(torch, "from_numpy", refuse)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "as_tensor", refuse_arrays(torch.as_tensor, refuse))
        patch.setattr(torch, "tensor", refuse_arrays(torch.tensor, refuse))
        algorithm.learn(2 * 8, reset_num_timesteps=False)
    assert algorithm.iteration == 2


def refuse_arrays(make: Callable[..., Tensor], refuse: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return ``make``, refusing what is an array."""
    return lambda data, *args, **kwargs: refuse() if type(data).__module__ == "numpy" else make(data, *args, **kwargs)
