"""A comparison's raw results as one JSON file, and the table made of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorithms.checkpoint import write_atomically
from benchmarks.provenance import provenance
from benchmarks.runs import RunRecord
from benchmarks.statistics import Interval, summarise


@dataclass(frozen=True)
class Curve:
    """One algorithm on one task over its evaluations.

    Where some of its runs are finished, the others are left out; where none is, the curve ends with the shortest.

    Attributes:
        runs: indices into the results' runs, one a seed.
        queries, forwards, times: reward queries, UNet forward-equivalents and mean training seconds at each evaluation.
        reward: the interval at each evaluation.
        metrics: name -> mean over seeds at each evaluation.
        seconds: training seconds to the end, mean over seeds.
        finals: each seed's mean reward at the end.
    """

    runs: list[int]
    queries: list[float]
    forwards: list[float]
    times: list[float]
    reward: list[Interval]
    metrics: dict[str, list[float]]
    seconds: float
    finals: list[float]


def collect_results(
    records: Sequence[RunRecord], root: Path, made_by: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Gather every run's specification and evaluations, JSON-serialisable.

    Args:
        records: the runs, finished or not.
        root: the folder that their folders are named from.
        made_by: provenance of the whole; by default this process's.
    """
    return {
        "provenance": provenance() if made_by is None else made_by,
        "runs": [
            {
                "folder": record.folder.relative_to(root).as_posix(),
                "complete": record.complete,
                "spec": record.spec.to_json(),
                "image_shape": record.image_shape,
                "prompts": record.prompts,
                "costs": record.costs,
                "evaluations": record.evaluations,
                "provenance": record.provenance,
            }
            for record in records
        ],
    }


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write the results, a run a line, atomically."""
    head = json.dumps({**results, "runs": []}, indent=1)
    runs = ",\n".join(json.dumps(run) for run in results["runs"])
    write_atomically(path, head.replace('"runs": []', f'"runs": [\n{runs}\n]').encode() + b"\n")


def read_results(path: Path) -> dict[str, Any]:
    """Read what :func:`write_results` wrote.

    Raises:
        ValueError: the file is missing or is no results file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not a results file as written by compare: {error!r}.") from error
    return results


def curves(results: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    """Return task (its reward) -> algorithm -> curve, in the order of the runs; seeds are put together.

    Raises:
        ValueError: runs of one algorithm on one task differ in more than their seed.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    for index, run in enumerate(results["runs"]):
        if run["evaluations"]:
            spec = run["spec"]
            groups.setdefault(spec["task"]["reward"], {}).setdefault(spec["algorithm"], []).append(index)
    return {
        task: {algorithm: _curve(results["runs"], indices) for algorithm, indices in by_algorithm.items()}
        for task, by_algorithm in groups.items()
    }


def _curve(all_runs: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Curve:
    _check_one_setting([all_runs[index] for index in indices])
    finished = [index for index in indices if all_runs[index].get("complete", True)]
    chosen = finished or list(indices)
    runs = [all_runs[index] for index in chosen]
    steps = list(zip(*(run["evaluations"] for run in runs), strict=False))
    # Those that all have: an older version measured fewer.
    names = [name for name in steps[0][0]["metrics"] if all(name in line["metrics"] for step in steps for line in step)]
    return Curve(
        runs=chosen,
        queries=[step[0]["costs"]["reward_queries"] for step in steps],
        forwards=[step[0]["costs"]["forward_equivalents"] for step in steps],
        times=[_mean([evaluation["costs"]["seconds"] for evaluation in step]) for step in steps],
        reward=[summarise([evaluation["rewards"] for evaluation in step]) for step in steps],
        metrics={
            name: [_mean([evaluation["metrics"][name] for evaluation in step]) for step in steps] for name in names
        },
        seconds=_mean([evaluation["costs"]["seconds"] for evaluation in steps[-1]]),
        finals=[_mean(evaluation["rewards"]) for evaluation in steps[-1]],
    )


def _check_one_setting(runs: Sequence[Mapping[str, Any]]) -> None:
    def setting(run: Mapping[str, Any]) -> dict[str, Any]:
        spec = run["spec"]
        config = {key: value for key, value in spec["config"].items() if key != "seed"}
        return {**config, **spec["task"], **spec.get("safeguards", {}), "reward_queries": spec["reward_queries"]}

    first = setting(runs[0])
    different = sorted({key for run in runs[1:] for key, value in setting(run).items() if first.get(key) != value})
    if different:
        raise ValueError(
            f"runs of {runs[0]['spec']['algorithm']} toward {runs[0]['spec']['task']['reward']} differ in "
            f"{', '.join(different)}, not in their seed alone: they cannot be put together in one curve. Report each "
            "run's own folder."
        )


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def table(all_curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """Return a Markdown table: reward before and after with its interval, costs, and the other metrics."""
    some = next(iter(next(iter(all_curves.values())).values()))
    names = list(some.metrics)
    header = ["task", "algorithm", "before", "after", "95 % interval", "queries", "forwards", "seconds", *names]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for task, by_algorithm in all_curves.items():
        for algorithm, curve in by_algorithm.items():
            last = curve.reward[-1]
            row = [
                task,
                algorithm,
                f"{curve.reward[0].estimate:.3f}",
                f"{last.estimate:.3f}",
                f"{last.low:.3f} to {last.high:.3f}",
                f"{curve.queries[-1]:,.0f}",
                f"{curve.forwards[-1]:,.0f}",
                f"{curve.seconds:.0f}",
                *(f"{curve.metrics[name][0]:.2f} to {curve.metrics[name][-1]:.2f}" for name in names),
            ]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def interval_note(all_curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """Say what the intervals are over."""
    ends = [curve for by_algorithm in all_curves.values() for curve in by_algorithm.values()]
    one = (
        "the intervals are over evaluation images (bootstrap of the mean). They say nothing about other training runs."
    )
    seeds = max(len(curve.finals) for curve in ends)
    if seeds == 1:
        return f"One seed: {one}"
    several = f"{seeds} seeds: interquartile mean of the seeds' means, 95 % bootstrap intervals over seeds."
    alone = any(len(curve.finals) == 1 for curve in ends)
    return f"{several} Where one seed alone is finished, {one}" if alone else several
