"""The callbacks of a run's safeguards: they decide from ``evaluations.jsonl``, so that a resumed run decides alike."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms.callbacks import EvaluationCallback, KeepBest, StopAtKL, StopWhenMetricFalls
from algorithms.evaluation import Evaluation
from benchmarks.hacking.readings import Reading, reading_of
from benchmarks.hacking.rule import Alarm, Rule, shipped_rule
from benchmarks.runs.folder import BEST, CHECKPOINT, RUN, read_json, replace_by_link, write_json
from benchmarks.runs.record import Evaluation as Line
from benchmarks.runs.safeguards import HELD_OUT, Safeguards
from benchmarks.runs.spec import RunSpec


def safeguard_callbacks(
    safeguards: Safeguards,
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    latest: Callable[[], Mapping[str, Any]],
    hacking: "WatchForHacking | None" = None,
) -> list[EvaluationCallback]:
    """Return the callbacks that stop a run early and keep its best checkpoint.

    ``lines``: of ``evaluations.jsonl``, up to the checkpoint; ``latest``: returns the present evaluation's line;
    ``hacking``: among the callbacks; if it stops the run, nothing from its alarm on is kept as the best.
    """
    callbacks: list[EvaluationCallback] = [] if hacking is None else [hacking]
    best, falling = safeguards.kept_by, safeguards.stop_when_metric_falls
    if best is not None:
        earlier = [value_of(line, best) for line in lines]
        # The last evaluation of a run that was then made longer is in the log no more.
        held = read_json(folder / RUN).get("best") or {}
        earlier += [held["value"]] if held.get("metric") == best else []

        def value(evaluation: Evaluation) -> float:
            return math.nan if hacking is not None and hacking.reason is not None else value_of(latest(), best)

        callbacks.append(_KeepBestInFolder(folder, best, value, earlier))
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


class WatchForHacking(EvaluationCallback):
    """Report once when a run's log shows that its reward is being hacked, and optionally stop the run.

    Where the first evaluation lacks what the rule needs, that is reported instead.

    Attributes:
        alarm: what the log shows; None while it shows nothing.
    """

    def __init__(
        self,
        read: Callable[[], Reading],
        earlier: Sequence[Reading] = (),
        say: Callable[[str], None] = lambda text: None,
        stops: bool = False,
        rule: Rule | None = None,
    ) -> None:
        """Set up for a run.

        Args:
            read: returns the present evaluation's reading; called on the first rank only.
            earlier: of the evaluations before, of a resumed run.
            say: called with a line for the user.
            stops: whether to stop the run.
            rule: when there is an alarm; None takes the one that ships.
        """
        super().__init__()
        self._read, self._readings, self._say, self._stops = read, list(earlier), say, stops
        self._rule = shipped_rule() if rule is None else rule
        self.alarm: Alarm | None = self._rule.alarm(self._readings)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Read the evaluation; say so if it raises the alarm. Collective."""
        before, ranks = self.alarm, self.algorithm.ranks
        if before is None:
            self.alarm = ranks.gather_objects(self._look_at_log() if ranks.is_first else None)[0]
        if self.alarm is not None and self._stops:
            self.reason = f"the log shows reward hacking: {self.alarm}"
        elif self.alarm is not None and before is None:
            self._say(f"is the reward being hacked? {self.alarm} (--stop-when-hacked would stop here)")

    def _look_at_log(self) -> Alarm | None:
        self._readings.append(self._read())
        if len(self._readings) == 1 and (why := self._rule.silent(self._readings)) is not None:
            self._say(f"reward hacking is not watched for: {why}")
        return self._rule.alarm(self._readings)


def watch_for_hacking(
    spec: RunSpec,
    prompts: Sequence[str],
    lines: Sequence[Mapping[str, Any]],
    latest: Callable[[], Mapping[str, Any]],
    say: Callable[[str], None],
) -> WatchForHacking | None:
    """Return what watches a run; None if it makes no evaluations. ``prompts``: of an evaluation's images."""
    if spec.config.evaluation.images == 0:
        return None

    def read(line: Mapping[str, Any]) -> Reading:
        return reading_of(Line.from_json(line), prompts, spec.task.reward)

    return WatchForHacking(
        lambda: read(latest()), [read(line) for line in lines], say, spec.safeguards.stop_when_hacked
    )


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
