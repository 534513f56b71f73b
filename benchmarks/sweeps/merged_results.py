"""A comparison's results file, kept run by run: runs of other days and machines are taken over, none is lost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.analysis.curves import check_one_comparison, check_one_setting
from benchmarks.analysis.results import Results, read_results, write_results
from benchmarks.provenance import provenance
from benchmarks.runs.record import Run
from benchmarks.runs.resuming import differences
from benchmarks.runs.run import read_run
from benchmarks.runs.spec import RunSpec
from benchmarks.sweeps.sweep import is_complete

RESULTS = "results.json"


def holds_results(folder: Path) -> bool:
    """Return whether a folder holds a comparison or a search: results, or runs that were begun."""
    return (folder / RESULTS).is_file() or any(folder.glob("*/*/*/run.json"))


class Ledger:
    """The runs of a plan: those that are made here, and those that results files hold already.

    The first file is ``folder/results.json``. A complete run of any of them is taken over where its settings are those
    of the plan. What the files that are written hold beyond the plan stays, so that a suite can be made in parts; a
    complete run of theirs that writing would drop is refused before anything runs.
    """

    def __init__(
        self, plan: Mapping[str, RunSpec], folder: Path, also_written: Sequence[Path] = (), read: Sequence[Path] = ()
    ) -> None:
        """Read the files that exist.

        Args:
            plan: TASK/VARIANT/seed-N -> run.
            folder: where the runs' folders lie.
            also_written: further results files that :meth:`write` keeps.
            read: results files that are only read.

        Raises:
            ValueError: a damaged file, one whose runs of a task and variant have other settings than the plan's, or one
                that is written and holds a run of the plan's name with other settings.
        """
        self._plan, self._folder = plan, folder
        self._written = [folder / RESULTS, *also_written]
        held_in = {file: _runs_in(file) for file in self._written}
        self._check_none_is_lost(held_in)
        held = [run for runs in held_in.values() for run in runs]
        known = {run.spec: run for run in [*held, *(run for file in read for run in _runs_in(file))]}
        missing = {name: spec for name, spec in plan.items() if not is_complete(spec, folder / name)}
        #: Name -> run, of those whose folders are not here.
        self.taken_over: dict[str, Run] = {}
        for name, spec in missing.items():
            found = known.get(spec)
            if found is not None:
                self.taken_over[name] = found.renamed(name)
        first = {spec: name for name, spec in reversed(list(plan.items()))}
        #: Name -> run, of those that are made here, complete or not; a run that is asked for twice is made once.
        self.own = {name: spec for name, spec in plan.items() if name not in self.taken_over and name == first[spec]}
        self._made_as = {name: first[spec] for name, spec in plan.items() if name not in self.taken_over}
        self._beyond = {run.name: run for run in held if run.name not in plan}
        self._check_settings()

    def write(self, failures: Mapping[str, str] | None = None) -> Results:
        """Write what is complete so far, ordered by seed; returns it.

        Args:
            failures: name -> error text of runs that failed; their last lines are kept.
        """
        runs: dict[str, Run] = {**self._beyond, **self.taken_over}
        for name, made_as in self._made_as.items():
            if is_complete(self._plan[name], self._folder / made_as):
                runs[name] = read_run(self._folder / made_as, self._folder).renamed(name)
        order = {name.rpartition("/")[0]: index for index, name in enumerate(self._plan)}
        ordered = sorted(runs, key=lambda name: (runs[name].seed, order.get(name.rpartition("/")[0], -1)))
        failed = {name: error.splitlines()[-1] for name, error in (failures or {}).items()}
        results = Results([runs[name] for name in ordered], provenance(), failed)
        for file in self._written:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_results(results, file)
        return results

    def _check_none_is_lost(self, held_in: Mapping[Path, Sequence[Run]]) -> None:
        """Refuse held runs whose name another run will have in the files: the plan's, or one that is held as well."""
        planned = dict(self._plan)
        kept = set(planned.values())  # one that the plan has under another name is not lost
        beyond: dict[str, tuple[RunSpec, Path]] = {}
        for file, runs in held_in.items():
            lost: dict[str, str] = {}  # name -> what differs
            for run in runs:
                name, key = run.name, run.spec
                wanted, whose = planned.get(name), "asked for"
                if wanted is None:
                    wanted, first = beyond.setdefault(name, (key, file))
                    whose = f"in {str(first)!r}"
                if key != wanted and key not in kept:
                    lost[name] = differences(key.to_json(), wanted.to_json(), whose)
            if lost:
                name, different = next(iter(lost.items()))
                more = f", and {len(lost) - 1} more such run(s)" if len(lost) > 1 else ""
                raise ValueError(
                    f"{str(file)!r} holds {name} with other settings ({different}){more}, and would lose it when it is "
                    "written. Name other files with --folder and --results; or, if these runs are to be replaced, move "
                    "this file away or delete it."
                )

    def _check_settings(self) -> None:
        """Refuse, before anything runs, what could not be put together in one curve, or compared, at the end."""
        by_variant: dict[tuple[str, str], list[RunSpec]] = {}
        by_task: dict[str, list[tuple[str, RunSpec]]] = {}
        for name, spec in [*self._plan.items(), *((run.name, run.spec) for run in self._beyond.values())]:
            task, variant, _ = name.split("/")
            by_variant.setdefault((task, variant), []).append(spec)
            by_task.setdefault(task, []).append((variant, spec))
        for (task, variant), specs in by_variant.items():
            check_one_setting(task, variant, specs)
        for task, found in by_task.items():
            check_one_comparison(task, found)


def _runs_in(file: Path) -> list[Run]:
    return [run for run in read_results(file).runs if run.complete] if file.is_file() else []
