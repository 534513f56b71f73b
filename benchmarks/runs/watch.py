"""What carries a run's safeguards out: they decide from ``evaluations.jsonl``, so that a resumed run decides alike."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms.callbacks import EvaluationCallback, KeepBest, StopAtKL, StopWhenMetricFalls
from algorithms.evaluation import Evaluation
from benchmarks.runs.folder import BEST, CHECKPOINT, RUN, read_json, replace_by_link, write_json
from benchmarks.runs.safeguards import HELD_OUT, Safeguards


def safeguard_callbacks(
    safeguards: Safeguards, folder: Path, lines: Sequence[Mapping[str, Any]], latest: Callable[[], Mapping[str, Any]]
) -> list[EvaluationCallback]:
    """Return what carries a run's safeguards out.

    Args:
        safeguards: the run's.
        folder: the run's.
        lines: of ``evaluations.jsonl`` so far, up to the checkpoint; a resumed run decides as one never stopped.
        latest: returns the line of the evaluation that is being looked at.
    """
    callbacks: list[EvaluationCallback] = []
    if safeguards.keep_best is not None:
        name = safeguards.keep_best
        earlier = [value_of(line, name) for line in lines]
        # Also of an evaluation that the log no longer has: the last one of a run that was then made longer.
        held = read_json(folder / RUN).get("best") or {}
        earlier += [held["value"]] if held.get("metric") == name else []
        callbacks.append(_KeepBestInFolder(folder, name, lambda _: value_of(latest(), name), earlier))
    if safeguards.stop_at_kl is not None:
        callbacks.append(StopAtKL(safeguards.stop_at_kl))
    if safeguards.stop_when_metric_falls is not None:
        watched = safeguards.stop_when_metric_falls
        earlier = [value_of(line, watched) for line in lines]
        callbacks.append(
            StopWhenMetricFalls(lambda _: value_of(latest(), watched), safeguards.patience, watched, earlier)
        )
    return callbacks


def value_of(line: Mapping[str, Any], name: str) -> float:
    """Return a metric's value in a line of ``evaluations.jsonl``; NaN where it was not measured."""
    part = line.get("held_out", {}) if name.startswith(HELD_OUT) else line
    bare = name.removeprefix(HELD_OUT)
    if bare == "reward":
        return statistics.fmean(part["rewards"]) if part else math.nan
    value = part.get("metrics", {}).get(bare)
    return math.nan if value is None else float(value)


class _KeepBestInFolder(KeepBest):
    """Keeps ``best.zip`` beside ``checkpoint.zip``, and says in ``run.json`` what it is.

    The run's own checkpoint is written first, and the best one is a link to it: so the best is never younger than the
    checkpoint that a killed run goes on from, which looks at that evaluation again.
    """

    def __init__(self, folder: Path, name: str, metric: Callable[[Evaluation], float], earlier: list[float]) -> None:
        super().__init__(folder / BEST, metric, earlier)
        self._folder, self._name = folder, name

    def save_best(self, evaluation: Evaluation, value: float) -> None:
        self.algorithm.save(self._folder / CHECKPOINT)
        replace_by_link(self._folder / CHECKPOINT, self._folder / BEST)
        best = {"metric": self._name, "value": value, "iteration": evaluation.iteration}
        write_json(self._folder / RUN, {**read_json(self._folder / RUN), "best": best})
