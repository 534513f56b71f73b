"""The same as ``ranked.py`` with sharded weights (FSDP): runs on two and three ranks, beside DDP and one process.

python tests/ranks/sharded.py exact FOLDER             # the exact model
python tests/ranks/sharded.py stable-diffusion FOLDER  # the pipeline that FOLDER/tiny_sd names
"""

import os
from pathlib import Path
from typing import Any

import gymnasium
import torch
from ranked import (
    ITERATIONS,
    Report,
    Work,
    begin,
    build,
    end,
    in_folder,
    kept_gradients,
    killed,
    learn,
    little_memory,
    main,
    on_ranks,
    resumed,
    saved,
    warm_up,
)
from safetensors.torch import load_file
from torch import Tensor

from algorithms import ALGORITHMS
from algorithms.parallel.sharding import local
from benchmarks.runs.memory import estimate_memory
from diffusion_gym import ENV_ID

MODEL = "exact-mixture"
LEASH = {"kl_penalty": 0.5, "ema_decay": 0.5}


def sharded(work: Work) -> Work:
    """The work on ranks that ``accelerate launch --use_fsdp`` has started."""

    def do() -> Report:
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        return work()

    return do


def trained(name: str, model: str = MODEL, iterations: int = ITERATIONS, **config: Any) -> Report:
    """What ``learn`` reports, how many values of the weights lie here, and the latest update's gradient and log."""
    algorithm = build(name, model, **config)
    values = list(algorithm.policy.denoiser.parameters())
    here, total = sum(local(value).numel() for value in values), sum(value.numel() for value in values)
    gradients, logged, update = kept_gradients(algorithm), {}, algorithm.update

    def keep(rollout: Any) -> dict[str, float]:
        logged.update(update(rollout))
        return logged

    algorithm.update = keep  # type: ignore[method-assign]
    report = learn(algorithm, iterations)
    return report | {"here": here, "total": total, "gradients": gradients, "logged": logged}


def exported(name: str, folder: Path) -> Report:
    """The averaged weights as they are exported, and what they should be."""
    algorithm = build(name, MODEL, **LEASH)
    learn(algorithm, 2)
    algorithm.export(folder)
    return {"file": load_file(folder / "exact_model.safetensors"), "average": algorithm.get_parameters()["average"]}


def not_finite(name: str) -> Report:
    """The second update's gradient is NaN on rank 1 alone."""
    algorithm = build(name, MODEL)
    seen: list[int] = []
    backward, step = algorithm.backward, algorithm.step

    def spoil(loss: Tensor) -> None:
        bad = len(seen) == 1 and algorithm.ranks.rank == 1
        backward(loss * float("nan") if bad else loss)

    def count(optimizer: torch.optim.Optimizer) -> Tensor:
        seen.append(1)
        return step(optimizer)

    algorithm.backward, algorithm.step = spoil, count  # type: ignore[method-assign]
    return learn(algorithm, 1) | {"skipped": algorithm.skipped.total}


def estimated(name: str) -> Report:
    """The memory that the run's start tells of."""
    estimate = estimate_memory(build(name, MODEL, **LEASH))
    return {"trained": estimate.trained, "kept": estimate.kept, "text": estimate.describe()}


def one_component(name: str) -> Report:
    """A model whose every tensor has one row: there is nothing to share."""
    algorithm = ALGORITHMS[name].cls(gymnasium.make(ENV_ID, model="exact-gaussian"), trainable="full", num_envs=64)
    return {"trains": list(algorithm.policy.trainable_parameters())}


def exact(folder: Path) -> dict[str, list[Report]]:
    """All scenarios of the exact model."""
    reports: dict[str, list[Report]] = {}
    warm_up(MODEL)
    lost = {  # ranks that wait for one that was lost, seconds each, do so while the others work
        "killed": begin(2, sharded(lambda: killed("ddpo-is", MODEL, 1, folder / "killed.zip")), folder),
        "little memory": begin(2, sharded(lambda: little_memory("ddpo-is", MODEL)), folder),
        "one component": begin(2, sharded(lambda: one_component("ddpo-is")), folder),
    }

    def note(scenario: str, size: int, work: Work, shards: bool = True) -> None:
        reports[scenario] = on_ranks(size, sharded(work) if shards else work, folder)

    for name, size in (("ddpo-is", 2), ("ddpo-is", 3), ("rwr", 2), ("nft", 2), ("draft", 2)):
        note(f"{name} {size}", size, lambda name=name: trained(name))
    for name in ("ddpo-is", "rwr", "nft", "draft"):
        note(f"{name} ddp", 2, lambda name=name: trained(name), shards=False)
    note("saved", 2, lambda: saved("ddpo-is", MODEL, folder / "saved.zip"))
    note("resumed", 2, lambda: resumed("ddpo-is", MODEL, folder / "saved.zip"))
    for size in (1, 2):
        note(f"resumed by {size}", size, lambda: resumed("ddpo-is", MODEL, folder / "saved.zip"), shards=False)
    note("saved by ddp", 2, lambda: saved("ddpo-is", MODEL, folder / "ddp.zip"), shards=False)
    note("resumed from ddp", 2, lambda: resumed("ddpo-is", MODEL, folder / "ddp.zip"))
    note("leashed", 2, lambda: trained("ddpo-is", **LEASH))
    note("leashed ddp", 2, lambda: trained("ddpo-is", **LEASH), shards=False)
    note("first update", 2, lambda: trained("ddpo-is", iterations=1, updates_per_iteration=1))
    note("exported", 2, lambda: exported("ddpo-is", folder / "exported"))
    note("not finite", 2, lambda: not_finite("ddpo-is"))
    note("estimated", 2, lambda: estimated("ddpo-is"))
    note("estimated alone", 1, lambda: estimated("ddpo-is"), shards=False)
    note("folder", 2, lambda: in_folder(folder / "whole", ITERATIONS))
    return reports | {scenario: end(begun) for scenario, begun in lost.items()}


def stable_diffusion(folder: Path) -> dict[str, list[Report]]:
    """LoRA with guidance, and all weights with everything that puts other weights in their place."""
    model, reports = (folder / "tiny_sd").read_text(encoding="utf-8"), {}
    warm_up(model)
    full = {"trainable": "full", "gradient_checkpointing": True, "learning_rate": 1e-4}
    configs: dict[str, dict[str, Any]] = {
        "lora": LEASH,
        "full": LEASH | full,
        "both": {"train": "both", "learning_rate": 1e-4},
    }
    for kind, config in configs.items():
        work = lambda config=config: trained("ddpo-is", model, 1, updates_per_iteration=1, **config)  # noqa: E731
        reports[kind], reports[f"{kind} ddp"] = on_ranks(2, sharded(work), folder), on_ranks(2, work, folder)
    return reports


if __name__ == "__main__":
    main(exact=exact, stable_diffusion=stable_diffusion)
