"""Runs that two processes must agree on: the tests import this file, and also run it as a program of its own.

``python other_process.py FOLDER`` prints, as JSON, the digest of the weights of every fresh run of :data:`CASES`, and
of every checkpoint in FOLDER after it was resumed.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.callbacks import BaseCallback

import diffusion_gym
from algorithms import ALGORITHMS, DiffusionAlgorithm, EvaluationConfig

#: Algorithm of the registry, model and trained weights of each case. The pipeline's folder comes in at run time.
CASES = {
    "ddpo-is": ("ddpo-is", "exact-mixture", "full"),
    "ddpo-is lora": ("ddpo-is", "tiny-sd", "lora"),
    "rwr lora": ("rwr", "tiny-sd", "lora"),
    "nft lora": ("nft", "tiny-sd", "lora"),
}
IMAGES, STEPS, ITERATIONS = 8, 3, 3


def build(case: str, tiny_sd: str, seed: int = 0) -> DiffusionAlgorithm[Any]:
    """A new algorithm. The prompts are more than an iteration's, so later iterations meet new ones."""
    name, model, trainable = CASES[case]
    exact = model == "exact-mixture"
    env = gymnasium.make(
        diffusion_gym.ENV_ID,
        model=model if exact else tiny_sd,
        reward="exact-quadratic" if exact else "compressibility",
        prompts=["north", "south", "east"] if exact else ["cat", "a dog", "an ant", "canal", "dodo"],
        num_inference_steps=STEPS,
    )
    config: dict[str, Any] = {"images_per_iteration": IMAGES, "images_per_prompt": 4, "num_envs": 4}
    config |= {"learning_rate": 0.01, "seed": seed}
    if name == "rwr":
        config |= {"batch_size": 12, "updates_per_iteration": 2}
    if not exact:
        config |= {"guidance_scale": 3.0, "chunk_size": 4, "lora": diffusion_gym.LoRAConfig(rank=2, alpha=8.0)}
    evaluation = EvaluationConfig(images=2, every=2)  # must leave no trace in the training
    entry = ALGORITHMS[name]
    return entry.cls(env, entry.config, trainable=trainable, evaluation=evaluation, **config)


def learn(algorithm: DiffusionAlgorithm[Any], iterations: int, callback: BaseCallback | None = None) -> None:
    """Train on from where it is until ``iterations`` are done in all."""
    steps = (iterations - algorithm.iteration) * IMAGES * STEPS
    algorithm.learn(steps, callback, reset_num_timesteps=algorithm.iteration == 0)
    assert callback is not None or algorithm.iteration == iterations


def digest(algorithm: DiffusionAlgorithm[Any]) -> str:
    """Hash every bit of weights and optimizer moments, and the counters, costs and statistics."""
    hashed = hashlib.sha256()
    for part, tensors in sorted(algorithm.get_parameters().items()):
        for name, value in sorted(tensors.items()):
            hashed.update(f"{part}/{name}".encode() + value.contiguous().numpy().tobytes())
    costs = {name: value for name, value in algorithm.costs.items() if name != "seconds"}
    counters = [algorithm.iteration, algorithm.num_timesteps, algorithm._n_updates, costs, algorithm.extra_state()]
    return f"{hashed.hexdigest()[:16]} {json.dumps(counters, sort_keys=True)}"


@contextmanager
def single_thread() -> Iterator[None]:
    """Bit equality is promised for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def main(folder: Path) -> None:
    """Print the digests."""
    torch.manual_seed(12345)  # nothing may depend on torch's global generator
    tiny_sd = (folder / "tiny_sd").read_text()
    digests: dict[str, str] = {}
    for case in CASES:
        algorithm = build(case, tiny_sd)
        learn(algorithm, ITERATIONS)
        digests[case] = digest(algorithm)
    for file in sorted(folder.glob("*.zip")):
        resumed = ALGORITHMS[CASES[file.stem.split(",")[0]][0]].cls.load(file)
        torch.rand(1)
        learn(resumed, ITERATIONS)
        digests[file.stem] = digest(resumed)
    print(json.dumps(digests))


if __name__ == "__main__":
    with single_thread():
        main(Path(sys.argv[1]))
