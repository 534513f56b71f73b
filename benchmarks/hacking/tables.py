"""Tables of how well the detectors do, from the JSON that ``detectors`` writes."""

from collections.abc import Mapping
from typing import Any

from benchmarks.analysis.statistics import Interval
from benchmarks.analysis.table import bracketed, joined, markdown
from benchmarks.hacking.detectors import DETECTORS

_NONE = ["", "", "", ""]


def measured_text(measured: Mapping[str, Any]) -> str:
    """Return the detectors' table, what stopping by the rule means, and how both were made, as Markdown."""
    return joined(_thresholds(measured["rule"]), _detectors(measured), _note(measured), _stops(measured))


def _thresholds(rule: Mapping[str, Any]) -> str:
    """Return what each detector looks at, and from which number on it fires."""
    rows = []
    for name, detector in DETECTORS.items():
        threshold = rule["thresholds"].get(name)
        rows.append([name, detector.needs, detector.number, "none" if threshold is None else f"{threshold:.4g}"])
    return markdown(["detector", "looks at", "compared with the threshold", "threshold"], rows)


def _detectors(measured: Mapping[str, Any]) -> str:
    rule = measured["rule"]
    watch = f"the watch, {rule['at_least']} of {', '.join(rule['watch'])}"
    rows = [_row(found["detector"], found) for found in measured["detectors"]]
    rows.append(_row(watch, measured["watch"]))
    time = measured["time"]
    rows.append(_row(f"no log: always at {time['queries']:,.0f} queries", time))
    head = ["detector", "runs", "precision", "recall", "lead, queries", "false alarms", "not measurable"]
    return markdown(head, rows)


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    if "precision" not in found:
        return [name, f"{found['runs']}", *_NONE, f"{found['unmeasured']}"]
    if not found["falls"]:
        numbers = ["", "", ""]
    else:
        numbers = [_number(found[key], 2) for key in ("precision", "recall")] + [_number(found["lead"], 0)]
    kept = found["runs"] - found["falls"]
    return [name, f"{found['runs']}", *numbers, f"{found['false_alarms']} of {kept}", f"{found['unmeasured']}"]


def _number(data: Mapping[str, Any], digits: int) -> str:
    interval = Interval(**{**data, **{key: float(data[key]) for key in ("estimate", "low", "high")}})
    return f"{interval.estimate:.{digits}f}{bracketed(interval, digits)}"


def _note(measured: Mapping[str, Any]) -> str:
    tuning, held_out = measured["runs"]
    return (
        f"Thresholds and the watch's rule are chosen on {tuning['all']} committed runs ({tuning['falls']} lose a tenth "
        f"of their gold), the table is of {held_out['all']} others ({held_out['falls']} lose it). A hash of a run's "
        "name decides, so both halves have the same settings with other seeds. An alarm is right if gold falls by a "
        f"tenth at most {measured['within']} reward queries before or after it. Lead is the "
        "median over right alarms; positive: the alarm came before the fall. False alarms are runs that keep their "
        "gold and have an alarm. Not measurable: runs whose results lack what the detector needs. A detector without "
        "a threshold never fires: no run with a fall has what it needs, or its number is 0 there. 95 % "
        "bootstrap intervals over runs."
    )


def _stops(measured: Mapping[str, Any]) -> str:
    names = {"falls": "lose a tenth of their gold", "kept": "keep it"}
    rows = []
    for which, name in names.items():
        found = measured["stops"][which]
        numbers = [_number(found[key], 2) for key in ("gold_at_stop", "gold_at_end", "reward")]
        rows.append([name, f"{found['runs']}", f"{found['stopped']}", *numbers])
    head = ["held-out runs that", "runs", "stopped", "gold at the stop", "gold at the end", "rise of the reward"]
    text = (
        "What `--stop-when-hacked` means for the same held-out runs, whose committed evaluations are cut at the one "
        "with the highest reward before the watch's alarm (gold as a share of its highest, mean over runs; rise of the "
        "reward as a share of that at the end, median over runs):"
    )
    return joined(text, markdown(head, rows))
