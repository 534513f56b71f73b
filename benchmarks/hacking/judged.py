"""Committed runs whose gold is known: where it has fallen, and what each detector says at each evaluation."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.analysis.gold import gold_curve
from benchmarks.analysis.results import read_results
from benchmarks.hacking.detectors import DETECTORS
from benchmarks.hacking.readings import readings_of
from benchmarks.runs.record import Run
from benchmarks.runs.run import read_run

#: A folder of results that only tests the rule: none of its runs tunes or measures a detector.
_TEST_ALONE = "stopped"
#: Evaluations that a run must have to show where something happened.
_EVALUATIONS = 5


@dataclass(frozen=True)
class Judged:
    """A run with its gold.

    Attributes:
        name: TASK/VARIANT/seed-N.
        queries: reward queries at each evaluation, (n,).
        gold: at each evaluation, (n,).
        reward: mean reward at each evaluation, (n,).
        fall: index of the evaluation from which gold has fallen by a tenth of its highest so far; None if it has not.
        scores: detector -> its number at each evaluation, (n,); only of detectors that could be measured.
    """

    name: str
    queries: np.ndarray
    gold: np.ndarray
    reward: np.ndarray
    fall: int | None
    scores: dict[str, np.ndarray]

    @property
    def tunes(self) -> bool:
        """Whether the run is of the half on which thresholds are chosen: by a hash of its name."""
        return zlib.crc32(self.name.encode()) % 2 == 0


def judged(run: Run) -> Judged | None:
    """Return a run with its gold; None without gold, or with too few evaluations for a curve."""
    found = gold_curve(run)
    if found is None or len(run.evaluations) < _EVALUATIONS:
        return None
    readings = readings_of(run)
    scores = {name: np.array(detector.scores(readings)) for name, detector in DETECTORS.items()}
    kept = {name: values for name, values in scores.items() if not np.isnan(values).any()}
    return Judged(run.name, found.queries, found.gold, found.proxy, found.fall, kept)


def committed_runs(results: Path) -> list[Judged]:
    """Return the runs with gold and a curve of all results in a folder, each once: some files hold runs of others.

    The runs of the suite ``stopped`` are left out: they test the rule that is chosen on these.
    """
    runs: list[Run] = []
    for file in sorted(results.glob("*/results.json")):
        runs += [] if file.parent.name == _TEST_ALONE else read_results(file).runs
    for file in sorted(results.glob("*/*/run.json")):
        runs.append(read_run(file.parent))
    once = {(str(run.spec.to_json()), run.evaluations[-1].mean_reward): run for run in runs if run.evaluations}
    found = (judged(run) for run in once.values())
    return [one for one in found if one is not None]


def halves(runs: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """Return the runs on which thresholds are chosen, and those that are held out."""
    return [run for run in runs if run.tunes], [run for run in runs if not run.tunes]
