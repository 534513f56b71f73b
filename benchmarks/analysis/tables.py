"""The tables of a comparison: rewards and costs, held-out prompts, which variant is better, peaks, equal rewards."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.analysis.aggregate import MARKS, Aggregate, Ahead, Improvement
from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.origin import at_evaluation, of_cost, of_finals, of_metric, of_reward
from benchmarks.analysis.statistics import Interval
from benchmarks.analysis.table import Cell, Column, Name, Number, Table, bracketed, from_to
from benchmarks.runs.gold_judge import JUDGE, KINDS, kind_of

#: Before a metric's name: on held-out prompts.
HELD_OUT = "held-out/"
_TASK, _ALGORITHM = Column("task", is_text=True), Column("algorithm", is_text=True)
_INTERVAL = ("95 % interval",)


def flat(summary: Curves) -> list[tuple[str, str, Curve]]:
    """Return task, variant and curve of every curve."""
    return [(task, name, curve) for task, by_variant in summary.items() for name, curve in by_variant.items()]


def metric_names(summary: Curves) -> list[str]:
    """Return every metric that some curve has, in order."""
    return list(dict.fromkeys(name for _, _, curve in flat(summary) for name in curve.metrics))


def overall_metric_names(summary: Curves) -> list[str]:
    """Return the metrics but those of one kind of prompts, which have a table of their own (`judge_table`)."""
    return [name for name in metric_names(summary) if kind_of(name) is None]


def result_table(summary: Curves) -> Table:
    """Return rewards before and after with the interval, costs, and the metrics of all prompts together."""
    names = overall_metric_names(summary)
    seeds = has_seeds(summary)
    titles = ("before", "after", *_INTERVAL[:seeds], "queries", "forwards", "seconds", *names)
    rows = [_result_row(task, variant, curve, names, seeds) for task, variant, curve in flat(summary)]
    return Table([_TASK, _ALGORITHM, *map(Column, titles)], rows)


def has_seeds(summary: Curves) -> bool:
    """Return whether some variant has several seeds: of one seed no interval is shown, because it would say little."""
    return any(len(curve.runs) > 1 for _, _, curve in flat(summary))


def over_seeds(value: Interval, digits: int = 3) -> Cell:
    """Return an interval over seeds; nothing if it is over the images of one seed."""
    return [from_to(value, digits)] if value.over == "seeds" else []


def _result_row(task: str, variant: str, curve: Curve, names: Sequence[str], seeds: bool) -> list[Cell]:
    end, final = len(curve.reward) - 1, curve.reward[-1]

    def cost(name: str, values: Sequence[float]) -> Cell:
        return [Number(f"{values[-1]:,.0f}" if name != "seconds" else f"{values[-1]:.0f}", of_cost(curve, end, name))]

    return [
        [task],
        [Name(variant)],
        [Number(f"{curve.reward[0].estimate:.3f}", of_reward(curve, 0))],
        [Number(f"{final.estimate:.3f}", of_reward(curve, end))],
        *([over_seeds(final)] if seeds else []),
        cost("reward_queries", curve.queries),
        cost("forward_equivalents", curve.forwards),
        cost("seconds", curve.times),
        *(start_to_end(curve, name) if name in curve.metrics else [] for name in names),
    ]


def start_to_end(curve: Curve, metric: str, held_out: bool = False) -> Cell:
    """Return a metric's start, and its end with the interval; of held-out prompts if so asked."""
    values = (curve.held_out_metrics if held_out else curve.metrics)[metric]
    first, last = (
        Number(f"{values[at].estimate:.2f}", of_metric(curve, at, metric, held_out)) for at in (0, len(values) - 1)
    )
    return [first, " to ", last, bracketed(values[-1])]


def task_table(by_variant: Mapping[str, Curve], names: Sequence[str]) -> Table:
    """Return one task's rewards and a few metrics, before to after.

    Args:
        by_variant: the task's curves.
        names: metrics; ``held-out/NAME`` is NAME on held-out prompts. A cell is empty where a run did not measure it.
    """
    rows: list[list[Cell]] = []
    for variant, curve in by_variant.items():
        cells: list[Cell] = []
        for name in names:
            held_out, metric = name.startswith(HELD_OUT), name.removeprefix(HELD_OUT)
            found = curve.held_out_metrics if held_out else curve.metrics
            cells.append(start_to_end(curve, metric, held_out) if metric in found else [])
        rows.append([[Name(variant)], _change(curve, curve.reward, "rewards"), [from_to(curve.reward[-1], 3)], *cells])
    titles = [f"{name.removeprefix(HELD_OUT)}, held out" if name.startswith(HELD_OUT) else name for name in names]
    return Table([_ALGORITHM, *map(Column, ("reward", "95 % interval", *titles))], rows)


def judge_table(summary: Curves) -> Table | None:
    """Return the gold judge's shares of right pictures, of all kinds and of each, on trained and held-out prompts.

    None if no run measured them.
    """
    names = [JUDGE, *(f"{JUDGE}-{tag}" for tag in KINDS)]
    names = [name for name in names if name in metric_names(summary)]
    rows: list[list[Cell]] = []
    for task, variant, curve in flat(summary):
        for prompts, found in (("trained", curve.metrics), ("held out", curve.held_out_metrics)):
            if JUDGE in found:
                cells = [start_to_end(curve, name, prompts != "trained") if name in found else [] for name in names]
                rows.append([[task], [Name(variant)], [prompts], *cells])
    columns = [_TASK, _ALGORITHM, Column("prompts", is_text=True)]
    return Table([*columns, *(Column(kind_of(name) or "all kinds") for name in names)], rows) if rows else None


def followed_table(summary: Curves) -> Table | None:
    """Return the gold judge's share of right pictures of all kinds, before to after, on trained and held-out prompts.

    None if no run measured it.
    """
    rows: list[list[Cell]] = [
        [
            [Name(variant)],
            f"{curve.queries[-1]:,.0f}",
            start_to_end(curve, JUDGE, False),
            start_to_end(curve, JUDGE, True),
        ]
        for _, variant, curve in flat(summary)
        if JUDGE in curve.held_out_metrics
    ]
    columns = ("reward queries", "trained prompts, right", "held-out prompts, right")
    return Table([_ALGORITHM, *map(Column, columns)], rows) if rows else None


def held_out_table(summary: Curves) -> Table | None:
    """Return rewards on trained and on held-out prompts side by side, or None if no prompts were held out."""
    interval = _INTERVAL[: has_seeds(summary)]
    columns = ("trained prompts", *interval, "held-out prompts", *interval, "share")
    rows: list[list[Cell]] = [
        [
            [task],
            [Name(variant)],
            _change(curve, curve.reward, "rewards"),
            *(over_seeds(curve.reward[-1]) for _ in interval),
            _change(curve, curve.held_out, "held_out.rewards"),
            *(over_seeds(curve.held_out[-1]) for _ in interval),
            [_share_of_gain(curve)],
        ]
        for task, variant, curve in flat(summary)
        if curve.held_out
    ]
    return Table([_TASK, _ALGORITHM, *map(Column, columns)], rows) if rows else None


def deployed_table(summary: Curves) -> Table | None:
    """Return the reward under the training sampler, reward and metrics under the deployed one, from start to end.

    None if nothing was evaluated with another sampler.
    """
    measured = [(task, name, curve) for task, name, curve in flat(summary) if curve.deployed]
    names = [name for name in overall_metric_names(summary) if any(name in c.deployed_metrics for _, _, c in measured)]
    interval = _INTERVAL[: has_seeds(summary)]
    columns = ("training sampler", *interval, "deployed sampler", *interval, *(f"{name}, deployed" for name in names))
    rows: list[list[Cell]] = []
    for task, variant, curve in measured:
        ends = curve.deployed_at[0], curve.deployed_at[-1]
        trained = [curve.reward[at] for at in ends]
        cells: list[Cell] = [_between(curve, ends, trained, "rewards"), *(over_seeds(trained[-1]) for _ in interval)]
        cells.append(_between(curve, ends, curve.deployed, "deployed.rewards"))
        cells += [over_seeds(curve.deployed[-1]) for _ in interval]
        for name in names:
            found = curve.deployed_metrics.get(name)
            cells.append(_between(curve, ends, found, f"deployed.metrics.{name}") if found else [])
        rows.append([[task], [Name(variant)], *cells])
    return Table([_TASK, _ALGORITHM, *map(Column, columns)], rows) if rows else None


def _between(curve: Curve, ends: tuple[int, int], values: Sequence[Interval], field: str) -> Cell:
    """Return the first and the last value, which were measured at the evaluations ``ends``."""
    shown = (values[0], values[-1]) if len(values) > 1 else values
    numbers = [
        Number(f"{value.estimate:.3f}", of_reward(curve, at, field)) for value, at in zip(shown, ends, strict=False)
    ]
    return [numbers[0], " to ", numbers[1]] if len(numbers) > 1 else [numbers[0]]


def _change(curve: Curve, values: Sequence[Interval], field: str) -> Cell:
    end = len(values) - 1
    first, last = (Number(f"{values[at].estimate:.3f}", of_reward(curve, at, field)) for at in (0, end))
    return [first, " to ", last]


def _share_of_gain(curve: Curve) -> str:
    """Return how much of the gain on trained prompts is had on held-out ones, if there certainly is a gain."""
    start, end = curve.reward[0].estimate, curve.reward[-1]
    if end.estimate <= start:
        return "no gain"
    if end.low <= start:  # a share of a gain that may be 0 can be any number
        return "no sure gain"
    other = curve.held_out[-1].estimate - curve.held_out[0].estimate
    return f"{other / (end.estimate - start):.0%}"


def improvement_table(pairs: Sequence[Improvement], summary: Curves) -> Table | None:
    """Return the probability of improvement of each pair, by task and together, or None if there is no pair."""
    if not pairs:
        return None
    tasks = list(dict.fromkeys(task for pair in pairs for task in pair.by_task))
    several = any(pair.together for pair in pairs)
    columns = [Column("a run of", is_text=True), Column("ends above a run of", is_text=True), *map(Column, tasks)]
    rows = []
    for pair in pairs:
        row: list[Cell] = [[Name(pair.better)], [Name(pair.worse)]]
        for task in tasks:
            value, ahead = pair.by_task.get(task), pair.ahead.get(task)
            row.append([] if value is None else _probability(pair, value, summary, [task], ahead))
        if several:
            row.append([] if pair.together is None else _probability(pair, pair.together, summary, list(pair.by_task)))
        rows.append(row)
    return Table([*columns, Column("all tasks")] if several else columns, rows)


def _probability(
    pair: Improvement, value: Interval, summary: Curves, tasks: Sequence[str], ahead: Ahead | None = None
) -> Cell:
    how = f"share of pairs of runs in which {pair.better} ends above {pair.worse}, a tie one half, averaged over tasks"
    origin = of_finals(summary, tasks, [pair.better, pair.worse], how)
    seeds = "" if ahead is None else f", {ahead.better} of {ahead.seeds}"
    return [Number(f"{value.estimate:.2f}", origin), f" ({from_to(value, 2)}){seeds}"]


def score_table(found: Aggregate, summary: Curves) -> Table:
    """Return statistics of the normalised scores over all tasks, and shares of runs above some scores."""
    columns = [_ALGORITHM]
    for title in ("interquartile mean", "mean", "optimality gap"):
        columns += [Column(title), Column("95 % interval")]
    columns += [Column(f"runs above {mark}") for mark in MARKS]
    rows = []
    for name in found.variants:
        row: list[Cell] = [[Name(name)]]
        for what, value in (
            ("interquartile mean", found.scores[name]),
            ("mean", found.means[name]),
            ("mean distance below 1", found.gaps[name]),
        ):
            how = f"{what} of the normalised scores of all runs"
            origin = of_finals(summary, found.tasks, [name], how, found.seeds)
            row += [[Number(f"{value.estimate:.2f}", origin)], [from_to(value, 2)]]
        shares = [found.profiles[name][found.thresholds.index(mark)] for mark in MARKS]
        rows.append([*row, *([f"{share.estimate:.2f}"] for share in shares)])
    return Table(columns, rows)


def peak_table(summary: Curves, names: Sequence[str] | None = None, only_passed: bool = False) -> Table | None:
    """Return each metric's start, best moment and end, or None if there is none.

    Args:
        summary: the curves.
        names: the metrics to show; None takes all but those of one kind of prompts.
        only_passed: leave out what is at its best at the start or at the end.
    """
    names = overall_metric_names(summary) if names is None else names
    rows = [
        _peak_row(task, variant, curve, name)
        for task, variant, curve in flat(summary)
        for name in curve.peaks
        if name in names and (curve.peaks[name].is_passed or not only_passed)
    ]
    columns = [_TASK, _ALGORITHM, Column("metric", is_text=True)]
    numbers = ("start", "best", "at queries", "end", "runs that end below their start")
    return Table([*columns, *map(Column, numbers)], rows) if rows else None


def _peak_row(task: str, variant: str, curve: Curve, name: str) -> list[Cell]:
    peak, end, mean = curve.peaks[name], len(curve.queries) - 1, "interquartile mean over the runs"
    best = at_evaluation(curve, peak.places, f"metrics.{name}", f"{mean} of each run's own best")
    queries = at_evaluation(curve, peak.places, "costs.reward_queries", f"{mean}, each at its own best")
    return [
        [task],
        [Name(variant)],
        [name],
        [Number(f"{peak.start:.2f}", of_metric(curve, 0, name))],
        [Number(f"{peak.best:.2f}", best)],
        [Number(f"{peak.queries:,.0f}", queries)],
        [Number(f"{peak.final.estimate:.2f}", of_metric(curve, end, name)), bracketed(peak.final)],
        [f"{peak.fallen} of {len(curve.runs)}"],
    ]


def equal_reward_table(summary: Curves, names: Sequence[str], marks: int = 4) -> Table | None:
    """Return what each variant has spent and become when it first reaches the same rewards.

    The rewards are evenly spaced from the start to the smallest of the variants' best. Between two evaluations values
    are interpolated linearly.

    Args:
        summary: curves whose variants begin at the same model.
        names: metrics to show; those that were not measured are left out.
        marks: rewards to compare at.

    Returns:
        the table, or None if no task has two variants that rise.
    """
    named = [name for name in names if name in metric_names(summary)]
    rows: list[list[Cell]] = []
    for task, by_variant in summary.items():
        start = min(curve.reward[0].estimate for curve in by_variant.values())
        reached = min(max(value.estimate for value in curve.reward) for curve in by_variant.values())
        if len(by_variant) < 2 or reached <= start:
            continue
        for reward in (start + (reached - start) * (k + 1) / marks for k in range(marks)):
            for variant, curve in by_variant.items():
                place = _first_at([value.estimate for value in curve.reward], reward)
                cells = [_metric_at(curve, name, place) for name in named]
                rows.append([[task], [f"{reward:.3f}"], [Name(variant)], [f"{_at(curve.queries, place):,.0f}"], *cells])
    return Table([_TASK, Column("reward"), _ALGORITHM, *map(Column, ("queries", *named))], rows) if rows else None


def _first_at(values: Sequence[float], reward: float) -> float:
    """Return where values first reach ``reward``, as an index with a fraction; they must reach it."""
    after = next(index for index, value in enumerate(values) if value >= reward)
    if after == 0:
        return 0.0
    before = values[after - 1]
    return after - 1 + (reward - before) / (values[after] - before)


def _metric_at(curve: Curve, name: str, place: float) -> Cell:
    values = curve.metrics.get(name)
    return [] if values is None else [f"{_at([value.estimate for value in values], place):.2f}"]


def _at(values: Sequence[float], place: float) -> float:
    return float(np.interp(place, np.arange(len(values)), values))
