"""``train``: one run with a progress bar; Ctrl-C leaves a checkpoint, and the same command resumes."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

import tyro

from algorithms import ALGORITHMS, AlgorithmConfig, EvaluationConfig
from algorithms.config.base import field_values, recommended
from benchmarks.runs.safeguards import Safeguards
from benchmarks.runs.spec import RunSpec, TaskConfig, Writing
from benchmarks.terminal import command
from diffusion_gym.choices import DEFAULT_MODEL
from diffusion_gym.naming import file_name, one_line
from diffusion_gym.recommended import recommended_for as recommends

if TYPE_CHECKING:
    from algorithms import DiffusionAlgorithm
    from benchmarks.runs.record import Run
    from benchmarks.runs.recorder import Progress

Config = TypeVar("Config", bound=AlgorithmConfig)
Say = Callable[[str], None]
#: ``train``'s default evaluations: they add 2 % to DDPO-IS's forwards on emoji-animals. With two pictures per prompt
#: the watch for reward hacking sees whether they get alike.
_EVALUATION_IMAGES, _PER_PROMPT, _QUERIES_PER_EVALUATION = 16, 2, 256


@dataclass(frozen=True)
class Extent:
    """Where a run is, and how long."""

    folder: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/REWARD-ALGORITHM-SEED)")
    ] = None
    """The run's folder; an interrupted run there is resumed."""
    reward_queries: int = 2048
    """Images to sample and score, rounded up to whole iterations. A larger number continues a finished run."""


@dataclass(frozen=True)
class Output(Writing, Extent):
    """Where a run writes, how long it is, and its threads."""

    dry_run: bool = False
    """Only say what the run would take, and train nothing."""


@dataclass(frozen=True, kw_only=True)
class Train(Generic[Config]):
    """Tune a model toward a reward."""

    #: Options at the top of the help.
    first: ClassVar[tuple[str, ...]] = ("model", "reward", "prompts", "reward_queries", "seed", "folder")

    task: tyro.conf.OmitArgPrefixes[TaskConfig] = field(default_factory=TaskConfig)
    """The model, and what it is tuned toward."""
    algorithm: Annotated[Config, tyro.conf.arg(name="")]
    """How it is trained."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)
    """What the run writes, and its threads."""
    safeguards: tyro.conf.OmitArgPrefixes[Safeguards] = field(default_factory=Safeguards)
    """When the run stops early, and which checkpoint it keeps as its best."""

    def spec(self, name: str) -> RunSpec:
        """Return the specification of a run with this algorithm."""
        return RunSpec(name, self.algorithm, self.task, self.output.reward_queries, self.safeguards)


def train(name: str, options: Train[AlgorithmConfig]) -> int:
    """Run; return the exit status (130 after Ctrl-C, 143 after SIGTERM)."""
    spec = options.spec(name)
    if options.output.dry_run:
        return forecast_spec(spec, options.output)
    folder = options.output.folder or Path("runs") / f"{file_name(spec.task.reward)}-{name}-{spec.config.seed}"
    return train_spec(spec, folder, options.output)


def threads_of(writing: Writing) -> int:
    """Return the number of torch's threads on this machine, whose cores its ranks share."""
    from benchmarks.machine import available_cores

    return writing.threads or max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def forecast_spec(spec: RunSpec, writing: Writing) -> int:
    """Say what a run would take, and write nothing; return the exit status. What ``train`` refuses is refused here."""
    spec.check()
    import torch

    from benchmarks.runs.forecast import probe, workload
    from benchmarks.runs.memory import estimate_memory
    from benchmarks.runs.run import check_shown, make_algorithm
    from diffusion_gym.rewards.attended import evaluating

    torch.set_num_threads(threads_of(writing))
    algorithm, work = make_algorithm(spec), workload(spec)
    check_shown(spec, algorithm)
    if spec.config.evaluation.images:
        with evaluating(algorithm.mdp.reward):  # refuses votes without a reward for evaluations
            pass
    print(f"{_taken(spec, algorithm)}\n{estimate_memory(algorithm).describe()}")
    print(f"{work.describe(algorithm.policy.forwards_per_row)}\n{probe(algorithm, spec).describe(work)}")
    print("nothing was trained or written")
    return 0


def train_spec(spec: RunSpec, folder: Path, writing: Writing) -> int:
    """Run a specification with a progress bar; return the exit status. Collective: call on every rank."""
    spec.check()  # before a model is loaded, or a folder made
    import torch

    from algorithms.parallel.ranks import current_ranks
    from benchmarks.runs.folder import CHECKPOINT
    from benchmarks.runs.progress import ProgressBar
    from benchmarks.runs.run import run
    from benchmarks.runs.stopping import StopSignal, status_of

    torch.set_num_threads(threads_of(writing))
    ranks = current_ranks()
    say: Say = print if ranks.is_first else lambda text: None
    per_rank = f" per rank, {ranks.size} ranks" if ranks.size > 1 else ""
    say(
        f"{spec.algorithm} on {one_line(spec.task.model)} toward {one_line(spec.task.reward)}: {spec.total_queries} "
        f"reward queries, {torch.get_num_threads()} threads{per_rank}, folder {folder}"
    )
    checkpoint = folder / CHECKPOINT
    stop = StopSignal("a checkpoint is written after this step, or after the update under way")
    try:
        with ProgressBar(spec.total_queries) as bar, stop:

            def show(progress: "Progress") -> None:
                rewards = {"reward": progress.reward, "eval": progress.evaluation}
                bar.show({spec.algorithm: progress.images}, rewards)

            def begin(algorithm: "DiffusionAlgorithm[Any]") -> None:
                _say_what_begins(spec, algorithm, say, stop)

            alarm: Say = bar.write if ranks.is_first else say
            record = run(spec, folder, writing, on_progress=show, should_stop=stop, on_built=begin, on_alarm=alarm)
    except KeyboardInterrupt as interrupt:
        kept = checkpoint.is_file()
        left = f"the last checkpoint is {checkpoint}" if kept else "there is no checkpoint yet"
        say(f"stopped at once; {left}. The same command {'resumes' if kept else 'starts again'}.")
        return status_of(interrupt)
    if not record.complete:
        say(f"stopped; the checkpoint is {checkpoint}. The same command resumes.")
        return stop.status if stop() else 130  # another rank heard it
    _say_what_came(record, folder, say)
    return 0


def _say_what_begins(spec: RunSpec, algorithm: "DiffusionAlgorithm[Any]", say: Say, stop: Callable[[], bool]) -> None:
    """Print the recommended settings, the memory, where the run resumes, and a faster chunk size if there is one."""
    from benchmarks.runs.chunk_sizes import advice, time_chunks
    from benchmarks.runs.forecast import is_cheap, probe, workload
    from benchmarks.runs.memory import estimate_memory

    estimate = estimate_memory(algorithm)
    say(f"{_taken(spec, algorithm)}\n{estimate.describe()}")
    done = round(algorithm.costs["reward_queries"])
    if done:
        say(f"resuming after {done} of {spec.total_queries} reward queries")
    if stop():
        return
    work = workload(spec)
    say(work.describe(algorithm.policy.forwards_per_row))
    if is_cheap(algorithm, work):
        say(probe(algorithm, spec).describe(work))
    rows_left = round((spec.total_queries - done) * algorithm.policy.num_inference_steps)
    faster = advice(time_chunks(algorithm, estimate, rows_left), algorithm.policy.chunk_size)
    if faster is not None:
        say(faster)


def _taken(spec: RunSpec, algorithm: "DiffusionAlgorithm[Any]") -> str:
    """Return a line with those of the model's recommended settings that the run has."""
    found = algorithm.policy.model.recommended
    advised = {"num_inference_steps": found.num_inference_steps, **found.settings(spec.algorithm)}
    has = {**field_values(spec.config), "num_inference_steps": spec.task.num_inference_steps}
    shown = {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in advised.items()}
    taken = [f"{name} {shown[name]}" for name, value in advised.items() if name in has and has[name] == value]
    return f"taken from what {spec.task.model} recommends: {', '.join(taken) or 'nothing'}"


def _say_what_came(record: "Run", folder: Path, say: Say) -> None:
    """Print how a run ended, and where its weights and pictures are."""
    from benchmarks.runs.folder import BEST

    best, pipeline = record.best, folder / "pipeline"
    if record.stopped_early is not None:
        say(f"stopped early: {record.stopped_early}.")
    if best is not None:
        say(f"best {best['metric']}, {best['value']:.6g}, at iteration {best['iteration']}: {folder / BEST}")
    say(f"done: {folder} (weights for diffusers: {pipeline if pipeline.is_dir() else folder})")
    say(f"look at it: {command('report', folder)}")


def defaults(name: str, model: str = DEFAULT_MODEL) -> Train[AlgorithmConfig]:
    """Return ``train``'s defaults: what the model recommends, the rest as in the registry, and evaluations."""
    config = recommended(ALGORITHMS[name].config, name, model)
    if config.evaluation == EvaluationConfig():
        every = max(1, _QUERIES_PER_EVALUATION // config.images_per_iteration)
        config = replace(config, evaluation=EvaluationConfig(_EVALUATION_IMAGES, _PER_PROMPT, every))
    task = TaskConfig(model, num_inference_steps=recommends(model).num_inference_steps)
    return Train(algorithm=config, task=task)


SUBCOMMANDS = tuple(
    Annotated[
        Train[type(entry.config)],  # type: ignore[misc]
        tyro.conf.subcommand(name, default=defaults(name), description=entry.summary),
    ]
    for name, entry in ALGORITHMS.items()
)
