"""What ``--stop-when-hacked`` kept in new trainings: each stopped run beside the plain run of its seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.analysis.gold import GoldCurve, gold_curve
from benchmarks.analysis.statistics import Interval, over_seeds
from benchmarks.analysis.table import Cell, Column, Name, Table, bracketed
from benchmarks.analysis.units import Unit, unit_of_reward
from benchmarks.runs.record import Run
from benchmarks.suite.hacking import STOPPED


@dataclass(frozen=True)
class StoppedRun:
    """A run with ``--stop-when-hacked`` beside the plain run with its seed.

    Attributes:
        early: whether it ended before its budget.
        ended: reward queries at its last evaluation.
        exported: index of the evaluation of the weights that it exported, in its own curve.
        own, plain: gold and reward of the two.
        unit: of the reward.
    """

    early: bool
    ended: float
    exported: int
    own: GoldCurve
    plain: GoldCurve
    unit: Unit


def stopped_runs(runs: Sequence[Run]) -> dict[tuple[str, str], list[StoppedRun]]:
    """Return (task, plain variant) -> its pairs of runs, one per seed; runs that are not complete are left out."""
    known = {run.name: run for run in runs if run.complete}
    found: dict[tuple[str, str], list[StoppedRun]] = {}
    for run in known.values():
        variant = run.variant.removesuffix(STOPPED)
        plain = known.get(f"{run.task}/{variant}/seed-{run.seed}")
        if variant != run.variant and plain is not None:
            found.setdefault((run.task, variant), []).append(_pair(run, plain))
    return found


def _pair(run: Run, plain: Run) -> StoppedRun:
    own, other = gold_curve(run), gold_curve(plain)
    if own is None or other is None:
        raise ValueError(f"{run.name} has no gold; expected a run of the suite stopped, which measures recognised.")
    early, last = run.stopped_early is not None, len(run.evaluations) - 1
    exported = last if not early or run.best is None else _place(run, run.best["iteration"])
    return StoppedRun(early, float(own.queries[-1]), exported, own, other, unit_of_reward(run.spec.task.reward))


def _place(run: Run, iteration: int) -> int:
    return next(at for at, line in enumerate(run.evaluations) if line.iteration == iteration)


#: Title -> the number of a pair that a column shows, the same over seeds; and how it is shown.
_QUERIES: Mapping[str, Callable[[StoppedRun], float]] = {
    "stopped at queries": lambda pair: pair.ended,
    "exported weights, at queries": lambda pair: float(pair.own.queries[pair.exported]),
}
_GOLD: Mapping[str, Callable[[StoppedRun], float]] = {
    "gold, exported weights": lambda pair: float(pair.own.gold[pair.exported]),
    "highest, plain run": lambda pair: float(pair.plain.gold.max()),
    "end, plain run": lambda pair: float(pair.plain.gold[-1]),
}
_REWARD: Mapping[str, Callable[[StoppedRun], float]] = {
    "reward, exported weights": lambda pair: float(pair.own.proxy[pair.exported]),
    "reward, end of the plain run": lambda pair: float(pair.plain.proxy[-1]),
}


def stopped_table(runs: Sequence[Run]) -> Table | None:
    """Return what stopped runs exported, and what the plain runs of their seeds had; None if there are no pairs."""
    rows: list[list[Cell]] = []
    for (task, variant), pairs in stopped_runs(runs).items():
        queries = [[f"{_over(pairs, of).estimate:,.0f}"] for of in _QUERIES.values()]
        gold = [_shown(_over(pairs, of)) for of in _GOLD.values()]
        reward = [_shown(pairs[0].unit.of(_over(pairs, of))) for of in _REWARD.values()]
        stopped = f"{sum(pair.early for pair in pairs)} of {len(pairs)}"
        rows.append([[task], [Name(variant)], [stopped], *queries, *gold, *reward])
    columns = [Column("task", is_text=True), Column("algorithm", is_text=True)]
    return Table([*columns, *map(Column, ("runs stopped", *_QUERIES, *_GOLD, *_REWARD))], rows) if rows else None


def _over(pairs: Sequence[StoppedRun], of: Callable[[StoppedRun], float]) -> Interval:
    return over_seeds([[of(pair) for pair in pairs]])[0]


def _shown(value: Interval) -> Cell:
    return [f"{value.estimate:.2f}", bracketed(value)]
