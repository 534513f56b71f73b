"""``search``: the hyperparameter search behind the suite's settings; equal effort for every algorithm, own seeds."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from algorithms import ALGORITHMS
from algorithms.config import override
from benchmarks.pool import run_all
from benchmarks.provenance import available_cores
from benchmarks.results import collect_results, write_results
from benchmarks.runs import RunRecord, read_run
from benchmarks.settings import RunSpec, check_names
from benchmarks.suite import COMPARED, TASKS, run_spec

#: Three configurations an algorithm; what they do not name is as in suite.SETTINGS. RWR's number of updates goes with
#: the iteration's size, so that all algorithms spend about 40 UNet forward-equivalents an image.
CANDIDATES: dict[str, tuple[dict[str, object], ...]] = {
    "ddpo-is": (
        {"updates_per_iteration": 2, "learning_rate": 2e-3},
        {"updates_per_iteration": 2, "learning_rate": 3e-3},
        {"updates_per_iteration": 4, "learning_rate": 2e-3},
    ),
    "ddpo-sf": (
        {"images_per_iteration": 64, "learning_rate": 2e-3},
        {"images_per_iteration": 64, "learning_rate": 3e-3},
        {"images_per_iteration": 32, "learning_rate": 2e-3},
    ),
    "rwr": (
        {"images_per_iteration": 256, "updates_per_iteration": 20, "beta": 0.2, "learning_rate": 1e-3},
        {"images_per_iteration": 256, "updates_per_iteration": 20, "beta": 0.1, "learning_rate": 2e-3},
        {"images_per_iteration": 128, "updates_per_iteration": 10, "beta": 0.2, "learning_rate": 1e-3},
    ),
    "sparse-rwr": (
        {"images_per_iteration": 256, "updates_per_iteration": 20, "top_fraction": 0.2, "learning_rate": 1e-3},
        {"images_per_iteration": 256, "updates_per_iteration": 20, "top_fraction": 0.1, "learning_rate": 2e-3},
        {"images_per_iteration": 128, "updates_per_iteration": 10, "top_fraction": 0.1, "learning_rate": 1e-3},
    ),
}


@dataclass(frozen=True)
class Search:
    """Try every candidate of every algorithm on both tasks, and rank them by their mean gain in reward."""

    reward_queries: int = 1024
    """Reward queries of each run."""
    seed: int = 1000
    """A seed that no reported run uses."""
    tasks: tuple[str, ...] = COMPARED
    """Rewards to search on."""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """Algorithms to search for."""
    folder: Path = Path("runs/search")
    """Where runs and results go; the same command goes on where it was stopped."""
    processes: int = 0
    """Runs at the same time; 0 takes as many as there are cores."""

    def __post_init__(self) -> None:
        """Refuse unknown names and impossible numbers before anything is loaded."""
        check_names("task", self.tasks, TASKS)
        check_names("algorithm", self.algorithms, CANDIDATES)
        if self.reward_queries < 1 or self.processes < 0 or self.seed < 0:
            raise ValueError(
                f"expected reward_queries >= 1, processes >= 0 and seed >= 0, got {self.reward_queries}, "
                f"{self.processes}, {self.seed}."
            )


def search(options: Search) -> int:
    """Run all candidates, write ``results.json`` and print each algorithm's candidates, best first."""
    specs = {
        f"{task}/{algorithm}/{index}": _spec(options, task, algorithm, changes)
        for task in options.tasks
        for algorithm in options.algorithms
        for index, changes in enumerate(CANDIDATES[algorithm])
    }
    failures = run_all(specs, options.folder, options.processes or available_cores(), 1)
    records = {name: read_run(options.folder / name) for name in specs if name not in failures}
    write_results(collect_results(list(records.values()), options.folder), options.folder / "results.json")
    for name, error in failures.items():
        print(f"run {name} failed: {error.splitlines()[-1]}")
    for algorithm in options.algorithms:
        print(f"\n{algorithm} (gain in kB, mean and by task; animals recognised; tasks {', '.join(options.tasks)}):")
        rows = []
        for index, changes in enumerate(CANDIDATES[algorithm]):
            ends = [_ends(records.get(f"{task}/{algorithm}/{index}")) for task in options.tasks]
            gains, seen = [gain for gain, _ in ends], [share for _, share in ends]
            text = f"{' '.join(f'{g:+.3f}' for g in gains)}  {' '.join(f'{s:.2f}' for s in seen)}  {changes}"
            rows.append((sum(gains) / len(gains), text))
        for mean, text in sorted(rows, reverse=True):
            print(f"  {mean:+.3f}  {text}")
    return 1 if failures else 0


def _spec(options: Search, task: str, algorithm: str, changes: dict[str, object]) -> RunSpec:
    """Return one candidate's run, evaluated before and after alone."""
    spec = run_spec(task, algorithm, options.seed, options.reward_queries, **changes)
    return dataclasses.replace(spec, config=override(spec.config, images=96, every=10**6))


def _ends(record: RunRecord | None) -> tuple[float, float]:
    """Gain in evaluation reward and the recognised share at the end; a failed run loses everywhere."""
    if record is None:
        return float("-inf"), 0.0
    first, last = record.evaluations[0], record.evaluations[-1]
    gain = sum(last["rewards"]) / len(last["rewards"]) - sum(first["rewards"]) / len(first["rewards"])
    return gain, last["metrics"]["recognised"]
