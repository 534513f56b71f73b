"""What a comparison's raw results say over training: one curve for each variant on each task, seeds put together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.analysis.results import Run, full_spec, seed_of, spec_key, task_of, variant_of
from benchmarks.analysis.statistics import Interval, interquartile_mean, over_seeds, summarise
from benchmarks.runs.metrics import more_is_better


@dataclass(frozen=True)
class Peak:
    """A metric's best moment against its end: interquartile means over the runs of each run's own best and end.

    Attributes:
        start, best, final: of the metric. The best of many evaluations is above what others of that moment would show.
            All runs begin with the same pictures, so the end's interval says how sure the change from the start is too.
        queries: reward queries at each run's best, interquartile mean.
        places: each run's best evaluation.
        fallen: how many runs end below their start.
    """

    start: float
    best: float
    queries: float
    final: Interval
    places: list[int]
    fallen: int


@dataclass(frozen=True)
class Curve:
    """One variant on one task over its evaluations.

    Where some of its runs are finished, the others are left out; where none is, the curve ends with the shortest.

    Attributes:
        runs: indices into the results' runs, one a seed.
        finished: whether they are.
        seeds: of these runs.
        specs: their specifications as text: equal where a run stands in another curve too.
        terms: task, reward queries and evaluation as text: equal where two curves can be compared.
        queries, forwards, times, images: reward queries, UNet forward-equivalents, mean training seconds and sampled
            images at each evaluation.
        reward: the interval at each evaluation.
        held_out: the same on prompts that are not trained on; empty where none were evaluated.
        metrics: name -> interquartile mean over seeds at each evaluation, with its interval where there are several.
        held_out_metrics: the same on prompts that are not trained on.
        peaks: metric, of those of which more is better -> its best moment against its end.
        seconds: training seconds to the end, mean over seeds.
        by_run: mean evaluation rewards, (runs, evaluations), float64.
    """

    runs: list[int]
    finished: bool
    seeds: list[int]
    specs: list[str]
    terms: str
    queries: list[float]
    forwards: list[float]
    times: list[float]
    images: list[float]
    reward: list[Interval]
    held_out: list[Interval]
    metrics: dict[str, list[Interval]]
    held_out_metrics: dict[str, list[Interval]]
    peaks: dict[str, Peak]
    seconds: float
    by_run: np.ndarray

    @property
    def finals(self) -> np.ndarray:
        """Each seed's mean reward at the end, (runs,)."""
        return self.by_run[:, -1]

    def places(self, seeds: Sequence[int]) -> list[int]:
        """Return where these seeds' runs stand in ``runs`` and ``by_run``."""
        return [self.seeds.index(seed) for seed in seeds]


#: Task -> variant -> curve.
Curves = Mapping[str, Mapping[str, Curve]]


def curves(results: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    """Return task -> variant -> curve, in the order of the runs; seeds are put together.

    Raises:
        ValueError: runs of one variant on one task differ in more than their seed.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    for index, run in enumerate(results["runs"]):
        if run["evaluations"]:
            groups.setdefault(task_of(run), {}).setdefault(variant_of(run), []).append(index)
    return {
        task: {variant: _curve(results["runs"], indices) for variant, indices in by_variant.items()}
        for task, by_variant in groups.items()
    }


def _curve(all_runs: Sequence[Run], indices: Sequence[int]) -> Curve:
    check_one_setting([all_runs[index] for index in indices])
    finished = [index for index in indices if all_runs[index].get("complete", True)]
    chosen = finished or list(indices)
    steps = list(zip(*(all_runs[index]["evaluations"] for index in chosen), strict=False))
    held_out = [[line["held_out"] for line in step] for step in steps] if "held_out" in steps[0][0] else []

    def cost(name: str) -> list[float]:
        return [step[0]["costs"][name] for step in steps]  # the same for every seed

    times = [_mean([line["costs"]["seconds"] for line in step]) for step in steps]
    metrics = _metrics(steps)
    return Curve(
        runs=chosen,
        finished=bool(finished),
        seeds=[seed_of(all_runs[index]) for index in chosen],
        specs=[spec_key(all_runs[index]["spec"]) for index in chosen],
        terms=terms(all_runs[chosen[0]]),
        queries=cost("reward_queries"),
        forwards=cost("forward_equivalents"),
        times=times,
        images=cost("images"),
        reward=summarise([[line["rewards"] for line in step] for step in steps]),
        held_out=summarise([[line["rewards"] for line in step] for step in held_out]),
        metrics=metrics,
        held_out_metrics=_metrics(held_out),
        peaks={name: _peak(steps, name, values) for name, values in metrics.items() if more_is_better(name)},
        seconds=times[-1],
        by_run=np.array([[_mean(line["rewards"]) for line in step] for step in steps]).T,
    )


def _metrics(steps: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[Interval]]:
    names = _common_metrics(steps) if steps else []
    return {name: over_seeds([[line["metrics"][name] for line in step] for step in steps]) for name in names}


def _common_metrics(steps: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the metrics that all evaluations have: an older version measured fewer."""
    return [name for name in steps[0][0]["metrics"] if all(name in line["metrics"] for step in steps for line in step)]


def _peak(steps: Sequence[Sequence[Mapping[str, Any]]], name: str, together: Sequence[Interval]) -> Peak:
    values = np.array([[line["metrics"][name] for line in step] for step in steps])  # (evaluations, runs)
    best = np.nan_to_num(values, nan=-np.inf).argmax(0)
    highest = values[best, np.arange(values.shape[1])]
    queries = np.array([line["costs"]["reward_queries"] for line in (step[0] for step in steps)])
    peak, at = (float(interquartile_mean(numbers)) for numbers in (highest, queries[best]))
    fallen = int((values[-1] < values[0]).sum())
    return Peak(together[0].estimate, peak, at, together[-1], best.tolist(), fallen)


def check_one_setting(runs: Sequence[Run]) -> None:
    """Check that runs can be put together in one curve.

    Raises:
        ValueError: they differ in more than their seed; the message names what.
    """

    def setting(run: Run) -> dict[str, Any]:
        spec = full_spec(run["spec"])
        config = {key: value for key, value in spec["config"].items() if key != "seed"}
        return {**config, **spec["task"], **spec.get("safeguards", {}), "reward_queries": spec["reward_queries"]}

    first = setting(runs[0])
    different = sorted({key for run in runs[1:] for key, value in setting(run).items() if first.get(key) != value})
    if different:
        raise ValueError(
            f"runs of {variant_of(runs[0])} toward {task_of(runs[0])} differ in {', '.join(different)}, not in their "
            "seed alone: they cannot be put together in one curve. Report each run's own folder, and give runs of "
            "other settings another --folder."
        )


def terms(run: Run) -> str:
    """Return what runs of a task must share to be compared, as text: task, reward queries, and how they are evaluated.

    How often they are evaluated may differ.
    """
    spec = full_spec(run["spec"])
    evaluation = {key: value for key, value in spec["config"].get("evaluation", {}).items() if key != "every"}
    return json.dumps([spec["task"], spec["reward_queries"], evaluation], sort_keys=True)


def check_one_comparison(runs: Sequence[Run]) -> None:
    """Check that runs of one task, whatever their variants, can be compared.

    Raises:
        ValueError: they differ in their task, their reward queries or their evaluation.
    """
    first = terms(runs[0])
    for run in runs[1:]:
        if terms(run) != first:
            names = " and ".join(dict.fromkeys(variant_of(found) for found in (runs[0], run)))
            queries = [found["spec"]["reward_queries"] for found in (runs[0], run)]
            raise ValueError(
                f"runs of {names} on {task_of(run)} differ in their task, their reward queries ({queries[0]} and "
                f"{queries[1]}) or their evaluation: they cannot be compared. Give runs of other terms another "
                "--folder and --results."
            )


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))
