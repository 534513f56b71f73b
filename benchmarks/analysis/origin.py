"""Where a shown number comes from: runs, evaluations and field in ``results.json``, and what was made of the values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.analysis.curves import Curve, Curves


@dataclass(frozen=True)
class Origin:
    """The values that a number was made from.

    Attributes:
        runs: indices into the results' runs; empty for a number of a run's log.
        evaluations: for each run, the index of its evaluation.
        field: path inside an evaluation, joined by dots; in a log the number's name.
        how: what was made of the values.
        log: index of the log's line; None for a number of ``results.json``.
    """

    runs: tuple[int, ...]
    evaluations: tuple[int, ...]
    field: str
    how: str
    log: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the origin for the page's script."""
        if self.log is not None:
            return {"log": self.log, "field": self.field, "how": self.how, "path": f"metrics.jsonl: {self.field!r}"}
        same = len(set(self.evaluations)) == 1
        at = str(self.evaluations[0]) if same else ",".join(map(str, self.evaluations))
        return {
            "runs": self.runs,
            "evaluations": self.evaluations,
            "field": self.field,
            "how": self.how,
            "path": f"results.json: runs[{','.join(map(str, self.runs))}].evaluations[{at}].{self.field}",
        }


def at_evaluation(curve: Curve, evaluation: int | Sequence[int], field: str, how: str) -> Origin:
    """Return the origin of a number of one curve, at one evaluation or at each run's own."""
    each = [evaluation] * len(curve.runs) if isinstance(evaluation, int) else evaluation
    return Origin(tuple(curve.runs), tuple(each), field, how)


def of_reward(curve: Curve, evaluation: int, field: str = "rewards") -> Origin:
    """Return the origin of an evaluation's reward and its interval."""
    if curve.reward[evaluation].over == "images":
        return at_evaluation(curve, evaluation, field, "mean over the images; 95 % bootstrap interval over images")
    how = "interquartile mean of the runs' means; 95 % bootstrap interval over runs"
    return at_evaluation(curve, evaluation, field, how)


def of_metric(curve: Curve, evaluation: int, name: str, held_out: bool = False) -> Origin:
    """Return the origin of a metric and its interval, on held-out prompts if so asked."""
    how = "interquartile mean over the runs; 95 % bootstrap interval over runs" if len(curve.runs) > 1 else "as logged"
    return at_evaluation(curve, evaluation, f"{'held_out.' if held_out else ''}metrics.{name}", how)


def of_cost(curve: Curve, evaluation: int, name: str) -> Origin:
    """Return the origin of a cost."""
    how = "mean over the runs" if len(curve.runs) > 1 else "as logged"
    return at_evaluation(curve, evaluation, f"costs.{name}", how)


def of_finals(
    summary: Curves, tasks: Sequence[str], names: Sequence[str], how: str, seeds: Sequence[int] | None = None
) -> Origin:
    """Return the origin of a number made of final rewards: of these variants on these tasks, of all seeds or some."""
    runs, last = [], []
    for curve in (summary[task][name] for task in tasks for name in names):
        places = curve.places(curve.seeds if seeds is None else seeds)
        runs += [curve.runs[place] for place in places]
        last += [len(curve.queries) - 1] * len(places)
    return Origin(tuple(runs), tuple(last), "rewards", how)
