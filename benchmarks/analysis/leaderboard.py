"""A leaderboard at equal forwards: what each algorithm has reached, and spent, after as many forwards as all have made.

A run's numbers between two of its evaluations are interpolated linearly in its forwards.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.analysis.aggregate import scale_of
from benchmarks.analysis.curves import check_one_setting, terms
from benchmarks.analysis.statistics import Interval, Resamples, over_seeds, stratified_bootstrap
from benchmarks.analysis.table import Cell, Column, Name, Table, bracketed
from benchmarks.runs.gold_judge import kind_of
from benchmarks.runs.record import Evaluation, Run
from diffusion_gym.jsonlines import finite

_FORWARDS = "forward_equivalents"


@dataclass(frozen=True)
class Row:
    """One algorithm on one task, after the task's forwards.

    Attributes:
        algorithm: its name.
        own: whether it is the user's.
        seeds: of its runs.
        reward: interquartile mean over the seeds, with an interval if there are several.
        held_out: the same on prompts that are not trained on; None if there are none.
        scores: of each run, ``(reward - start) / unit`` of the task.
        queries, seconds: reward queries and training seconds until then, mean over the seeds.
        metrics: name -> as ``reward``.
        processors: that made its runs: seconds of different ones say little.
    """

    algorithm: str
    own: bool
    seeds: list[int]
    reward: Interval
    held_out: Interval | None
    scores: list[float]
    queries: float
    seconds: float
    metrics: dict[str, Interval]
    processors: list[str]


@dataclass(frozen=True)
class Board:
    """A task's rows, the highest reward first.

    Attributes:
        task: its name.
        forwards: that all rows are compared after: those of the shortest run.
        shortest: the algorithm of that run.
        start: the untuned model's evaluation reward.
        unit: the largest gain of any row; if none gained, the largest loss.
        rows: of the algorithms.
    """

    task: str
    forwards: float
    shortest: str
    start: float
    unit: float
    rows: list[Row]


@dataclass(frozen=True)
class Overall:
    """An algorithm's mean score over all tasks, with an interval if it has several seeds on each."""

    algorithm: str
    own: bool
    score: Interval


@dataclass(frozen=True)
class Leaderboard:
    """The boards of all tasks, and the algorithms that are on each of them, the highest mean score first."""

    boards: list[Board]
    overall: list[Overall]

    def to_json(self) -> dict[str, Any]:
        """Return the leaderboard as JSON; what is not known, such as the interval of one seed, is null."""
        return finite(dataclasses.asdict(self))


def leaderboard(runs: Sequence[Run], own: Collection[str]) -> Leaderboard:
    """Return the leaderboard of finished runs.

    Args:
        runs: of the user's algorithms and of those they are compared with.
        own: names of the user's. A task that none of them has run is left out.

    Raises:
        ValueError: runs of one task differ in what they are tuned toward or evaluated on, or runs of one algorithm in
            more than their seed.
    """
    by_task: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_task.setdefault(run.task, {}).setdefault(run.variant, []).append(run)
    boards = [_board(task, found, own) for task, found in by_task.items() if set(found) & set(own)]
    return Leaderboard(boards, _overall(boards))


def _board(task: str, by_name: Mapping[str, Sequence[Run]], own: Collection[str]) -> Board:
    for name, found in by_name.items():
        check_one_setting(task, name, [run.spec for run in found])
    # How many queries they make may differ: that is what equal forwards are for.
    known = {(terms(found[0].spec)[0], terms(found[0].spec)[2]) for found in by_name.values()}
    if len(known) > 1:
        raise ValueError(
            f"runs of {', '.join(by_name)} on {task} differ in their task or their evaluation, and cannot be compared; "
            "expected results of this version's suite."
        )
    ends = {name: min(run.evaluations[-1].costs[_FORWARDS] for run in found) for name, found in by_name.items()}
    shortest = min(ends, key=lambda name: ends[name])
    forwards = ends[shortest]
    rewards = {
        name: np.array([[run.evaluations[0].mean_reward, _at(run, forwards, _reward)] for run in found])
        for name, found in by_name.items()
    }
    scale = scale_of(rewards)
    scores = {name: ((found[:, 1] - scale.starts[name]) / scale.unit).tolist() for name, found in rewards.items()}
    rows = [_row(name, name in own, found, forwards, scores[name]) for name, found in by_name.items()]
    rows.sort(key=lambda row: -row.reward.estimate)
    return Board(task, forwards, shortest, next(iter(scale.starts.values())), scale.unit, rows)


def _row(name: str, own: bool, runs: Sequence[Run], forwards: float, scores: list[float]) -> Row:
    def over(read: Callable[[Evaluation], float]) -> Interval:
        return over_seeds([[_at(run, forwards, read) for run in runs]])[0]

    lines = [line for run in runs for line in run.evaluations]
    metrics = [name for name in lines[0].metrics if all(name in line.metrics for line in lines)]
    return Row(
        algorithm=name,
        own=own,
        seeds=[run.seed for run in runs],
        reward=over(_reward),
        held_out=over(_held_out) if all(line.held_out for line in lines) else None,
        scores=scores,
        queries=_mean(runs, forwards, "reward_queries"),
        seconds=_mean(runs, forwards, "seconds"),
        metrics={metric: over(lambda line, metric=metric: line.metrics[metric]) for metric in metrics},  # type: ignore[misc]
        processors=sorted({run.provenance.get("gpu") or run.provenance["processor"] for run in runs}),
    )


def _reward(line: Evaluation) -> float:
    return line.mean_reward


def _held_out(line: Evaluation) -> float:
    assert line.held_out is not None
    return float(np.mean(line.held_out.rewards))


def _at(run: Run, forwards: float, read: Callable[[Evaluation], float]) -> float:
    """Return a number of a run's evaluations after so many forwards."""
    return float(
        np.interp(forwards, [line.costs[_FORWARDS] for line in run.evaluations], list(map(read, run.evaluations)))
    )


def _mean(runs: Sequence[Run], forwards: float, cost: str) -> float:
    return float(np.mean([_at(run, forwards, lambda line: line.costs[cost]) for run in runs]))


def _overall(boards: Sequence[Board]) -> list[Overall]:
    """Return the mean scores of the algorithms that every board has; every task has the same weight."""
    found = []
    for row in boards[0].rows if boards else ():
        same = [[other for other in board.rows if other.algorithm == row.algorithm] for board in boards]
        if all(same):
            strata = [np.array(rows[0].scores) for rows in same]
            found.append(Overall(row.algorithm, row.own, _pooled(strata)))
    return sorted(found, key=lambda one: -one.score.estimate)


def _pooled(by_task: Sequence[np.ndarray]) -> Interval:
    """Return the mean over tasks of the mean over runs."""
    if any(len(scores) < 2 for scores in by_task):
        return Interval(_mean_of_tasks([scores[None] for scores in by_task]).item(), math.nan, math.nan, "nothing")
    return stratified_bootstrap([by_task], _mean_of_tasks)[0]


def _mean_of_tasks(scores: Resamples) -> np.ndarray:
    return np.mean([runs.mean(1) for runs in scores], axis=0)


def overall_table(found: Leaderboard) -> Table:
    """Return the mean scores over all tasks."""
    rows: list[list[Cell]] = [
        [[str(at + 1)], _named(one), [f"{one.score.estimate:.2f}{bracketed(one.score)}"]]
        for at, one in enumerate(found.overall)
    ]
    return Table([Column("place"), Column("algorithm", is_text=True), Column("mean score")], rows)


def board_table(found: Leaderboard) -> Table:
    """Return each task's rows: reward, on held-out prompts too, what was spent, and the metrics of all prompts."""
    every = [row for board in found.boards for row in board.rows]
    # A metric with options, such as a task's own beta, is one column.
    names = list(dict.fromkeys(_short(name) for row in every for name in row.metrics if kind_of(name) is None))
    held_out = any(row.held_out for row in every)
    heads = ("forwards", "seeds", "reward", *(["held-out prompts"] if held_out else []), "queries", "seconds", *names)
    rows: list[list[Cell]] = []
    for board in found.boards:
        for row in board.rows:
            metrics = {_short(name): value for name, value in row.metrics.items()}
            head = [[f"{board.forwards:,.0f}"], [str(len(row.seeds))], [_shown(row.reward, 3)]]
            apart = [[_shown(row.held_out, 3)]] if held_out else []
            costs = [[f"{row.queries:,.0f}"], [f"{row.seconds:.0f}"]]
            cells = [[_shown(metrics.get(name), 2)] for name in names]
            rows.append([[board.task], _named(row), *head, *apart, *costs, *cells])
    return Table([Column("task", is_text=True), Column("algorithm", is_text=True), *map(Column, heads)], rows)


def notes(found: Leaderboard) -> str:
    """Say what is compared, what the scores are, and what the numbers do not say."""
    every = [row for board in found.boards for row in board.rows]
    ends = "; ".join(f"{board.task}: {board.forwards:,.0f}, where {board.shortest} ends" for board in found.boards)
    said = [
        f"All numbers are those after equal forwards of the denoiser ({ends}); between two evaluations they are "
        "interpolated linearly. A score is the gain in reward as a part of the largest gain of any row on the task."
    ]
    if any(len(row.seeds) == 1 for row in every):
        said.append("One seed has no interval, and says nothing about other training runs.")
    processors = list(dict.fromkeys(name for row in every for name in row.processors))
    if len(processors) > 1:
        said.append(f"Seconds are of different machines ({', '.join(processors)}) and compare little.")
    return " ".join(said)


def _short(metric: str) -> str:
    return metric.partition("?")[0]


def _named(row: Row | Overall) -> Cell:
    return [Name(row.algorithm), *([" (own)"] if row.own else [])]


def _shown(value: Interval | None, digits: int) -> str:
    return "" if value is None else f"{value.estimate:.{digits}f}{bracketed(value, digits)}"
