"""``inspect``: what the log of a run, finished or not, or of another program's run, shows of reward hacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from benchmarks.hacking.readings import Reading
    from benchmarks.hacking.rule import Rule, Sign


@dataclass(frozen=True)
class Inspect:
    """Say whether a run's log shows that its reward is being hacked."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder, finished or not, or a CSV file of another program's metrics: columns queries (or step), reward,
    and any of reward_spread, prompt_spread, no_spread, kl_to_start, diversity, clip_diversity, sharpness,
    colourfulness, flat_area, and rewards by their names, such as clip_score."""


def inspect(options: Inspect) -> int:
    """Print what each detector says, and what train would have said; returns the exit status.

    Raises:
        ValueError: neither a run's folder nor such a file.
    """
    from benchmarks.hacking.csv_files import read_csv
    from benchmarks.hacking.readings import readings_of
    from benchmarks.runs.folder import holds_run
    from benchmarks.runs.run import read_run

    path = options.run
    if not path.exists():
        raise ValueError(f"there is no file or folder {str(path)!r}; expected a run's folder or a CSV file of metrics.")
    if path.is_file():
        found = read_csv(path)
        if found.unknown:
            print(f"columns that no detector looks at: {', '.join(found.unknown)}")
        print(report(found.readings, found.place if found.place == "queries" else "steps"))
        return 0
    if not holds_run(path):
        raise ValueError(
            f"{str(path)!r} is neither a run's folder (with a run.json, as train writes it) nor a CSV file of metrics."
        )
    run = read_run(path)
    if not run.evaluations:
        raise ValueError(f"the run in {str(path)!r} has no evaluations so far; detectors look at nothing else.")
    print(report(readings_of(run), "queries"))
    return 0


def report(readings: Sequence[Reading], unit: str) -> str:
    """Return the lines of the detectors and of the rule; ``unit``: of the readings' places, queries or steps."""
    from benchmarks.hacking.detectors import DETECTORS, without_scale
    from benchmarks.hacking.rule import shipped_rule

    rule = shipped_rule()
    if len(readings) == 1:
        return "Not known: there is one evaluation so far, and hacking shows in what changes after the first."
    signs, watch = rule.signs(readings), ", ".join(rule.watch)
    if unit != "queries":
        signs.pop("kl-rate", None)
    lines = [f"{name:<15}{_said(name, rule, signs, unit)}" for name in DETECTORS]
    if left_out := without_scale(readings):
        lines.append(
            f"metric-falls does not look at {', '.join(left_out)}: what begins at 0 or below, or lies around 0, has no "
            "share that could fall"
        )
    alarm = rule.alarm_of(signs)
    if alarm is not None:
        since = f"{alarm.queries:,.0f} {unit}"
        verdict = f"The reward is probably being hacked, since {since}: {rule.at_least} of {watch} say so."
    elif missing := rule.lacking(signs):
        verdict = f"Not known: {rule.at_least} of {watch} decide, and {', '.join(missing)} could not be measured."
    else:
        verdict = f"No sign of hacking: {rule.at_least} of {watch} would have to say so."
    return "\n".join([*lines, "", verdict])


def _said(name: str, rule: Rule, signs: Mapping[str, Sign | None], unit: str) -> str:
    from benchmarks.hacking.detectors import DETECTORS

    if name not in rule.thresholds:
        return "has no threshold: it could not be tuned on committed runs"
    if name not in signs:
        needs = DETECTORS[name].needs
        return f"not measured; needs {needs} at every evaluation, and for changes and falls above 0 at the first"
    sign = signs[name]
    return "nothing" if sign is None else f"{sign.text} since {sign.queries:,.0f} {unit}"
