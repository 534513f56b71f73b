"""The rule that watches runs: several detectors with their thresholds, and how many of them must have fired."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hacking.detectors import DETECTORS
from benchmarks.hacking.readings import Reading

#: Written by ``diffusion-gym detectors``.
THRESHOLDS = Path(__file__).parent / "thresholds.json"


@dataclass(frozen=True)
class Sign:
    """A detector that has fired.

    Attributes:
        detector: its name.
        queries: since when.
        text: what has been so since then.
    """

    detector: str
    queries: float
    text: str

    def __str__(self) -> str:
        return f"{self.text} since {self.queries:,.0f} queries"


@dataclass(frozen=True)
class Alarm:
    """What the rule says of a run.

    Attributes:
        queries: of the evaluation at which it fired.
        signs: that it fired for, the earliest first.
    """

    queries: float
    signs: Sequence[Sign]

    def __str__(self) -> str:
        return ", and ".join(map(str, self.signs))


@dataclass(frozen=True)
class Rule:
    """When a run counts as hacked.

    Attributes:
        thresholds: detector -> the number from which it fires; a detector without one never fires.
        watch: the detectors that count.
        at_least: how many of them must have fired.
    """

    thresholds: Mapping[str, float]
    watch: Sequence[str]
    at_least: int

    def signs(self, readings: Sequence[Reading], names: Sequence[str] | None = None) -> dict[str, Sign | None]:
        """Return what detectors say, all with a threshold if none is named; None where one has not fired.

        Those whose number is missing at a reading are left out: they could not be measured.
        """
        found: dict[str, Sign | None] = {}
        for name in self.thresholds if names is None else names:
            scores = DETECTORS[name].scores(readings)
            if any(map(math.isnan, scores)):
                continue
            at = next((at for at, score in enumerate(scores) if score >= self.thresholds[name]), None)
            seen = readings[: 0 if at is None else at + 1]
            found[name] = Sign(name, seen[-1].queries, DETECTORS[name].says(seen)) if seen else None
        return found

    def alarm(self, readings: Sequence[Reading]) -> Alarm | None:
        """Return the alarm if enough of the watching detectors have fired so far."""
        return self.alarm_of(self.signs(readings, self.watch))

    def alarm_of(self, signs: Mapping[str, Sign | None]) -> Alarm | None:
        """Return the alarm that follows from what :meth:`signs` returned."""
        fired = [sign for name in self.watch if (sign := signs.get(name)) is not None]
        kept = sorted(fired, key=lambda sign: sign.queries)[: self.at_least]
        return Alarm(kept[-1].queries, kept) if len(kept) == self.at_least else None

    def lacking(self, signs: Mapping[str, Sign | None]) -> list[str]:
        """Return the watching detectors that :meth:`signs` left out, if too few others remain for an alarm."""
        missing = [name for name in self.watch if name not in signs]
        return missing if len(self.watch) - len(missing) < self.at_least else []

    def silent(self, readings: Sequence[Reading]) -> str | None:
        """Return why there can be no alarm, whatever comes: too few detectors could be measured; None if there can."""
        missing = self.lacking(self.signs(readings, self.watch))
        if not missing:
            return None
        return (
            f"{self.at_least} of {', '.join(self.watch)} decide, and {', '.join(missing)} could not be measured: "
            "an evaluation must show prompts at least twice (--evaluation.images), and its rewards must differ"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the rule as JSON."""
        return {"thresholds": dict(self.thresholds), "watch": list(self.watch), "at_least": self.at_least}


@functools.cache
def shipped_rule() -> Rule:
    """Return the rule of ``thresholds.json``."""
    data = json.loads(THRESHOLDS.read_text(encoding="utf-8"))
    return Rule(data["thresholds"], data["watch"], data["at_least"])
