"""``detectors``: chooses thresholds and rule on half of the committed runs, and measures them on the other half."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from benchmarks.hacking.rule import THRESHOLDS, Rule

if TYPE_CHECKING:
    from benchmarks.hacking.judged import Judged

#: In the documentation's folder of results.
MEASURED = Path("detectors", "detectors.json")


@dataclass(frozen=True)
class Detectors:
    """Tune the detectors of reward hacking on half of the committed runs, and measure them on the other half."""

    results: Path = Path("docs/results")
    """Folder of the committed results; what was measured is written to its detectors/detectors.json."""
    thresholds: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: the package's own)")] = THRESHOLDS
    """File for the thresholds and the rule, which train and inspect read."""


def detectors(options: Detectors) -> int:
    """Write thresholds and measurements, and print the tables; returns the exit status."""
    from benchmarks.hacking.judged import committed_runs
    from benchmarks.hacking.tables import measured_text
    from benchmarks.runs.folder import write_json

    if not options.results.is_dir():
        raise ValueError(f"{str(options.results)!r} is not a folder; expected docs/results in a clone.")
    rule, measured = tune(committed_runs(options.results))
    write_json(options.thresholds, rule.to_json())
    file = options.results / MEASURED
    file.parent.mkdir(exist_ok=True)
    write_json(file, measured)
    print(measured_text(measured))
    return 0


def tune(runs: Sequence[Judged]) -> tuple[Rule, dict[str, Any]]:
    """Return the rule chosen on one half of judged runs, and how it and the detectors do on the other, as JSON.

    Raises:
        ValueError: gold falls in no run of that half.
    """
    from benchmarks.hacking import measure as m
    from benchmarks.hacking.detectors import DETECTORS
    from benchmarks.hacking.judged import halves

    tuning, held_out = halves(runs)
    found = {name: m.tuned_threshold(tuning, name) for name in DETECTORS}
    thresholds = {name: float(f"{value:.4g}") for name, value in found.items() if value is not None}
    if not thresholds:
        raise ValueError("gold falls in none of the runs on which thresholds are chosen; expected committed results.")
    rule = dataclasses.replace(m.tuned_rule(tuning, thresholds), thresholds=thresholds)
    time = m.tuned_time(tuning)
    rows = [_row(name, thresholds.get(name), held_out) for name in DETECTORS]
    measured = {
        "within": m.WITHIN,
        "runs": [_counts(half) for half in (tuning, held_out)],
        "rule": rule.to_json(),
        "detectors": rows,
        "watch": dataclasses.asdict(m.skill(held_out, m.rule_alarms(rule))),
        "time": {"queries": time, **dataclasses.asdict(m.skill(held_out, m.fixed_alarms(time)))},
        "stops": {
            which: dataclasses.asdict(
                m.stops([run for run in held_out if (run.fall is None) == kept], m.rule_alarms(rule))
            )
            for which, kept in (("falls", False), ("kept", True))
        },
    }
    return rule, json.loads(json.dumps(measured))


def _row(name: str, threshold: float | None, held_out: Sequence[Judged]) -> dict[str, Any]:
    from benchmarks.hacking.measure import detector_alarms, skill

    measured = sum(name in run.scores for run in held_out)
    row: dict[str, Any] = {
        "detector": name,
        "threshold": threshold,
        "runs": measured,
        "unmeasured": len(held_out) - measured,
    }
    return row if threshold is None else row | dataclasses.asdict(skill(held_out, detector_alarms(name, threshold)))


def _counts(half: Sequence[Judged]) -> dict[str, int]:
    return {"all": len(half), "falls": sum(run.fall is not None for run in half)}
