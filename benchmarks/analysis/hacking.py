"""What the hacking suite says: gold against the proxy for each variant, and what a stop would have kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.gold import GoldCurve, gold_curve, proxy_of
from benchmarks.analysis.statistics import (
    Interval,
    interquartile_mean,
    over_seeds,
    pooled_interquartile_mean,
    stratified_bootstrap,
)
from benchmarks.analysis.table import Cell, Column, Name, Table, bracketed
from benchmarks.analysis.units import unit_of
from benchmarks.runs.record import Run

#: Gold as a metric of :func:`gold_runs`.
GOLD = "gold"
#: Tasks on which a plain run loses its gold, and all tasks.
HACKED = ("compressibility", "incompressibility", "aesthetic")
TASKS = (*HACKED, "geneval", "mixture-linear")
#: The other form of an algorithm that is shown.
_LEFT_OUT = ("ddpo-sf", "sparse-rwr")
#: Shares of its start that gold is kept at.
KEPT = (0.9, 0.8)
_UNIT = "ddpo-is"  # whose gain the others' are shown in
_PATIENCE = 2  # evaluations
_KL_LIMIT = 20.0  # nats per image

#: What a stop may look at, over the evaluations: the reward as "reward", and each metric.
Watched = Mapping[str, np.ndarray]
#: The index of the evaluation at which it stops; None if it never does, or cannot see what it looks at.
Stop = Callable[[Watched], int | None]


def gold_runs(runs: Sequence[Run]) -> list[Run]:
    """Return the suite's runs with the proxy as their reward, and gold among their metrics.

    So runs on several rewards stand beside those on the first alone, under its task. Of a task the evaluations are kept
    that all its runs have: runs of other suites are longer, and evaluated more often. Runs of other tasks are left out.
    """
    by_task: dict[str, list[Run]] = {name: [] for name in TASKS}
    for run in runs:
        name = next((name for name in TASKS if run.task in (name, f"{name}-floor", f"{name}-sum")), None)
        if name is not None and run.evaluations and run.variant not in _LEFT_OUT:
            by_task[name].append(run)
    return [run for name, found in by_task.items() for run in _alike(name, found)]


def _alike(task: str, runs: Sequence[Run]) -> Iterator[Run]:
    """Yield the runs with equal evaluations; those without a gold are left out."""
    marks = set.intersection(*(_queries(run) for run in runs)) if runs else set()
    for run in runs:
        kept = replace(run, evaluations=[line for line in run.evaluations if line.costs["reward_queries"] in marks])
        found = gold_curve(kept)
        if found is None:
            continue
        proxy = proxy_of(run)
        lines = [
            replace(
                line, rewards=line.parts.get(proxy, line.rewards), metrics={**line.metrics, GOLD: gold}, held_out=None
            )
            for line, gold in zip(kept.evaluations, map(float, found.gold), strict=True)
        ]
        spec = replace(run.spec, task=replace(run.spec.task, reward=proxy))
        yield replace(kept, task=task, evaluations=lines, spec=spec)


def _queries(run: Run) -> set[float]:
    return {line.costs["reward_queries"] for line in run.evaluations}


def seeds_of(curve: Curve) -> list[GoldCurve]:
    """Return gold and proxy of each of a curve's runs, which are runs of :func:`gold_runs`."""
    gold, queries = curve.metrics_by_run[GOLD], np.array(curve.queries)
    return [GoldCurve(GOLD, queries, *both, both[1]) for both in zip(curve.by_run, gold, strict=True)]


def reward_kept(run: GoldCurve, share: float) -> tuple[float, bool]:
    """Return the highest proxy before gold first falls below a share of its start, and whether it does.

    The point of the fall lies between two evaluations, in proportion.
    """
    level = share * run.gold[0]
    below = run.gold < level
    if not below.any():
        return float(run.proxy.max()), False
    at = int(below.argmax())
    part = (run.gold[at - 1] - level) / (run.gold[at - 1] - run.gold[at])
    crossing = run.proxy[at - 1] + part * (run.proxy[at] - run.proxy[at - 1])
    return float(max(run.proxy[:at].max(), crossing)), True


# -- stops ------------------------------------------------------------------------------------------------------------


def _falls(name: str, watched: Watched) -> int | None:
    """Stop as ``--stop-when-metric-falls``: so many evaluations in a row are not better than the best before them."""
    best, since = -np.inf, 0
    for at, value in enumerate(watched.get(name, ())):
        best, since = (value, 0) if value > best else (best, since + 1)
        if since == _PATIENCE:
            return at
    return None


def _too_far(watched: Watched) -> int | None:
    """Stop as ``--stop-at-kl``."""
    over = np.flatnonzero(watched.get("kl_to_start", np.zeros(0)) > _KL_LIMIT)
    return int(over[0]) if len(over) else None


#: What is said of a stop -> the stop.
STOPS: dict[str, Stop] = {
    "reward no higher twice": lambda watched: _falls("reward", watched),
    "clip_score no higher twice": lambda watched: _falls("clip_score", watched),
    f"KL above {_KL_LIMIT:g}": _too_far,
}


def stops(curve: Curve, stop: Stop) -> tuple[list[int], int]:
    """Return the index of each run's evaluation at which it stops, or of its last one, and how many stop before it."""
    last = len(curve.queries) - 1
    names = {name: values for name, values in curve.metrics_by_run.items() if name != GOLD}
    found = [
        stop({"reward": curve.by_run[run], **{name: values[run] for name, values in names.items()}})
        for run in range(len(curve.runs))
    ]
    return [last if at is None else at for at in found], sum(at is not None and at < last for at in found)


# -- tables -----------------------------------------------------------------------------------------------------------

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
    """Return the reward that is had while gold is at least nine and eight tenths of its start."""
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
    nine tenths of its start, and eight.
    """
    lost = {task: found for task, found in summary.items() if task in HACKED and _UNIT in found}
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(name for found in lost.values() for name in found):
        pairs = [(found[name], found[_UNIT]) for found in lost.values() if name in found]
        columns = [[measure(*pair) for pair in pairs] for measure in (_gold_left, _gain, *map(_gain_kept, KEPT))]
        cells = [_ended(stratified_bootstrap([strata], pooled_interquartile_mean)[0]) for strata in columns]
        rows.append([[Name(name)], [str(len(pairs))], *cells])
    kept = [f"while gold is at {share:.0%}" for share in KEPT]
    titles = ("tasks", "gold at the end, of its start", "gain of reward", *kept)
    return Table([_FIRST[1], *map(Column, titles)], rows) if rows else None


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
