"""``train``: one run with a progress bar; Ctrl-C leaves a checkpoint, and the same command resumes."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import tyro

from algorithms import ALGORITHMS, AlgorithmConfig, EvaluationConfig
from algorithms.config.base import field_values, recommended
from benchmarks.runs.safeguards import Safeguards
from benchmarks.runs.spec import RunSpec, TaskConfig, WandbMode
from benchmarks.terminal import command
from diffusion_gym.choices import DEFAULT_MODEL
from diffusion_gym.naming import file_name, one_line
from diffusion_gym.recommended import recommended_for as recommends

if TYPE_CHECKING:
    from algorithms import DiffusionAlgorithm

Config = TypeVar("Config", bound=AlgorithmConfig)
#: ``train``'s evaluations where nothing else is said: they add 2 % to DDPO-IS's forwards on emoji-animals.
_EVALUATION_IMAGES, _QUERIES_PER_EVALUATION = 16, 256


@dataclass(frozen=True)
class Writing:
    """What a run writes beside its log, and how much of the machine it takes; changes no result but by threads."""

    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    keep_checkpoints: int = 1
    """Checkpoints kept; with 2 or more, the latest are in the folder's checkpoints/, named after their iteration."""
    threads: int = 0
    """Torch threads; 0 takes all cores. Results are bit-equal for the same number."""
    tensorboard: bool = False
    """Also write TensorBoard events, curves and image grids, to the folder's tensorboard/ (needs the package
    tensorboard)."""
    wandb: WandbMode = "off"
    """Also log to Weights & Biases (needs the package wandb); offline writes to the folder and sends nothing."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers, and packages that are not there."""
        if self.checkpoint_every < 1 or self.keep_checkpoints < 1 or self.threads < 0:
            raise ValueError(
                "expected checkpoint_every >= 1, keep_checkpoints >= 1 and threads >= 0, got "
                f"{self.checkpoint_every}, {self.keep_checkpoints} and {self.threads}."
            )
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ValueError("TensorBoard events need the package tensorboard: python -m pip install tensorboard.")
        if self.wandb != "off" and importlib.util.find_spec("wandb") is None:
            raise ValueError("Logging to Weights & Biases needs the package wandb: python -m pip install wandb.")


@dataclass(frozen=True)
class Extent:
    """Where a run is, and how long."""

    folder: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/REWARD-ALGORITHM-SEED)")
    ] = None
    """The run's folder. An interrupted run there is resumed; other files there are refused."""
    reward_queries: int = 2048
    """Images to sample and reward in all, rounded up to whole iterations; more of them make a finished run longer."""


@dataclass(frozen=True)
class Output(Writing, Extent):
    """Where a run writes, and how much of the machine it takes."""


@dataclass(frozen=True, kw_only=True)
class Train(Generic[Config]):
    """Tune a model toward a reward."""

    task: tyro.conf.OmitArgPrefixes[TaskConfig] = field(default_factory=TaskConfig)
    """What is tuned toward what."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)
    """Where the run writes, and how much of the machine it takes."""
    safeguards: tyro.conf.OmitArgPrefixes[Safeguards] = field(default_factory=Safeguards)
    """When the run stops early, and which checkpoint it keeps as its best."""
    algorithm: Annotated[Config, tyro.conf.arg(name="")]


def train(name: str, options: Train[AlgorithmConfig]) -> int:
    """Run; returns the exit status (130 after Ctrl-C, 143 after SIGTERM)."""
    spec = spec_of(name, options)
    folder = options.output.folder or Path("runs") / f"{file_name(spec.task.reward)}-{name}-{spec.config.seed}"
    return train_spec(spec, folder, options.output)


def spec_of(name: str, options: Train[AlgorithmConfig]) -> RunSpec:
    """Return what the options say is to be run."""
    return RunSpec(name, options.algorithm, options.task, options.output.reward_queries, options.safeguards)


def threads_of(writing: Writing) -> int:
    """Return how many threads torch is to have here."""
    from benchmarks.machine import available_cores

    cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks share a machine's
    return writing.threads or max(1, cores)


def train_spec(spec: RunSpec, folder: Path, writing: Writing) -> int:
    """Run a specification with a progress bar; returns the exit status (130 after Ctrl-C, 143 after SIGTERM).

    Of several ranks all run it; the first writes and prints.
    """
    import torch

    from algorithms.parallel.ranks import current_ranks
    from benchmarks.runs.chunk_sizes import advice, time_chunks
    from benchmarks.runs.folder import BEST, CHECKPOINT
    from benchmarks.runs.memory import estimate_memory
    from benchmarks.runs.progress import ProgressBar
    from benchmarks.runs.recorder import Progress
    from benchmarks.runs.run import run
    from benchmarks.runs.stopping import StopSignal, status_of

    torch.set_num_threads(threads_of(writing))
    ranks = current_ranks()
    say: Callable[[str], None] = print if ranks.is_first else _nothing
    name = spec.algorithm
    of_ranks = f" a rank, {ranks.size} ranks" if ranks.size > 1 else ""
    say(
        f"{name} on {one_line(spec.task.model)} toward {one_line(spec.task.reward)}: {spec.total_queries} reward "
        f"queries, {torch.get_num_threads()} threads{of_ranks}, folder {folder}"
    )
    checkpoint = folder / CHECKPOINT

    stop = StopSignal("a checkpoint is written after this step")

    def built(algorithm: "DiffusionAlgorithm[Any]") -> None:
        estimate = estimate_memory(algorithm)
        say(f"{_taken(spec, algorithm)}\n{estimate.describe()}")
        done = round(algorithm.costs["reward_queries"])
        if done:
            say(f"resuming after {done} of {spec.total_queries} reward queries")
        if stop():
            return
        images = spec.total_queries - done
        seconds = time_chunks(algorithm, estimate, round(images * algorithm.policy.num_inference_steps))
        faster = advice(seconds, algorithm.policy.chunk_size)
        if faster is not None:
            say(faster)

    try:
        with ProgressBar(spec.total_queries) as bar, stop:

            def show(progress: Progress) -> None:
                bar.show({name: progress.images}, {"reward": progress.reward, "eval": progress.evaluation})

            record = run(
                spec,
                folder,
                on_progress=show,
                should_stop=stop,
                checkpoint_every=writing.checkpoint_every,
                keep_checkpoints=writing.keep_checkpoints,
                tensorboard=writing.tensorboard,
                wandb=writing.wandb,
                on_built=built,
            )
    except KeyboardInterrupt as interrupt:
        left = f"the last checkpoint is {checkpoint}" if checkpoint.is_file() else "there is no checkpoint yet"
        say(f"stopped at once; {left}. The same command resumes.")
        return status_of(interrupt)
    if not record.complete:
        say(f"stopped; the checkpoint is {checkpoint}. The same command resumes.")
        return stop.status if stop() else 130  # another rank heard it
    if record.stopped_early is not None:
        say(f"stopped early: {record.stopped_early}.")
    if record.best is not None:
        best = record.best
        say(f"best {best['metric']}, {best['value']:.6g}, at iteration {best['iteration']}: {folder / BEST}")
    pipeline = folder / "pipeline"
    say(f"done: {folder} (weights for diffusers: {pipeline if pipeline.is_dir() else folder})")
    say(f"look at it: {command('report', folder)}")
    return 0


def _taken(spec: RunSpec, algorithm: "DiffusionAlgorithm[Any]") -> str:
    """Say which of the settings that the model recommends a run has."""
    found = algorithm.policy.model.recommended
    wanted = {"num_inference_steps": found.num_inference_steps, **found.settings(spec.algorithm)}
    has = {**field_values(spec.config), "num_inference_steps": spec.task.num_inference_steps}
    taken = [f"{name} {_shown(value)}" for name, value in wanted.items() if name in has and has[name] == value]
    return f"taken from what {spec.task.model} recommends: {', '.join(taken) or 'nothing'}"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _nothing(text: str) -> None:
    """Another rank says it."""


def defaults(name: str, model: str = DEFAULT_MODEL) -> Train[AlgorithmConfig]:
    """What ``train`` does with a model where nothing else is said: what the model recommends for the algorithm.

    The rest is as in the registry, with evaluations unless the algorithm has its own. They are for the run's pictures
    and curve; Python's ``learn``, which writes neither, makes none by default.

    Raises:
        ValueError: as :func:`algorithms.config.base.recommended`.
    """
    config = recommended(ALGORITHMS[name].config, name, model)
    if config.evaluation == EvaluationConfig():
        every = max(1, _QUERIES_PER_EVALUATION // config.images_per_iteration)
        config = replace(config, evaluation=EvaluationConfig(images=_EVALUATION_IMAGES, every=every))
    task = TaskConfig(model, num_inference_steps=recommends(model).num_inference_steps)
    return Train(algorithm=config, task=task)


SUBCOMMANDS = tuple(
    Annotated[
        Train[type(entry.config)],  # type: ignore[misc]
        tyro.conf.subcommand(name, default=defaults(name), description=entry.summary),
    ]
    for name, entry in ALGORITHMS.items()
)
