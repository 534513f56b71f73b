"""Settings of the runs: a table of what differs between algorithms, and apart from it what all share."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.runs.record import Run

_ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class Settings:
    """Settings side by side.

    Attributes:
        columns: variant, and the tasks that it has these settings on; "" where it has the same on all.
        rows: what differs: name, and its value in each column; what all have, and then what only some have.
        same: what all share, a line for each.
    """

    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[str]]]
    same: str


def settings(runs: Sequence[Run]) -> Settings:
    """Return the settings of all runs but their seeds."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        tasks = found.setdefault((run.variant, json.dumps(_flat(run))), [])
        if run.task not in tasks:
            tasks.append(run.task)
    each = [json.loads(text) for _, text in found]
    names = list(dict.fromkeys(name for one in each for name in one))
    values = {name: [_text(one[name]) if name in one else _ABSENT for one in each] for name in names}
    rows = [(name, row) for name, row in values.items() if len(set(row)) > 1]
    variants = [variant for variant, _ in found]
    return Settings(
        columns=[
            (variant, ", ".join(tasks) if variants.count(variant) > 1 else "") for (variant, _), tasks in found.items()
        ],
        rows=sorted(rows, key=lambda row: _ABSENT in row[1]),
        same="\n".join(f"{name}: {row[0]}" for name, row in values.items() if len(set(row)) == 1),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _flat(run: Run) -> dict[str, Any]:
    spec = run.spec.to_json()
    config = {key: value for key, value in spec["config"].items() if key != "seed"}
    return dict(_named({"algorithm": spec["algorithm"], "reward_queries": spec["reward_queries"], **config}))


def _named(data: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Return all values with their names, those of inner ones joined by dots."""
    pairs = []
    for key, value in data.items():
        pairs += _named(value, f"{before}{key}.") if isinstance(value, Mapping) else [(before + key, value)]
    return pairs
