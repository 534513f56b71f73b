"""Where the watch for reward hacking raises its alarm, as marks on the curves of the reward."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.analysis.curves import Curves
from benchmarks.hacking.readings import readings_of
from benchmarks.hacking.rule import shipped_rule
from benchmarks.runs.record import Run


@dataclass(frozen=True)
class Mark:
    """An alarm on one variant's curve.

    Attributes:
        task, variant: of the curve.
        at: index of the evaluation that is marked; with several runs that of the median alarm.
        text: which signs there are since then; with several runs how many runs have an alarm.
    """

    task: str
    variant: str
    at: int
    text: str


def marks(summary: Curves, runs: Sequence[Run]) -> list[Mark]:
    """Return the alarms of all curves; a curve none of whose runs has one is left out."""
    found = []
    for task, by_variant in summary.items():
        for variant, curve in by_variant.items():
            alarms = [shipped_rule().alarm(readings_of(runs[index])) for index in curve.runs]
            fired = [alarm for alarm in alarms if alarm is not None]
            if not fired:
                continue
            since = statistics.median(alarm.queries for alarm in fired)
            at = next((at for at, queries in enumerate(curve.queries) if queries >= since), len(curve.queries) - 1)
            many = f"{len(fired)} of {len(alarms)} runs show signs of it, the median since {since:,.0f} queries"
            found.append(Mark(task, variant, at, str(fired[0]) if len(alarms) == 1 else many))
    return found
