"""How much less a variant spends to reach the reward that another has after some reward queries, and at what cost.

Both first reach it on their interquartile mean over the seeds, between two evaluations at the point that a line says;
the other variant too, which may be earlier than at those queries. Seeds are resampled, so the reward varies as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.analysis.curves import HELD_OUT, Curve, Curves
from benchmarks.analysis.statistics import Interval, Resamples, interquartile_mean, stratified_bootstrap
from benchmarks.analysis.table import Cell, Column, Name, Table, bracketed


@dataclass(frozen=True)
class Reach:
    """A variant against another at equal reward.

    Attributes:
        reward: to be reached: the other's after the queries.
        fewer_forwards, fewer_queries: how many times less is spent; 0 where the reward is not reached, infinite where
            the variant starts with it, because it samples in another way.
        sure: share of the resamples in which the reward is reached.
        change: metric -> how much higher it is there than the other's at the same reward; at the end if not reached.
    """

    reward: float
    fewer_forwards: Interval
    fewer_queries: Interval
    sure: float
    change: dict[str, Interval]


def reach(curve: Curve, other: Curve, queries: int) -> Reach | None:
    """Compare what two curves of one task spend for the reward that ``other`` has after ``queries`` reward queries.

    Returns:
        None if ``other`` was not evaluated there, or its reward has not risen by then.
    """
    if queries not in other.queries:
        return None
    mark = other.queries.index(queries)
    reward = float(interquartile_mean(other.by_run[:, mark]))
    if reward <= float(interquartile_mean(other.by_run[:, 0])):
        return None
    names = [name for name in curve.metrics_by_run if name in other.metrics_by_run]
    values = [np.stack([one.by_run, *(one.metrics_by_run[name] for name in names)], axis=-1) for one in (curve, other)]

    def statistic(ours: Resamples, theirs: Resamples) -> np.ndarray:
        """Return forwards, queries, whether it is reached, and changes of the metrics: (resamples, 3 + metrics)."""
        mean, reference = (_means(*pair) for pair in zip(values, (ours[0], theirs[0]), strict=True))
        rewards = reference[:, mark, 0]
        place, reached = _first_at(mean[..., 0], rewards)
        before, _ = _first_at(reference[..., 0], rewards)
        ratios = [
            np.where(reached, _ratio_of(_at(cost_of(other), before), _at(cost_of(curve), place)), 0.0)
            for cost_of in (lambda one: one.forwards, lambda one: one.queries)
        ]
        changes = [_along(mean[..., k + 1], place) - _along(reference[..., k + 1], before) for k in range(len(names))]
        return np.stack([*ratios, reached, *changes], axis=1)

    forwards, fewer, sure, *changes = stratified_bootstrap([[np.arange(len(one))] for one in values], statistic)
    return Reach(reward, forwards, fewer, sure.estimate, dict(zip(names, changes, strict=True)))


def _means(values: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Return the interquartile mean over some runs (m, n) of values (runs, evaluations, k): (m, evaluations, k)."""
    found, back = np.unique(np.sort(runs, axis=1), axis=0, return_inverse=True)
    means: np.ndarray = interquartile_mean(values[found], axis=1)[back.ravel()]
    return means


def _ratio_of(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    return np.divide(theirs, ours, out=np.full_like(theirs, np.inf), where=ours > 0)


def _first_at(values: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each row of values (m, evaluations) first reaches its reward (m,), as an index with a fraction.

    A row that never does has its last index. The second array says which rows do.
    """
    hit = values >= rewards[:, None]
    reached = np.asarray(hit.any(axis=1))
    after = np.where(reached, hit.argmax(axis=1), values.shape[1] - 1)
    before = np.maximum(after - 1, 0)
    rows = np.arange(len(values))
    low, high = values[rows, before], values[rows, after]
    share = np.where(high > low, (rewards - low) / np.where(high > low, high - low, 1.0), 0.0)
    return np.where(reached, before + share * (after > 0), after), reached


def _at(costs: list[float], places: np.ndarray) -> np.ndarray:
    return np.interp(places, np.arange(len(costs)), costs)


def _along(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return each row of values (m, evaluations) at its place, between two evaluations in proportion."""
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, values.shape[1] - 1)
    rows = np.arange(len(values))
    return values[rows, low] + (places - low) * (values[rows, high] - values[rows, low])


def reach_table(summary: Curves, other: str, queries: int, metrics: Sequence[str]) -> Table | None:
    """Return each variant against ``other`` on each task that has both, or None if there is none."""
    rows: list[list[Cell]] = []
    for task, by_variant in summary.items():
        for variant, curve in by_variant.items():
            found = reach(curve, by_variant[other], queries) if variant != other and other in by_variant else None
            if found is not None:
                rows.append([[task], [f"{found.reward:.3f}"], [Name(variant)], *_cells(found, metrics)])
    titles = ("forwards, times fewer", "queries, times fewer", *(f"{name}, change" for name in (*metrics, HELD_OUT)))
    columns = [Column("task", is_text=True), Column("reward"), Column("algorithm", is_text=True), *map(Column, titles)]
    return Table(columns, rows) if rows else None


def _ratio(value: Interval) -> str:
    if value.estimate == 0:
        return "not reached"
    return "at its start" if math.isinf(value.estimate) else f"{value.estimate:.1f}{bracketed(value, 1)}"


def _cells(found: Reach, metrics: Sequence[str]) -> list[Cell]:
    ratios: list[Cell] = [[_ratio(value)] for value in (found.fewer_forwards, found.fewer_queries)]
    changes: list[Cell] = []
    for name in (*metrics, HELD_OUT):
        value = found.change.get(name)
        digits = 3 if name == HELD_OUT else 2
        changes.append([] if value is None else [f"{value.estimate:+.{digits}f}{bracketed(value, digits)}"])
    return [*ratios, *changes]
