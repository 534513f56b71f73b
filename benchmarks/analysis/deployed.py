"""Both samplers side by side: the rewards that ``evaluate`` measured under the one that a tuned model is used with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis.statistics import Interval, over_seeds
from benchmarks.analysis.table import bracketed, markdown

_MOMENTS = ("start", "end")


def read_scored(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the runs in files that ``diffusion-gym evaluate`` wrote.

    Raises:
        ValueError: a file that it did not write.
    """
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            found += json.loads(file.read_text(encoding="utf-8"))["runs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no output of diffusion-gym evaluate: {error}.") from error
    return found


def deployed_table(scored: Sequence[Mapping[str, Any]]) -> str:
    """Return, as Markdown, reward at start and end under both samplers, for each task and algorithm over its seeds.

    Held-out rewards are under the deployed sampler.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in scored:
        task, variant = run["run"].split("/")[-3:-1]
        groups.setdefault((task, variant), []).append(run)
    header = [
        "task",
        "algorithm",
        "seeds",
        "training sampler",
        "gain",
        "deployed sampler",
        "gain",
        "held out, deployed",
    ]
    rows = [[*names, str(len(runs)), *_cells(runs)] for names, runs in sorted(groups.items())]
    return markdown(header, rows)


def _cells(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    cells: list[str] = []
    for sampler in ("training_sampler", "deployed_sampler"):
        start, end = (_over_runs(runs, sampler, moment) for moment in _MOMENTS)
        changes = [_mean(run[sampler]["end"]) - _mean(run[sampler]["start"]) for run in runs]
        gain = over_seeds([changes])[0]
        cells += [f"{start.estimate:.3f} to {end.estimate:.3f}", f"{gain.estimate:+.3f}{bracketed(gain, 3)}"]
    held_out = [run["deployed_sampler"] for run in runs]
    if not all("held_out" in each[moment] for each in held_out for moment in _MOMENTS):
        return [*cells, ""]
    start, end = (over_seeds([[_mean(each[moment]["held_out"]) for each in held_out]])[0] for moment in _MOMENTS)
    return [*cells, f"{start.estimate:.3f} to {end.estimate:.3f}{bracketed(end, 3)}"]


def _over_runs(runs: Sequence[Mapping[str, Any]], sampler: str, moment: str) -> Interval:
    return over_seeds([[_mean(run[sampler][moment]) for run in runs]])[0]


def _mean(scores: Mapping[str, Any]) -> float:
    rewards = scores["rewards"]
    return float(sum(rewards) / len(rewards))
