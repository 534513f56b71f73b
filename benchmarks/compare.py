"""``compare``: the algorithms on the suite's tasks, from one start, with equal reward queries; table and report."""

import time
from dataclasses import dataclass
from pathlib import Path

from algorithms import ALGORITHMS
from algorithms.checkpoint import write_atomically
from benchmarks.pool import run_all
from benchmarks.provenance import available_cores
from benchmarks.report import Source, write_report
from benchmarks.results import collect_results, curves, interval_note, table, write_results
from benchmarks.runs import read_run
from benchmarks.suite import TASKS, run_spec


@dataclass(frozen=True)
class Compare:
    """RWR against DDPO on the embedded model: equal reward queries, one start, fixed evaluation noise."""

    reward_queries: int = 2048
    """Reward queries of each run."""
    seeds: tuple[int, ...] = (0,)
    """One run a seed; with several, intervals are over seeds."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Rewards to tune for."""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """Algorithms to compare."""
    folder: Path = Path("runs/compare")
    """Where runs and report go. The same command goes on where it was stopped, and skips what is complete."""
    processes: int = 0
    """Runs at the same time; 0 takes as many as there are cores."""
    threads: int = 1
    """Torch threads of each run. Results are bit-equal for the same number."""
    quick: bool = False
    """256 reward queries a run, to see that everything works."""

    def __post_init__(self) -> None:
        """Refuse unknown names before anything is loaded."""
        for name, given, known in (("task", self.tasks, TASKS), ("algorithm", self.algorithms, ALGORITHMS)):
            unknown = sorted(set(given) - set(known))
            if unknown or not given:
                raise ValueError(
                    f"unknown {name} {unknown[0] if unknown else '(none)'!r}; expected some of {sorted(known)}."
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers of at least 0, got {self.seeds}.")
        if self.reward_queries < 1 or self.processes < 0 or self.threads < 1:
            raise ValueError(
                f"expected reward_queries >= 1, processes >= 0 and threads >= 1, got {self.reward_queries}, "
                f"{self.processes}, {self.threads}."
            )


def compare(options: Compare) -> int:
    """Run what is missing, then print the table and write the report; returns the exit status."""
    queries = 256 if options.quick else options.reward_queries
    specs = {
        f"{task}/{algorithm}/seed-{seed}": run_spec(task, algorithm, seed, queries)
        for seed in options.seeds
        for task in options.tasks
        for algorithm in options.algorithms
    }
    processes = options.processes or max(1, available_cores() // options.threads)
    print(f"{len(specs)} runs of {queries} reward queries, {processes} at a time, {options.threads} thread(s) each")
    started = time.perf_counter()
    failures = run_all(specs, options.folder, processes, options.threads)
    for name, error in failures.items():
        print(f"\nrun {name} failed:\n{error}")
    records = [read_run(options.folder / name) for name in specs if name not in failures]
    if not records:
        return 1
    results = collect_results(records, options.folder)
    write_results(results, options.folder / "results.json")
    report = write_report(Source(options.folder, results, []))
    summary = curves(results)
    text = f"{table(summary)}\n\n{interval_note(summary)}\n"
    write_atomically(options.folder / "table.md", text.encode())
    print(f"\n{text}")
    print(f"took {(time.perf_counter() - started) / 60:.1f} minutes; report: {report}")
    return 1 if failures else 0
