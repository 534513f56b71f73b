"""The hacking suite's runs as gold against the proxy, and where an early stop would have ended them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.analysis.curves import Curve
from benchmarks.analysis.gold import GoldCurve, gold_curve, proxy_of
from benchmarks.runs.record import Run

#: Gold as a metric of :func:`gold_runs`.
GOLD = "gold"
#: Tasks on which a plain run loses its gold, and all tasks.
HACKED = ("compressibility", "incompressibility", "aesthetic")
TASKS = (*HACKED, "geneval", "mixture-linear")
#: Variants that are left out: of their algorithm another form is shown.
_LEFT_OUT = ("ddpo-sf", "sparse-rwr")
_PATIENCE = 2  # evaluations
_KL_LIMIT = 20.0  # nats per image

#: What a stop may look at, over the evaluations: the reward as "reward", and each metric.
Watched = Mapping[str, np.ndarray]
#: The index of the evaluation at which it stops; None if it never does, or cannot see what it looks at.
Stop = Callable[[Watched], int | None]


def gold_runs(runs: Sequence[Run]) -> list[Run]:
    """Return the suite's runs with the proxy as their reward, and gold among their metrics.

    So runs on several rewards are compared with those on the first alone, under its task. Of a task the evaluations are
    kept that all its runs have: runs of other suites are longer, and evaluated more often. Runs of other tasks are left
    out.
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
