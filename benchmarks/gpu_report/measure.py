"""One case of ``gpu_report``: an iteration of DDPO on a model, and the same forwards and backwards alone."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gymnasium
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import diffusion_gym
from algorithms import DDPO
from algorithms.execution import eager
from benchmarks.gpu_report.options import Case
from benchmarks.runs.clock import Seconds
from benchmarks.throughput.floors import Floor
from benchmarks.throughput.iteration import Rows, iterate, iterate_in_memory

_TRIALS = 2
PHASES = ("sampling", "training")


def measure(model: Any, case: Case, steps: int) -> dict[str, Any]:
    """Return a case's seconds, floor, operations and memory, by phase, of one chunk of images.

    Raises:
        MemoryError, RuntimeError: memory ran out.
        ValueError: the model cannot be compiled.
    """
    algorithm = _build(model, case, steps)
    started = time.perf_counter()
    memory = iterate_in_memory(algorithm)  # also compiles, and warms up kernels and allocator
    first = time.perf_counter() - started
    if algorithm.policy.chunk_size != case.chunk_size:
        raise MemoryError(f"memory is enough for {algorithm.policy.chunk_size} rows per forward pass")
    runs = [iterate(algorithm) for _ in range(_TRIALS)]
    with eager(algorithm.policy):
        trained = case.chunk_size * len(algorithm.policy.trainable_steps)
        floor = Floor(algorithm, 1, Rows(case.chunk_size * steps, trained))
        floors = _time_floor(floor, case.chunk_size)
        operations = _operations(algorithm)
    rows = {"sampling": floor.rows.sampled, "training": floor.rows.trained}
    result: dict[str, Any] = {"first_iteration_seconds": first}
    for phase in PHASES:
        result[phase] = {
            "seconds": min(run[phase].wall for run in runs),
            "floor_seconds": floors[phase],
            "rows": rows[phase],
            "operations": rows[phase] * operations[phase],
            "megabytes": memory[phase],
        }
    result["images_per_second"] = case.chunk_size / sum(result[phase]["seconds"] for phase in PHASES)
    result["floor_images_per_second"] = case.chunk_size / sum(floors.values())
    return result


def matmul_peak(device: torch.device, size: int) -> float:
    """Return the operations per second of the fastest of some products of two bfloat16 matrices (size, size)."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _least(lambda: a @ b, device, 10)


def _build(model: Any, case: Case, steps: int) -> DDPO:
    def brightness(images: Tensor, prompts: list[str]) -> Tensor:
        return images.float().mean((1, 2, 3)).cpu()

    env = gymnasium.make(
        diffusion_gym.ENV_ID, model=model, reward=brightness, prompts=["one", "two"], num_inference_steps=steps
    )
    images: dict[str, Any] = dict.fromkeys(("images_per_iteration", "num_envs"), case.chunk_size)
    return DDPO(env, **images, updates_per_iteration=1, guidance_scale=1.0, **asdict(case))


def _time_floor(floor: Floor, chunk: int) -> dict[str, float]:
    def sampling() -> None:
        floor.sampling(chunk)
        floor.decoding(1)

    device = floor.algorithm.mdp.model.device
    return {
        "sampling": _least(sampling, device, _TRIALS),
        "training": _least(lambda: floor.training(chunk), device, _TRIALS),
    }


def _operations(algorithm: DDPO) -> dict[str, int]:
    """Return the floating-point operations of a row in sampling and in training; activations are not made again."""
    rows, network = algorithm.policy.blank_rows(1), algorithm.policy.denoiser
    parts: list[Any] = list(network.modules())
    given = rows.latents, algorithm.policy.transition.timesteps[rows.step_index], rows.conditioning
    checkpointed = [part for part in parts if getattr(part, "gradient_checkpointing", False)]
    for part in checkpointed:
        part.gradient_checkpointing = False
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(*given)
    with FlopCounterMode(display=False) as both:
        network(*given).float().sum().backward()
    for parameter in network.parameters():
        parameter.grad = None
    for part in checkpointed:
        part.gradient_checkpointing = True
    return {"sampling": forward.get_total_flops(), "training": both.get_total_flops()}


def _least(work: Callable[[], object], device: torch.device, trials: int) -> float:
    taken = []
    for _ in range(trials + 1):  # the first warms up
        started = Seconds.now(device)
        work()
        taken.append((Seconds.now(device) - started).wall)
    return min(taken[1:])
