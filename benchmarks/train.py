"""``train``: one run with a progress bar; Ctrl-C leaves a checkpoint, and the same command resumes."""

import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import tyro
from tqdm import tqdm

from algorithms import ALGORITHMS, AlgorithmConfig
from benchmarks.provenance import available_cores
from benchmarks.runs import Progress, run
from benchmarks.settings import RunSpec, TaskConfig

Config = TypeVar("Config", bound=AlgorithmConfig)


@dataclass(frozen=True)
class Output:
    """Where a run writes, and how much of the machine it takes."""

    folder: Path | None = None
    """The run's folder; by default runs/REWARD-ALGORITHM-SEED. An interrupted run there is resumed."""
    reward_queries: int = 2048
    """Images to sample and reward in all, rounded up to whole iterations."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    threads: int = 0
    """Torch threads; 0 takes all cores. Results are bit-equal for the same number."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the package tensorboard)."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if self.checkpoint_every < 1 or self.threads < 0:
            raise ValueError(
                f"expected checkpoint_every >= 1 and threads >= 0, got {self.checkpoint_every} and {self.threads}."
            )


@dataclass(frozen=True)
class Train(Generic[Config]):
    """Tune a model toward a reward."""

    algorithm: Annotated[Config, tyro.conf.arg(name="")]
    task: Annotated[TaskConfig, tyro.conf.arg(name="")] = field(default_factory=TaskConfig)
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)


def train(name: str, options: Train[AlgorithmConfig]) -> int:
    """Run; returns the exit status (130 after Ctrl-C)."""
    spec = RunSpec(name, options.algorithm, options.task, options.output.reward_queries)
    folder = options.output.folder or Path("runs") / f"{_file_name(spec.task.reward)}-{name}-{spec.config.seed}"
    torch.set_num_threads(options.output.threads or available_cores())
    print(f"{name} on {spec.task.model} toward {spec.task.reward}: {spec.total_queries} reward queries, ", end="")
    print(f"{torch.get_num_threads()} threads, folder {folder}")
    with _Bar() as bar:
        record = run(
            spec,
            folder,
            on_progress=bar.show,
            should_stop=_StopSignal(),
            checkpoint_every=options.output.checkpoint_every,
            tensorboard=options.output.tensorboard,
        )
    if not record.complete:
        print(f"stopped; the checkpoint is {folder / 'checkpoint.zip'}. The same command resumes.")
        return 130
    kind = "LoRA" if spec.config.policy.trainable == "lora" else "pipeline"
    print(f"done: {folder} (weights for diffusers: {folder if kind == 'LoRA' else folder / 'pipeline'})")
    return 0


def _file_name(reward: str) -> str:
    """Return a reward's text as part of a folder's name: ``a:0.5,b`` as ``a-0.5+b``."""
    return re.sub(r"[^\w.+=-]+", "-", reward.replace(",", "+")).strip("-.")


class _Bar:
    """A progress bar that appears with the first progress, so that an error on the way there stands alone."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        """Draw the bar with the latest rewards."""
        if self._bar is None:
            start = int(progress.queries)
            total = progress.total_queries
            self._bar = tqdm(total=total, initial=start, unit="img", smoothing=0.05, dynamic_ncols=True)
        self._bar.n = int(progress.queries)
        values = {"reward": progress.reward, "eval": progress.evaluation}
        shown = {key: f"{value:.3f}" for key, value in values.items() if value is not None}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(0)


class _StopSignal:
    """True once the user pressed Ctrl-C; a second Ctrl-C ends the process at once, the last checkpoint stays."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True
        print("\nstopping after this step (Ctrl-C again: at once) ...", flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __call__(self) -> bool:
        return self._asked


SUBCOMMANDS = tuple(
    Annotated[
        Train[type(entry.config)],  # type: ignore[misc]
        tyro.conf.subcommand(name, default=Train(algorithm=entry.config), description=entry.summary),
    ]
    for name, entry in ALGORITHMS.items()
)
