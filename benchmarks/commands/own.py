"""``compare FILE``: a user's own algorithms on a suite's tasks, beside the suite's at equal forwards."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from algorithms import ALGORITHMS, check_algorithm
from algorithms.checkpoints.published import check_replaceable, published, write_atomically
from algorithms.own import OwnFile, load_algorithms
from benchmarks.analysis.leaderboard import Leaderboard, board_table, leaderboard, notes, overall_table
from benchmarks.analysis.notes import failure_note
from benchmarks.analysis.results import Results, read_results
from benchmarks.analysis.table import joined
from benchmarks.commands.compare import Compare, run_missing, say_what_runs_take
from benchmarks.docs_tables.results import committed_results
from benchmarks.provenance import provenance
from benchmarks.report.page import PAGE, write_report
from benchmarks.report.source import Source
from benchmarks.runs.ownership import claimed
from benchmarks.runs.record import Run
from benchmarks.runs.spec import RunSpec
from benchmarks.suite import SUITES
from benchmarks.sweeps.merged_results import Ledger, holds_results
from benchmarks.sweeps.sweep import is_complete
from diffusion_gym.naming import file_name

_DATA, _TEXT = "leaderboard.json", "leaderboard.md"


def compare_own(options: Compare) -> int:
    """Run the files' algorithms, then print the leaderboard and write it and the report; returns the exit status."""
    stems = "-".join(file_name(path.stem) for path in options.files)
    folder = options.folder or Path("runs") / f"{options.suite_name}-{stems}{'-quick' if options.quick else ''}"
    own = options.plan()
    rows = suite_rows(options)
    plan = {**own, **_beside(options, own, rows)}
    print(_said_of(rows, options))
    if options.dry_run:
        return say_what_runs_take(options, plan)
    with claimed(folder, holds_results, "comparison"):
        return _compare(options, plan, rows, folder)


def _compare(options: Compare, plan: Mapping[str, RunSpec], rows: Sequence[Run], folder: Path) -> int:
    check_replaceable(folder, (PAGE, _TEXT, _DATA))
    files = [load_algorithms(path) for path in options.files]
    names = [name for file in files for name in file.names]
    for file in files:
        _check_unchanged(file, folder)
    sweep = Ledger(plan, folder)
    if options.check:
        todo = {spec.algorithm for name, spec in sweep.own.items() if not is_complete(spec, folder / name)}
        for name in (name for name in names if name in todo):
            _check(name)
    sweep.write()  # from here on the folder is a comparison's
    for file in files:
        write_atomically(_kept(file, folder), file.path.read_bytes())
    started = time.perf_counter()
    results = run_missing(options, plan, folder, sweep)
    here = {(run.task, run.variant) for run in results.runs}
    tasks = {run.task for run in results.runs}
    beside = [run for run in rows if run.task in tasks and (run.task, run.variant) not in here]
    together = replace(results, runs=[*results.runs, *beside])
    found = leaderboard(together.runs, names)
    if not found.boards:
        return 1
    report = write_report(Source(folder, together), found)
    text = leaderboard_text(found, results)
    with published(folder) as fresh:
        (fresh / _TEXT).write_text(text, encoding="utf-8")
        (fresh / _DATA).write_text(json.dumps(_data(found, options), indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}")
    print(f"took {(time.perf_counter() - started) / 60:.1f} minutes; report: {report}; numbers: {folder / _DATA}")
    return 1 if results.failures else 0


def suite_rows(options: Compare) -> list[Run]:
    """Return the complete runs of the suite's algorithms that results files hold; say how many are left out.

    The files are those that are named, or else those that a clone of the repository keeps for the suite. Where two have
    a run, the first counts. Runs with other settings than the suite's are left out.

    Raises:
        ValueError: a file that is named is missing, or one is damaged.
    """
    suite, files = SUITES[options.suite_name], options.results or committed_results(options.suite_name)
    runs = {run.name: run for file in reversed(files) for run in read_results(file).runs if run.complete}
    known, seeds = [*suite.variants, *suite.on_request], sorted({run.seed for run in runs.values()})
    plan = suite.plan(list(suite.comparisons), known, seeds)
    rows = [run for name, run in runs.items() if plan.get(name) == run.spec]
    if len(rows) < len(runs):
        print(
            f"{len(runs) - len(rows)} runs in the results are left out: suite {options.suite_name} has other settings"
        )
    return [run for run in rows if options.algorithms is None or run.variant in options.algorithms]


def _beside(options: Compare, own: Mapping[str, RunSpec], rows: Sequence[Run]) -> dict[str, RunSpec]:
    """Return the runs of the suite's algorithms that are named and have no row: on the terms of the files' own."""
    suite, found = SUITES[options.suite_name], dict[str, RunSpec]()
    there = {(run.task, run.variant) for run in rows}
    for name, spec in own.items():
        task = name.split("/")[0]
        missing = [variant for variant in options.algorithms or () if (task, variant) not in there]
        found |= suite.plan([task], missing, [spec.config.seed], spec.reward_queries)
    return found


def _said_of(rows: Sequence[Run], options: Compare) -> str:
    """Say where the rows beside the files' own come from."""
    if rows:
        seeds = len({run.seed for run in rows})
        names = ", ".join(dict.fromkeys(run.variant for run in rows))
        return f"beside them from results that are kept, up to {seeds} seed{'s' * (seeds > 1)}: {names}"
    if options.algorithms:
        return f"beside them, run now: {', '.join(options.algorithms)}"
    suite = options.suite_name
    return (
        f"no results of suite {suite} are kept here (a clone has some in docs/results), so the leaderboard has your "
        f"own rows alone. To run others beside them: --algorithms {' '.join(SUITES[suite].variants[:2])}; or name "
        "their results: --results PATH."
    )


def _check(name: str) -> None:
    """Check an algorithm in seconds.

    Raises:
        ValueError: it does not keep what every algorithm promises, or refuses the check's small settings.
    """
    cls = ALGORITHMS[name].cls.__name__
    try:
        check_algorithm(name)
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name} does not pass check_algorithm, so its row may mislead. {error}\nIn Python: "
            f"check_algorithm({cls}), which also takes other settings; --no-check leaves the check out."
        ) from error


def _check_unchanged(file: OwnFile, folder: Path) -> None:
    """Refuse a folder whose runs were made by another version of the file."""
    kept = _kept(file, folder)
    has_runs = any(True for name in file.names for _ in folder.glob(f"*/{name}/seed-*/run.json"))
    if has_runs and kept.is_file() and kept.read_bytes() != file.path.read_bytes():
        raise ValueError(
            f"{str(file.path)!r} has changed since its runs in {str(folder)!r} were made (by {str(kept)!r}). Name "
            f"another --folder, or delete {str(folder)!r} to make them again."
        )


def _kept(file: OwnFile, folder: Path) -> Path:
    """Return where a file is kept beside the runs that it made."""
    return folder / f"{file.names[0]}.py"


def leaderboard_text(found: Leaderboard, results: Results) -> str:
    """Return the leaderboard as Markdown."""
    several = overall_table(found) if len(found.boards) > 1 and found.overall else None
    return joined(several, board_table(found), notes(found), failure_note(results)) + "\n"


def _data(found: Leaderboard, options: Compare) -> dict[str, object]:
    return {"suite": options.suite_name, "provenance": provenance(), **found.to_json()}
