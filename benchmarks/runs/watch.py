"""The callbacks of a run's safeguards: they decide from ``evaluations.jsonl``, so that a resumed run decides alike."""

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
    """Return the callbacks that stop a run early and keep its best checkpoint.

    ``lines``: of ``evaluations.jsonl``, up to the checkpoint; ``latest``: returns the present evaluation's line.
    """
    callbacks: list[EvaluationCallback] = []
    best, falling = safeguards.keep_best, safeguards.stop_when_metric_falls
    if best is not None:
        earlier = [value_of(line, best) for line in lines]
        # The last evaluation of a run that was then made longer is in the log no more.
        held = read_json(folder / RUN).get("best") or {}
        earlier += [held["value"]] if held.get("metric") == best else []
        callbacks.append(_KeepBestInFolder(folder, best, lambda _: value_of(latest(), best), earlier))
    if safeguards.stop_at_kl is not None:
        callbacks.append(StopAtKL(safeguards.stop_at_kl))
    if falling is not None:
        earlier = [value_of(line, falling) for line in lines]
        watch = StopWhenMetricFalls(lambda _: value_of(latest(), falling), safeguards.patience, falling, earlier)
        callbacks.append(watch)
    return callbacks


def value_of(line: Mapping[str, Any], name: str) -> float:
    """Return a metric's value in a line of ``evaluations.jsonl``; NaN if it was not measured."""
    part = line.get("held_out", {}) if name.startswith(HELD_OUT) else line
    bare = name.removeprefix(HELD_OUT)
    if bare == "reward":
        return statistics.fmean(part["rewards"]) if part else math.nan
    value = part.get("metrics", {}).get(bare)
    return math.nan if value is None else float(value)


class _KeepBestInFolder(KeepBest):
    """Keep ``best.zip`` beside ``checkpoint.zip``, and name it in ``run.json``.

    The run's own checkpoint is written first, and the best is a link to it, so that it is never newer than the
    checkpoint from which a killed run resumes and makes that evaluation again.
    """

    def __init__(self, folder: Path, name: str, metric: Callable[[Evaluation], float], earlier: list[float]) -> None:
        super().__init__(folder / BEST, metric, earlier)
        self._folder, self._name = folder, name

    def save_best(self, evaluation: Evaluation, value: float) -> None:
        self.algorithm.save(self._folder / CHECKPOINT)
        replace_by_link(self._folder / CHECKPOINT, self._folder / BEST)
        best = {"metric": self._name, "value": value, "iteration": evaluation.iteration}
        write_json(self._folder / RUN, {**read_json(self._folder / RUN), "best": best})
