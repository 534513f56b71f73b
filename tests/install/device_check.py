"""Checks on a device what tests show on the CPU: the first ratio, bits of a seed and of a resumed run, the chunk probe.

    python tests/install/device_check.py --device cuda

Prints one line per check. CI has no GPU, so no test runs this; it takes about two minutes on an H200.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import torch

import diffusion_gym
from algorithms import DDPO

IMAGES = 64


def build(device: str, **options: Any) -> DDPO:
    """Return DDPO on the embedded model."""
    env = gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=IMAGES, device=device, reward="incompressibility")
    return DDPO(env, images_per_iteration=IMAGES, num_envs=IMAGES, **options)


def steps(algorithm: DDPO, iterations: int) -> int:
    """Return the denoising steps of so many iterations."""
    return iterations * IMAGES * algorithm.mdp.num_inference_steps


def first_ratio(device: str, **options: Any) -> float:
    """Return the largest |log-ratio|, nats, of an update whose rollout the same weights sampled."""
    algorithm = build(device, updates_per_iteration=1, **options)
    rollout = algorithm.collect(algorithm._setup_learn(steps(algorithm, 1), None)[1])
    return algorithm.update(rollout)["train/log_ratio_abs_max"]


def difference(first: DDPO, second: DDPO) -> float:
    """Return the largest difference of two algorithms' weights."""
    ours, theirs = first.get_parameters()["policy"], second.get_parameters()["policy"]
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def main() -> None:
    """Run every check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    for trainable in ("full", "lora"):
        for autocast in ("none", "bfloat16", "float16"):
            largest = first_ratio(device, trainable=trainable, autocast=autocast)
            print(f"first ratio, {trainable}, autocast {autocast}: largest |log-ratio| {largest:g} nats", flush=True)
    runs = [build(device, trainable="full", seed=3) for _ in range(2)]
    for run in runs:
        run.learn(steps(run, 2))
    print(f"two runs of one seed: weights differ by {difference(*runs):g} after two iterations", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        half = build(device, trainable="full", seed=3)
        half.learn(steps(half, 1)).save(Path(folder) / "run")
        resumed = DDPO.load(Path(folder) / "run", half.get_env())
    resumed.learn(steps(resumed, 1), reset_num_timesteps=False)
    print(f"a resumed run: weights differ by {difference(runs[0], resumed):g}", flush=True)
    print(f"chunk size {build(device).learn(1).policy.chunk_size} after the probe, torch {torch.__version__}")


if __name__ == "__main__":
    main()
