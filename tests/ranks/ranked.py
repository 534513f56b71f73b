"""Runs on one, two and three ranks, gloo on loopback, and what becomes of each; the tests beside this file judge it.

    python tests/ranks/ranked.py exact FOLDER             # the exact model
    python tests/ranks/ranked.py stable-diffusion FOLDER  # LoRA on the pipeline that FOLDER/tiny_sd names

``sharded.py`` beside it is the same for weights that are sharded.

Each scenario forks its ranks from this process, which has imported everything and trained nothing, so that one costs
about a second. What the ranks report goes to FOLDER/reports.pt.
"""

import importlib
import os
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import gymnasium
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

import algorithms.memory
import diffusion_gym
from algorithms import ALGORITHMS, DiffusionAlgorithm, EvaluationConfig
from algorithms.config.base import override
from algorithms.evaluation import evaluate
from algorithms.parallel.ranks import TIMEOUT, Ranks, current_ranks
from algorithms.parallel.sharding import whole
from algorithms.parallel.split import Split
from algorithms.sampling import collect
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig, Writing

Report = dict[str, Any]
Work = Callable[[], Report]
IMAGES, STEPS, ITERATIONS = 24, 3, 3
CONFIG = {"images_per_iteration": IMAGES, "images_per_prompt": 4, "num_envs": 12, "chunk_size": 4, "seed": 3}
CONFIG |= {"learning_rate": 0.01}


@dataclass(frozen=True)
class Begun:
    """Ranks under way: rank -> process, and where it leaves its report; which of them is to hang, if one is."""

    children: dict[int, int]
    reports: dict[int, Path]
    started: float
    hung: int | None


def begin(size: int, work: Work, folder: Path, timeout: float = 60.0, hung: int | None = None) -> Begun:
    """Start the work on every rank; they wait ``timeout`` seconds for one another."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reports = {rank: Path(tempfile.mkdtemp(dir=folder)) / "report.pt" for rank in range(size)}
    children = {rank: _fork(rank, size, port, work, report, timeout) for rank, report in reports.items()}
    return Begun(children, reports, time.monotonic(), hung)


def end(begun: Begun, limit: float = 120.0) -> list[Report]:
    """Wait for every rank; each one's report, with its ``status``: 0, or minus the signal that ended it.

    A rank that raises reports ``error`` (its class and message), and after how many ``seconds``; one that hangs is
    killed after ``limit`` seconds, or where it is the one that should, once all others have ended.
    """
    statuses: dict[int, int] = {}
    while len(statuses) < len(begun.children):
        for rank in begun.children.keys() - statuses.keys():
            pid, status = os.waitpid(begun.children[rank], os.WNOHANG)
            if pid:
                statuses[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - begun.started > limit or begun.children.keys() - statuses.keys() == {begun.hung}:
                os.kill(begun.children[rank], signal.SIGKILL)
        time.sleep(0.02)
    return [
        (torch.load(file) if file.is_file() else {}) | {"status": statuses[rank]}
        for rank, file in begun.reports.items()
    ]


def on_ranks(size: int, work: Work, folder: Path) -> list[Report]:
    """Do the work on every rank."""
    return end(begin(size, work, folder))


def _fork(rank: int, size: int, port: int, work: Work, report: Path, timeout: float) -> int:
    """Start a rank as a launcher would, by its environment variables."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        current_ranks.cache_clear()
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
        os.environ[TIMEOUT] = str(timeout)
        started = time.monotonic()
        try:
            said = work()
        except Exception as error:
            traceback.print_exc()
            said = {"error": (type(error).__name__, str(error))}
        torch.save(said | {"seconds": time.monotonic() - started}, report)
    finally:
        os._exit(0)


def warm_up(model: str) -> None:
    """Load here what ranks import late, so that a forked one does not; it would take each of them seconds."""
    for module in (
        "accelerate",
        "torch._dynamo",
        "torch.profiler",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
    ):
        importlib.import_module(module)
    build("ddpo-is", model)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward without jumps, so that a last bit in the latents does not become a byte."""
    return images.float().mean((1, 2, 3)) / 255


def build(name: str, model: str, reward: Any = None, **config: Any) -> DiffusionAlgorithm[Any]:
    """A new algorithm on the exact model, or LoRA with guidance on a pipeline."""
    exact = model == "exact-mixture"
    env = gymnasium.make(
        diffusion_gym.ENV_ID,
        model=model,
        reward=reward or ("exact-quadratic" if exact else brightness),
        prompts=["north", "south", "east"] if exact else ["cat", "a dog", "an ant", "canal", "dodo"],
        num_inference_steps=STEPS,
        prompt_tokens="train" in config,
    )
    config = CONFIG | {"evaluation": EvaluationConfig(images=5)} | config
    if name == "rwr":
        config = {"batch_size": 13, "updates_per_iteration": 3} | config
    if exact:
        config["trainable"] = "full"
    else:
        config |= {"guidance_scale": 3.0, "lora": diffusion_gym.LoRAConfig(rank=2, alpha=8.0)}
    return ALGORITHMS[name].cls(env, ALGORITHMS[name].config, **config)


def learn(algorithm: DiffusionAlgorithm[Any], iterations: int, callback: BaseCallback | None = None) -> Report:
    """Train until so many iterations are done in all; weights, moments and counters, to be compared bit for bit."""
    steps = (iterations - algorithm.iteration) * IMAGES * STEPS
    algorithm.learn(steps, callback, reset_num_timesteps=algorithm.iteration == 0)
    tensors = {
        f"{part}/{name}": value for part, group in algorithm.get_parameters().items() for name, value in group.items()
    }
    costs = {name: value for name, value in algorithm.costs.items() if name != "seconds"}
    counters = [algorithm.iteration, algorithm.num_timesteps, algorithm._n_updates, costs, algorithm.extra_state()]
    assert algorithm.last_evaluation is not None
    return {
        "tensors": tensors,
        "counters": counters,
        "chunk_size": algorithm.policy.chunk_size,
        "evaluation": (algorithm.last_evaluation.rewards, algorithm.last_evaluation.images),
        "kl": algorithm.last_evaluation.kl_to_start,
    }


def sampled(name: str, model: str) -> Report:
    """The first iteration's latents, images and rewards, of all ranks in the images' order; and an evaluation.

    Its 9 images do not fill rounds of 6, nor two ranks.
    """
    algorithm = build(name, model, num_envs=6, evaluation=EvaluationConfig(images=9))
    prompts = [algorithm.mdp.prompts[i % len(algorithm.mdp.prompts)] for i in range(IMAGES)]
    split, images = Split(algorithm.ranks, IMAGES), algorithm.assign()
    rollout = collect(
        algorithm.rollout_env, algorithm.policy, prompts, 3, images.flatten().tolist(), updates=len(images), split=split
    )
    latents = split.gather(rollout.latents.transpose(0, 1).contiguous())
    evaluation = evaluate(algorithm.mdp, algorithm.policy, algorithm.config, 0, ranks=algorithm.ranks)
    return {
        "latents": latents, "images": split.gather(rollout.images), "rewards": rollout.rewards,
        "evaluated": evaluation.images, "evaluated rewards": evaluation.rewards,
    }  # fmt: skip


def gradients(name: str, model: str, **config: Any) -> Report:
    """The first update's gradient, as it is just before the optimizer's step."""
    algorithm = build(name, model, updates_per_iteration=1, **config)
    seen = kept_gradients(algorithm)
    learn(algorithm, 1)
    return {"gradients": seen}


def kept_gradients(algorithm: DiffusionAlgorithm[Any]) -> dict[str, Tensor]:
    """What will hold the latest update's whole gradient."""
    seen: dict[str, Tensor] = {}

    def keep(norm: float) -> None:
        seen.update({key: whole(value.grad).clone() for key, value in algorithm.policy.trainable_parameters().items()})

    clip = torch.nn.utils.clip_grad_norm_
    torch.nn.utils.clip_grad_norm_ = lambda *args, **kwargs: (keep(0.0), clip(*args, **kwargs))[1]
    return seen


def unsynchronised(name: str, model: str) -> Report:
    """Training as it is where gradients are not summed over the ranks."""
    Ranks.sum_gradients = lambda self, parameters: None  # type: ignore[method-assign]
    return learn(build(name, model), 2)


def saved(name: str, model: str, file: Path) -> Report:
    """Two of three iterations, and a checkpoint."""
    algorithm = build(name, model)
    report = learn(algorithm, 2)
    algorithm.save(file)
    return report


def resumed(name: str, model: str, file: Path) -> Report:
    """From the checkpoint to the third iteration."""
    fresh = build(name, model)
    algorithm = type(fresh).load(file, fresh.env)
    return learn(algorithm, ITERATIONS)


class At(BaseCallback):
    """Does something at one step of one rank."""

    def __init__(self, step: int, rank: int, action: Callable[[], bool]) -> None:
        super().__init__()
        self.step, self.rank, self.action = step, rank, action

    def _on_step(self) -> bool:
        mine = self.n_calls == self.step and current_ranks().rank == self.rank
        return self.action() if mine else True


def killed(name: str, model: str, rank: int, file: Path) -> Report:
    """One rank is killed in the second iteration's sampling; the first iteration's checkpoint lies there."""
    algorithm = build(name, model)
    learn(algorithm, 1)
    algorithm.save(file)
    return learn(algorithm, 2, At(2, rank, _die))


def killed_in_update(name: str, model: str, rank: int) -> Report:
    """One rank is killed in the second backward pass of an update."""
    algorithm = build(name, model)
    calls = []

    def count() -> None:
        calls.append(1)
        if len(calls) == 2 and algorithm.ranks.rank == rank:
            _die()

    algorithm.gradient_steps.after_backward = count
    return learn(algorithm, 1)


def hung(name: str, model: str, rank: int) -> Report:
    """One rank stops answering in the second iteration's sampling."""
    return learn(build(name, model), 2, At(8, rank, _stop))


def _stop() -> bool:
    os.kill(os.getpid(), signal.SIGSTOP)
    return True


def _die() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def stopped(name: str, model: str) -> Report:
    """One rank's callback asks to stop in the second iteration."""
    algorithm = build(name, model)
    algorithm.learn(5 * IMAGES * STEPS, At(8, 1, lambda: False))
    return {"counters": [algorithm.iteration, algorithm.num_timesteps]}


def failing(name: str, model: str) -> Report:
    """The reward fails on rank 1 in the second iteration; what the algorithm is after it."""
    calls = []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(1)
        if len(calls) == 5 and current_ranks().rank == 1:
            raise OSError("the server has gone")
        return images.float().mean((1, 2, 3))

    algorithm = build(name, model, reward)
    try:
        learn(algorithm, 3)
    except Exception as error:
        return {"error": (type(error).__name__, str(error)), "counters": [algorithm.iteration, algorithm.num_timesteps]}
    return {}


def little_memory(name: str, model: str) -> Report:
    """Memory runs out on rank 1 with 4 rows, in the probe before the first iteration."""
    algorithms.memory.PROBED_DEVICES.append("cpu")
    algorithm = build(name, model)
    distribution = algorithm.policy.distribution

    def short(*arguments: Any) -> Any:
        if algorithm.ranks.rank == 1 and algorithm.policy.chunk_size == 4:
            raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")
        return distribution(*arguments)

    algorithm.policy.distribution = short  # type: ignore[method-assign]
    return learn(algorithm, 1)


def little_memory_in_update(name: str, model: str) -> Report:
    """Memory runs out on rank 1, in the second update."""
    algorithm = build(name, model)
    distribution, calls = algorithm.policy.distribution, []

    def short(rows: Any, *transition: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        if torch.is_grad_enabled() and algorithm.ranks.rank == 1 and sum(calls) > 5:
            raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")
        return distribution(rows, *transition)

    algorithm.policy.distribution = short  # type: ignore[method-assign]
    return learn(algorithm, 1)


def worked_example(model: str) -> Report:
    """The algorithm that docs/your-own-algorithm.md writes."""
    page = (Path(__file__).parents[2] / "docs" / "your-own-algorithm.md").read_text(encoding="utf-8")
    code = re.search(r'```python title="rloo.py"\n(.*?)```', page, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "rloo.py", "exec"), {"__name__": "rloo"})
    return learn(build("rloo", model, kl_weight=0.1), 2)


def too_many_environments(name: str, model: str) -> Report:
    """Ranks that do not divide num_envs."""
    return learn(build(name, model, num_envs=3), 1)


def in_folder(folder: Path, iterations: int) -> Report:
    """``train`` in a folder, with a checkpoint an iteration; a longer budget is a later part of the same run."""
    config = override(ALGORITHMS["ddpo-is"].config, **CONFIG, trainable="full", evaluation=EvaluationConfig(images=5))
    task = TaskConfig("exact-mixture", "exact-linear:normalise,exact-quadratic:0.5", num_inference_steps=STEPS)
    spec = RunSpec("ddpo-is", config, task, ITERATIONS * IMAGES)
    seen = [0.0]

    def enough() -> bool:
        """In the middle of an update, and on the first rank alone, which is the one that hears of progress."""
        return iterations < ITERATIONS and seen[-1] > (iterations + 0.5) * IMAGES

    record = run(
        spec,
        folder,
        Writing(checkpoint_every=1),
        should_stop=enough,
        on_progress=lambda progress: seen.append(progress.images),
    )
    return {"complete": record.complete}


def exact(folder: Path) -> dict[str, list[Report]]:
    """All scenarios of the exact model."""
    reports: dict[str, list[Report]] = {}

    def note(scenario: str, size: int, work: Work) -> None:
        reports[scenario] = on_ranks(size, work, folder)

    model = "exact-mixture"
    warm_up(model)
    # Ranks that wait for one that was lost, seconds each, do so while the others work.
    lost: dict[str, Begun] = {}
    for rank in (0, 1):
        file = folder / f"killed-{rank}.zip"
        lost[f"killed {rank}"] = begin(2, lambda rank=rank, file=file: killed("ddpo-is", model, rank, file), folder)
    lost["killed in update"] = begin(2, lambda: killed_in_update("ddpo-is", model, 1), folder)
    lost["hung"] = begin(2, lambda: hung("ddpo-is", model, 1), folder, timeout=10, hung=1)
    lost["little memory in update"] = begin(2, lambda: little_memory_in_update("ddpo-is", model), folder)
    for name in ("ddpo-is", "rwr"):
        for size in (1, 2, 3):
            note(f"{name} {size}", size, lambda name=name: learn(build(name, model), ITERATIONS))
        for size in (1, 2):
            note(f"{name} gradients {size}", size, lambda name=name: gradients(name, model))
        note(f"{name} unsynchronised", 2, lambda name=name: unsynchronised(name, model))
        file = folder / f"{name}.zip"
        note(f"{name} saved", 2, lambda name=name, file=file: saved(name, model, file))
        for size in (1, 2):
            note(f"{name} resumed {size}", size, lambda name=name, file=file: resumed(name, model, file))
    anchored = {"anchor_start": 1.0, "anchor_everywhere": True, "updates_per_iteration": 2}
    apart = {"images_per_prompt": 6, "window": 2, "advantages": "gdpo", "reward": "exact-quadratic,exact-linear:3"}
    note("nft 2", 2, lambda: learn(build("nft", model, **anchored), ITERATIONS))
    for size in (1, 2):
        note(f"nft gradients {size}", size, lambda: gradients("nft", model))
        note(f"draft gradients {size}", size, lambda: gradients("draft", model, eta=1.0, gradient_steps=2))
        note(f"draft-lv gradients {size}", size, lambda: gradients("draft-lv", model))
        note(f"opsd gradients {size}", size, lambda: gradients("opsd", model))
        note(f"branched gradients {size}", size, lambda: gradients("branched", model, **apart))
    leash = {"kl_penalty": 0.5, "ema_decay": 0.5}
    for size in (1, 2):
        note(f"leashed {size}", size, lambda: learn(build("ddpo-is", model, **leash), ITERATIONS))
    for size in (1, 2, 3):
        note(f"sampled {size}", size, lambda: sampled("ddpo-is", model))
    for size in (1, 2):
        note(f"worked example {size}", size, lambda: worked_example(model))
    note("stopped", 2, lambda: stopped("ddpo-is", model))
    note("failing", 2, lambda: failing("ddpo-is", model))
    note("little memory", 2, lambda: little_memory("ddpo-is", model))
    note("too many", 2, lambda: too_many_environments("ddpo-is", model))
    for scenario, size in (("whole", 2), ("in parts", 2), ("in parts", 2), ("mixed", 2), ("mixed", 1)):
        done = ITERATIONS if scenario == "whole" or (folder / scenario).is_dir() else 1
        note(f"folder {scenario} {size}", size, lambda s=scenario, n=done: in_folder(folder / s, n))
    reports.update({scenario: end(begun) for scenario, begun in lost.items()})
    return reports


def stable_diffusion(folder: Path) -> dict[str, list[Report]]:
    """LoRA with guidance on a tiny pipeline."""
    model, reports = (folder / "tiny_sd").read_text(encoding="utf-8"), {}
    warm_up(model)
    for size in (1, 2):
        reports[f"sampled {size}"] = on_ranks(size, lambda: sampled("ddpo-is", model), folder)
        for name in ("ddpo-is", "rwr"):
            reports[f"{name} {size}"] = on_ranks(size, lambda name=name: learn(build(name, model), 2), folder)
            key = f"{name} gradients {size}"
            reports[key] = on_ranks(size, lambda name=name: gradients(name, model), folder)
    return reports


def main(**scenarios: Callable[[Path], dict[str, list[Report]]]) -> None:
    """Make the reports that the command line asks for."""
    torch.set_num_threads(1)
    target = Path(sys.argv[2])
    torch.save(scenarios[sys.argv[1].replace("-", "_")](target), target / "reports.pt")


if __name__ == "__main__":
    main(exact=exact, stable_diffusion=stable_diffusion)
