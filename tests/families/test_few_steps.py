"""Few-step models: a tiny LCM that takes its guidance as an input, and training in 1, 2 and 4 steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import gymnasium
import pytest
import torch

from algorithms import ALGORITHMS, DDPO, DiffusionAlgorithm, EvaluationConfig
from algorithms.config.base import override
from algorithms.evaluation import evaluate
from algorithms.seeding import EVALUATION_STREAMS, Noise


def _lcm(pipe: Any) -> None:
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)


def _built(name: str, env: gymnasium.Env) -> DiffusionAlgorithm[Any]:
    entry = ALGORITHMS[name]
    changes: dict[str, Any] = {"images_per_iteration": 4, "images_per_prompt": 2, "num_envs": 4, "trainable": "full"}
    changes |= {"updates_per_iteration": 2, "batch_size": 4} if name == "rwr" else {}
    return entry.cls(env, override(entry.config, **changes, learning_rate=1e-2))


@pytest.mark.parametrize(("steps", "pipeline"), [(1, "StableDiffusionPipeline"), (4, "LatentConsistencyModelPipeline")])
def test_the_training_samplers_pictures_are_the_plain_lcm_pipelines(
    altered: Callable[..., str], make_env: Callable[..., gymnasium.Env], steps: int, pipeline: str
) -> None:
    """From the same noise, with the guidance scale embedded in the time, and one forward per row."""
    folder = altered("sd", _lcm, unet={"time_cond_proj_dim": 6})
    index = Path(folder) / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", pipeline))
    evaluation = EvaluationConfig(images=2)
    algorithm = DDPO(
        make_env(folder, 4, reward="compressibility"), num_envs=2, images_per_iteration=2, guidance_scale=8.0,
        updates_per_iteration=1, trainable="full", evaluation=evaluation,
    )  # fmt: skip
    assert algorithm.policy.forwards_per_row == 1
    policy = algorithm.policy.sampling_as(algorithm.config.policy, steps)
    found = evaluate(algorithm.mdp.with_steps(steps), policy, algorithm.config, 0).images
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = Noise(evaluation.seed, EVALUATION_STREAMS, range(2))
    sources = [torch.Generator().manual_seed(seed) for seed in noise.seeds(range(2))]
    latents = torch.stack([torch.randn(algorithm.mdp.model.latent_shape, generator=source) for source in sources])
    call = {"num_inference_steps": steps, "guidance_scale": 8.0, "output_type": "pt"}
    pictures = pipe(["cat", "dog"], latents=latents, generator=noise.sources(range(2)), **call).images
    assert (found.int() - (pictures * 255).round().int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "steps"), [("awm", 1), ("awm", 2), ("rwr", 1), ("rwr", 4), ("ddpo-is", 2), ("branched", 2)]
)
def test_they_train(altered: Callable[..., str], make_env: Callable[..., gymnasium.Env], name: str, steps: int) -> None:
    """Endpoint methods in any number of steps; policy gradients where a step has noise, also if it is one alone."""
    algorithm = _built(name, make_env(altered("sd", _lcm), steps, reward="compressibility"))
    before = {key: value.detach().clone() for key, value in algorithm.policy.trainable_parameters().items()}
    algorithm.learn(4 * steps)
    after = algorithm.policy.trainable_parameters()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[key], value) for key, value in before.items())


def test_policy_gradients_in_one_step_are_refused_in_a_sentence(
    altered: Callable[..., str], make_env: Callable[..., gymnasium.Env]
) -> None:
    """LCM's only step draws nothing."""
    with pytest.raises(ValueError, match="no step has a density"):
        _built("ddpo-is", make_env(altered("sd", _lcm), 1))
