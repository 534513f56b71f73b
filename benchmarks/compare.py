"""``compare``: the algorithms on the suite's tasks, from one start, with equal reward queries; table and report."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from algorithms import ALGORITHMS
from algorithms.checkpoint import write_atomically
from benchmarks.pool import run_all
from benchmarks.provenance import available_cores
from benchmarks.report import Source, write_report
from benchmarks.results import collect_results, curves, interval_note, table, write_results
from benchmarks.runs import check_same, read_run
from benchmarks.settings import check_names
from benchmarks.suite import COMPARED, SETTINGS, TASKS, quick_spec, run_spec


@dataclass(frozen=True)
class Compare:
    """RWR against DDPO on the embedded model: equal reward queries, one start, fixed evaluation noise."""

    reward_queries: int = 2048
    """Reward queries of each run."""
    seeds: tuple[int, ...] = (0,)
    """One run a seed; with several, intervals are over seeds."""
    tasks: tuple[str, ...] = COMPARED
    """Rewards to tune for; aesthetic, clip_score and vlm_alignment are there too."""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """Algorithms to compare."""
    folder: Annotated[
        Path | None,
        tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/compare, with --quick runs/compare-quick)"),
    ] = None
    """Where runs and report go. The same command goes on where it was stopped, and skips what is complete."""
    processes: int = 0
    """Runs at the same time; 0 takes as many as there are cores."""
    threads: int = 1
    """Torch threads of each run. Results are bit-equal for the same number."""
    quick: bool = False
    """See that everything works: every part runs, on 64 reward queries a run, which is too few to learn much."""

    def __post_init__(self) -> None:
        """Refuse unknown names before anything is loaded."""
        check_names("task", self.tasks, TASKS)
        check_names("algorithm", self.algorithms, SETTINGS)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers of at least 0, got {self.seeds}.")
        if self.reward_queries < 1 or self.processes < 0 or self.threads < 1:
            raise ValueError(
                f"expected reward_queries >= 1, processes >= 0 and threads >= 1, got {self.reward_queries}, "
                f"{self.processes}, {self.threads}."
            )
        if self.quick and self.reward_queries != type(self).reward_queries:
            raise ValueError("--quick has its own number of reward queries; leave out --quick or --reward-queries.")


def compare(options: Compare) -> int:
    """Run what is missing, then print the table and write the report; returns the exit status."""
    folder = options.folder or Path("runs/compare-quick" if options.quick else "runs/compare")
    specs = {
        f"{task}/{algorithm}/seed-{seed}": (
            quick_spec(task, algorithm, seed)
            if options.quick
            else run_spec(task, algorithm, seed, options.reward_queries)
        )
        for seed in options.seeds
        for task in options.tasks
        for algorithm in options.algorithms
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in specs.items():
        check_same(spec, folder / name)  # now, rather than as many failures at the end
    queries = next(iter(specs.values())).reward_queries
    processes = options.processes or max(1, available_cores() // options.threads)
    print(f"{len(specs)} runs of {queries} reward queries, {processes} at a time, {options.threads} thread(s) each")
    started = time.perf_counter()
    failures = run_all(specs, folder, processes, options.threads)
    for name, error in failures.items():
        print(f"\nrun {name} failed:\n{error}")
    records = [read_run(folder / name) for name in specs if name not in failures]
    if not records:
        return 1
    results = collect_results(records, folder)
    write_results(results, folder / "results.json")
    report = write_report(Source(folder, results, []))
    summary = curves(results)
    text = f"{table(summary)}\n\n{interval_note(summary)}\n"
    write_atomically(folder / "table.md", text.encode())
    print(f"\n{text}")
    print(f"took {(time.perf_counter() - started) / 60:.1f} minutes; report: {report}")
    return 1 if failures else 0
