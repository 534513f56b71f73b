"""What the hacking suite says: what each remedy keeps of gold, at what cost of reward, and where runs are hacked."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.hacking import GOLD, HACKED, STOPS, reward_kept, seeds_of, stops
from benchmarks.analysis.statistics import (
    Interval,
    Resamples,
    interquartile_mean,
    over_seeds,
    pooled_interquartile_mean,
    stratified_bootstrap,
)
from benchmarks.analysis.table import Cell, Column, Name, Table, bracketed
from benchmarks.analysis.units import unit_of

#: Shares of its start that gold is kept at.
KEPT = (0.9, 0.8)
_UNIT = "ddpo-is"  # its gain of reward is the unit of all gains
_PLAIN = ("ddpo-is", "branched")  # what a remedy's name begins with
_FIRST = (Column("task", is_text=True), Column("algorithm", is_text=True))


def gold_table(summary: Curves) -> Table | None:
    """Return gold's start, highest and end, and the reward at the last two, or None if there are no runs."""
    rows: list[list[Cell]] = []
    for task, by_variant in summary.items():
        for variant, curve in by_variant.items():
            runs = seeds_of(curve)
            falls = [float(run.queries[run.fall]) for run in runs if run.fall is not None]
            at_peak = _over([float(run.proxy[run.peak]) for run in runs])
            rows.append(
                [
                    [task],
                    [Name(variant)],
                    [f"{_over([float(run.gold[0]) for run in runs]).estimate:.2f}"],
                    [f"{_over([float(run.gold[run.peak]) for run in runs]).estimate:.2f}"],
                    [f"{_over([float(run.queries[run.peak]) for run in runs]).estimate:,.0f}"],
                    _ended(_over([float(run.gold[-1]) for run in runs])),
                    [f"{len(falls)} of {len(runs)}"],
                    [f"{float(np.median(falls)):,.0f}"] if falls else [],
                    [unit_of(curve).text(at_peak.estimate)],
                    _reward(curve, _over([float(run.proxy[-1]) for run in runs])),
                ]
            )
    titles = ("gold, start", "highest", "at queries", "end", "fallen by a tenth", "at queries, median")
    return _table((*titles, "reward at the highest gold", "at the end"), rows)


def kept_table(summary: Curves) -> Table | None:
    """Return the highest reward while gold is at least nine tenths, and eight tenths, of its start."""
    rows: list[list[Cell]] = []
    for task, by_variant in summary.items():
        for variant, curve in by_variant.items():
            cells: list[Cell] = []
            for share in KEPT:
                found = [reward_kept(run, share) for run in seeds_of(curve)]
                whole = sum(not lost for _, lost in found)
                cells += [_reward(curve, _over([reward for reward, _ in found])), [f"{whole} of {len(found)}"]]
            start = float(interquartile_mean(curve.by_run[:, 0]))
            rows.append([[task], [Name(variant)], [unit_of(curve).text(start)], *cells])
    pairs = [(f"at {share:.0%} of gold", "never below") for share in KEPT]
    return _table(("reward, start", *(title for pair in pairs for title in pair)), rows)


def stop_table(summary: Curves, variants: Sequence[str]) -> Table | None:
    """Return reward and gold at each stop for some variants; rows of stops that see nothing of a task are left out."""
    rows: list[list[Cell]] = []
    for task, by_variant in summary.items():
        for variant in (name for name in variants if name in by_variant):
            curve = by_variant[variant]
            last = [len(curve.queries) - 1] * len(curve.runs)
            rows.append(_stop_row(task, variant, curve, "none: the end", last, 0))
            for rule, stop in STOPS.items():
                places, early = stops(curve, stop)
                if early:
                    rows.append(_stop_row(task, variant, curve, rule, places, early))
    columns = [*_FIRST, Column("stop", is_text=True), *map(Column, ("runs stopped", "at queries", "gold", "reward"))]
    return Table(columns, rows) if rows else None


def signs_table(summary: Curves, variant: str, names: Sequence[str]) -> Table | None:
    """Return reward, gold and metrics of a variant at the start, where gold has fallen by a tenth, and at the end.

    The fall is the median of the seeds'; a task on which fewer than half of them fall is left out.
    """
    rows: list[list[Cell]] = []
    for task, by_variant in summary.items():
        curve = by_variant.get(variant)
        falls = [] if curve is None else sorted(run.fall for run in seeds_of(curve) if run.fall is not None)
        if curve is None or 2 * len(falls) < len(curve.runs):
            continue
        places = {"start": 0, "gold has fallen": falls[len(falls) // 2], "end": len(curve.queries) - 1}
        for when, at in places.items():
            shown = [f"{curve.metrics[name][at].estimate:.2f}" if name in curve.metrics else "" for name in names]
            gold = f"{curve.metrics[GOLD][at].estimate:.2f}"
            reward = unit_of(curve).text(curve.reward[at].estimate)
            rows.append([[task], [when], [f"{curve.queries[at]:,.0f}"], [reward], *([cell] for cell in shown), [gold]])
    columns = [_FIRST[0], Column("when", is_text=True), *map(Column, ("queries", "reward", *names, GOLD))]
    return Table(columns, rows) if rows else None


def remedy_table(summary: Curves) -> Table | None:
    """Return each variant over the tasks whose gold a plain run loses: gold left, and gains of reward.

    1 is what plain DDPO-IS gains on the task, the interquartile mean of its runs: at the end, while gold is at least
    nine tenths of its start, and eight. The last column is that of eight minus the plain variant's of the algorithm.
    """
    lost = _lost(summary)
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(name for found in lost.values() for name in found):
        pairs = [(found[name], found[_UNIT]) for found in lost.values() if name in found]
        columns = [[measure(*pair) for pair in pairs] for measure in (_gold_left, _gain, *map(_gain_kept, KEPT))]
        cells = [_ended(stratified_bootstrap([strata], pooled_interquartile_mean)[0]) for strata in columns]
        more = _more(lost, name)
        against: Cell = [] if more is None else [f"{more.estimate:+.2f}{bracketed(more)}"]
        rows.append([[Name(name)], [str(len(pairs))], *cells, against])
    kept = [f"while gold is at {share:.0%}" for share in KEPT]
    titles = ("tasks", "gold at the end, of its start", "gain of reward", *kept, "against the plain one, stopped there")
    return Table([_FIRST[1], *map(Column, titles)], rows) if rows else None


def answer(summary: Curves) -> str:
    """Return which remedies have more reward at equal gold than their plain variant that is stopped; "" without any.

    More or less is sure where the interval of the last column of :func:`remedy_table` does not hold 0.
    """
    lost = _lost(summary)
    said: dict[str, list[str]] = {"more": [], "no sure difference": [], "less": []}
    for name in dict.fromkeys(name for found in lost.values() for name in found):
        more = _more(lost, name)
        if more is not None:
            said["more" if more.low > 0 else "less" if more.high < 0 else "no sure difference"].append(f"`{name}`")
    found = [f"{how}: {', '.join(names)}" for how, names in said.items() if names]
    start = "Reward while gold is at 80 % of its start, against the plain variant of the algorithm, stopped there: "
    end = ". A run whose gold stays above that counts with its highest reward."
    return start + "; ".join(found) + end if found else ""


def _lost(summary: Curves) -> dict[str, Mapping[str, Curve]]:
    return {task: found for task, found in summary.items() if task in HACKED and _UNIT in found}


def _more(lost: Curves, name: str) -> Interval | None:
    """Return how much more a remedy gains while gold is kept than its plain variant; None for other variants."""
    plain = next((other for other in _PLAIN if name.startswith(f"{other}-")), None)
    both = [found for found in lost.values() if name in found and plain in found]
    if plain is None or not both:
        return None
    groups = [[_gain_kept(KEPT[-1])(found[one], found[_UNIT]) for found in both] for one in (name, plain)]
    return stratified_bootstrap(groups, _difference)[0]


def _difference(own: Resamples, plain: Resamples) -> np.ndarray:
    return np.asarray(pooled_interquartile_mean(own) - pooled_interquartile_mean(plain))


def _gold_left(curve: Curve, unit: Curve) -> np.ndarray:
    gold = curve.metrics_by_run[GOLD]
    return np.asarray(gold[:, -1] / gold[:, 0])


def _gain(curve: Curve, unit: Curve) -> np.ndarray:
    own, other = (one.by_run[:, -1] - one.by_run[:, 0] for one in (curve, unit))
    return np.asarray(own / interquartile_mean(other))


def _gain_kept(share: float) -> Callable[[Curve, Curve], np.ndarray]:
    def measure(curve: Curve, unit: Curve) -> np.ndarray:
        own = [reward_kept(run, share)[0] - run.proxy[0] for run in seeds_of(curve)]
        return np.array(own) / interquartile_mean(unit.by_run[:, -1] - unit.by_run[:, 0])

    return measure


def _stop_row(task: str, variant: str, curve: Curve, rule: str, places: Sequence[int], early: int) -> list[Cell]:
    runs = seeds_of(curve)
    gold = _over([float(run.gold[at]) for run, at in zip(runs, places, strict=True)])
    reward = _over([float(run.proxy[at]) for run, at in zip(runs, places, strict=True)])
    queries = float(interquartile_mean(np.array([curve.queries[at] for at in places])))
    stopped = [f"{early} of {len(runs)}"] if early else []
    return [[task], [Name(variant)], [rule], stopped, [f"{queries:,.0f}"], _ended(gold), _reward(curve, reward)]


def _table(titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table | None:
    return Table([*_FIRST, *map(Column, titles)], rows) if rows else None


def _over(values: Sequence[float]) -> Interval:
    return over_seeds([values])[0]


def _ended(value: Interval) -> Cell:
    return [f"{value.estimate:.2f}", bracketed(value)]


def _reward(curve: Curve, value: Interval) -> Cell:
    shown = unit_of(curve).of(value)
    return [f"{shown.estimate:.2f}", bracketed(shown)]
