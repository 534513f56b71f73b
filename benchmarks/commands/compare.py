"""``compare``: a suite's runs with equal reward queries from one start; table and report.

With a file of the user's, its algorithms beside the suite's at equal forwards (``own``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from algorithms import ALGORITHMS
from benchmarks.runs.spec import RunSpec, check_names
from benchmarks.suite import SUITES

if TYPE_CHECKING:
    from benchmarks.analysis.results import Results
    from benchmarks.sweeps.merged_results import Ledger
    from benchmarks.sweeps.sweep import Pool


def _option(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


_TABLE = "table.md"
_DEFAULT_FOLDERS = {"default": Path("runs/compare"), "quick": Path("runs/compare-quick")}


@dataclass(frozen=True)
class Compare:
    """Compare algorithms on a suite of tasks: equal reward queries, the same start, fixed evaluation noise.

    A suite's tasks name their models. To compare on another one, train each algorithm on it (train ALGORITHM --model
    MODEL --folder FOLDER/TASK/ALGORITHM/seed-0), and then report FOLDER.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, _option("[FILE.py ...]", "none")] = ()
    """Python files with algorithms of your own. They run on the suite's tasks, and a leaderboard at equal forwards puts
    them beside the suite's algorithms, whose results are read where they are kept (docs/your-own-algorithm.md)."""
    suite: Annotated[
        Literal[
            "default",
            "quick",
            "composition",
            "follow",
            "jpeg",
            "exact",
            "learned-rewards",
            "paper",
            "paper-claims",
            "modern",
            "presets",
            "ladder",
            "hacking",
            "stopped",
            "leash",
            "baseline",
            "paper-sd",
        ],
        tyro.conf.arg(help="What is run: " + "; ".join(f"{name}: {suite.summary}" for name, suite in SUITES.items())),
    ] = "default"
    """What is run."""
    reward_queries: Annotated[int | None, _option("INT", "the task's own")] = None
    """Reward queries of each run."""
    seeds: Annotated[tuple[int, ...] | None, _option("INT ...", "the suite's")] = None
    """One run per seed; with several, intervals are over seeds."""
    tasks: Annotated[tuple[str, ...] | None, _option("NAME ...", "the suite's")] = None
    """Some of the suite's tasks."""
    algorithms: Annotated[tuple[str, ...] | None, _option("NAME ...", "the suite's")] = None
    """Some of what the suite compares; default, quick and jpeg also know sb3-ppo."""
    folder: Annotated[Path | None, _option("PATH", "runs/SUITE; runs/compare for default")] = None
    """Where runs and report are written. The same command resumes stopped runs and skips complete ones."""
    results: Annotated[tuple[Path, ...], _option("PATH ...", "FOLDER/results.json alone")] = ()
    """Results files of other days or machines: their complete runs with the same settings are taken over. The first is
    also written, after every run. With FILE.py they are only read, for the rows beside yours, in place of
    docs/results."""
    processes: int = 0
    """Runs at the same time. 0 is as many as cores and memory allow (1.5 GB per run), or one per visible GPU if the
    task runs on GPUs; with a larger number, runs share the GPUs."""
    threads: int = 1
    """Torch threads of each run. On the CPU the same number gives the same results bit for bit."""
    ray_address: Annotated[str | None, _option("ADDRESS", "local processes")] = None
    """Run on a Ray cluster, one task per run: its head's HOST:PORT, auto, or local to start one here (extra: ray)."""
    dry_run: bool = False
    """Only check and list every configuration, and say what the runs would take: passes, reward calls, memory, time."""
    quick: bool = False
    """The same as --suite quick; with FILE.py, on any suite: its first seed, and a quarter of each task's reward
    queries."""
    check: bool = True
    """Check the algorithms of FILE.py with check_algorithm before they run, in seconds; whether they report all of
    their forwards, for example."""

    def __post_init__(self) -> None:
        """Refuse unknown names before anything is loaded."""
        if self.quick and not self.files and self.suite not in ("default", "quick"):
            raise ValueError(f"--quick is --suite quick; leave out --quick or --suite {self.suite}.")
        if not self.check and not self.files:
            raise ValueError("--no-check leaves out the check of your own algorithms; name their file, too.")
        suite = SUITES[self.suite_name]
        check_names("task", self.tasks if self.tasks is not None else suite.comparisons, suite.comparisons)
        known = [*suite.variants, *suite.on_request]
        check_names("algorithm", self.algorithms if self.algorithms is not None else suite.variants, known)
        seeds = suite.seeds if self.seeds is None else self.seeds
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be different integers of at least 0, got {seeds}.")
        if (self.reward_queries is not None and self.reward_queries < 1) or self.processes < 0 or self.threads < 1:
            raise ValueError(
                f"expected reward_queries >= 1, processes >= 0 and threads >= 1, got {self.reward_queries}, "
                f"{self.processes}, {self.threads}."
            )
        if self.suite_name == "quick" and self.reward_queries is not None:
            raise ValueError("--quick has its own number of reward queries; leave out --quick or --reward-queries.")
        if not self.plan():
            raise ValueError(f"none of {self.algorithms} is compared on any of {self.tasks}.")

    @property
    def suite_name(self) -> str:
        """The suite, also with --quick."""
        return "quick" if self.quick and not self.files else self.suite

    def plan(self) -> dict[str, RunSpec]:
        """Return TASK/VARIANT/seed-N -> run; with files, those of their algorithms alone."""
        suite = SUITES[self.suite_name]
        tasks = list(suite.comparisons) if self.tasks is None else self.tasks
        if self.files:
            from benchmarks.suite.own import own_plan

            return own_plan(suite, self.own_names(), tasks, self.seeds, self.reward_queries, self.quick)
        variants = suite.variants if self.algorithms is None else self.algorithms
        return suite.plan(tasks, variants, self.seeds, self.reward_queries)

    def own_names(self) -> list[str]:
        """Return the names of the files' algorithms, which are registered now."""
        from algorithms.own import load_algorithms

        for path in self.files:
            if not path.is_file() and (str(path) in SUITES or str(path) in ALGORITHMS):
                option = "--suite" if str(path) in SUITES else "--algorithms"
                raise ValueError(f"{str(path)!r} is not a Python file; did you mean {option} {path}?")
        return [name for path in self.files for name in load_algorithms(path).names]


def compare(options: Compare) -> int:
    """Run what is missing, then print the tables and write the report; returns the exit status."""
    if options.files:
        from benchmarks.commands.own import compare_own

        return compare_own(options)
    from benchmarks.runs.ownership import claimed
    from benchmarks.sweeps.merged_results import holds_results

    folder = options.folder or _DEFAULT_FOLDERS.get(options.suite_name, Path("runs") / options.suite_name)
    plan = options.plan()
    if options.dry_run:
        return say_what_runs_take(options, plan)
    with claimed(folder, holds_results, "comparison"):
        return _compare(options, plan, folder)


def say_what_runs_take(options: Compare, plan: Mapping[str, RunSpec]) -> int:
    """Print the dry run of a plan: every configuration, sums, memory and time; return the exit status."""
    from benchmarks.sweeps.dry_run import dry_run, workloads
    from benchmarks.sweeps.local_pool import local_pool
    from benchmarks.sweeps.probed import probed

    for spec in plan.values():
        spec.check()
    works = workloads(plan)
    print(dry_run(plan, works))
    on_ray = options.ray_address is not None  # whose size is not known here: one run after the other
    processes = 1 if on_ray else local_pool(list(plan.values()), options.processes, options.threads).processes
    print(probed(plan, works, processes, options.threads))
    return 0


def _compare(options: Compare, plan: Mapping[str, RunSpec], folder: Path) -> int:
    from algorithms.checkpoints.published import check_replaceable, published
    from benchmarks.report.page import PAGE, write_report
    from benchmarks.report.source import Source
    from benchmarks.sweeps.merged_results import Ledger

    check_replaceable(folder, (PAGE, _TABLE))  # now, rather than a failure at the end
    started = time.perf_counter()
    results = run_missing(options, plan, folder, Ledger(plan, folder, options.results[:1], options.results[1:]))
    if not results.runs:
        return 1
    report = write_report(Source(folder, results))
    text = summary_text(results)
    with published(folder) as fresh:
        (fresh / _TABLE).write_text(text, encoding="utf-8")
    print(f"\n{text}")
    print(f"took {(time.perf_counter() - started) / 60:.1f} minutes; report: {report}")
    return 1 if results.failures else 0


def run_missing(options: Compare, plan: Mapping[str, RunSpec], folder: Path, sweep: Ledger) -> Results:
    """Run what is not complete; print what is run and what fails, and return all results."""
    from benchmarks.runs.resuming import check_same
    from benchmarks.sweeps.dry_run import costs, workloads
    from benchmarks.sweeps.local_pool import LocalPool
    from benchmarks.sweeps.probed import is_probed_first, probed
    from benchmarks.sweeps.sweep import is_complete, run_all

    for name, spec in plan.items():  # now, rather than as many failures at the end
        spec.check()
        check_same(spec, folder / name)
    todo = {name: spec for name, spec in sweep.own.items() if not is_complete(spec, folder / name)}
    pool, where = _pool(options, list(todo.values()), folder)
    works = workloads(plan)
    print(f"{costs(plan, works)}; {where}")
    if isinstance(pool, LocalPool) and is_probed_first(todo, works):
        print(probed(todo, works, pool.processes, options.threads), flush=True)
    if sweep.taken_over:
        print(f"{len(sweep.taken_over)} of them taken over from results of another day or machine")
    failures = run_all(sweep.own, folder, pool, lambda name: sweep.write())
    for name, error in failures.items():
        print(f"\nrun {name} failed:\n{error}")
    return sweep.write(failures)


def summary_text(results: Results) -> str:
    """Return the tables that are printed at the end, as Markdown."""
    from benchmarks.analysis import notes, tables
    from benchmarks.analysis.aggregate import aggregate, improvements
    from benchmarks.analysis.curves import curves
    from benchmarks.analysis.table import joined

    summary = curves(results.runs)
    found, pairs = aggregate(summary), improvements(summary)
    parts = [
        tables.result_table(summary),
        notes.interval_note(summary),
        tables.judge_table(summary),
        notes.judge_note(summary),
        tables.held_out_table(summary),
        tables.improvement_table(pairs, summary),
        notes.shared_note(summary) if pairs else None,
        *((tables.score_table(found, summary), notes.score_note(found)) if found and len(found.tasks) > 1 else ()),
        notes.failure_note(results),
    ]
    return joined(*parts) + "\n"


def _pool(options: Compare, todo: Sequence[RunSpec], folder: Path) -> tuple[Pool, str]:
    from benchmarks.sweeps.local_pool import local_pool
    from benchmarks.sweeps.ray_pool import RayPool

    threads = options.threads
    if options.ray_address is not None:
        pool = RayPool(options.ray_address, threads, folder, todo)
        return pool, f"on Ray at {options.ray_address}, {threads} CPU(s) each"
    here = local_pool(todo, options.processes, threads)
    on_gpus = f", one of the GPUs {', '.join(here.gpus)} each" if here.gpus else ""
    return here, f"{here.processes} at a time, {threads} thread(s) each{on_gpus}"
