"""Runs of other programs, as a CSV file of metrics."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hacking.readings import COLUMNS, REWARD, REWARD_SPREAD, Reading, is_gold
from diffusion_gym.rewards import REWARDS

#: Where a line is in training: the first of these that a file has.
_PLACES = ("queries", "step")
#: What other programs call a column -> our name.
_SYNONYMS = {"reward_mean": REWARD, "reward_std": REWARD_SPREAD, "kl": "kl_to_start"}


@dataclass(frozen=True)
class CSVRun:
    """A run of another program.

    Attributes:
        readings: one per line of the file; the first is the start of training.
        place: the column that says where a line is, "queries" or "step".
        unknown: columns that no detector looks at.
    """

    readings: list[Reading]
    place: str
    unknown: list[str]


def read_csv(file: Path) -> CSVRun:
    """Read a CSV file with a header: "queries" or "step", "reward", and any other column that detectors look at.

    Other rewards by their names (such as clip_score) are metrics. An empty cell is not measured.

    Raises:
        ValueError: not such a file: a column is missing, a cell is no number, or a line has too many or too few cells.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header, *lines = [line for line in csv.reader(opened) if line] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{str(file)!r} cannot be read as CSV ({error}); expected a header and lines in UTF-8."
        ) from None
    names = [_SYNONYMS.get(cell.strip(), cell.strip()) for cell in header]
    place = next((name for name in _PLACES if name in names), None)
    missing = ([] if place else [" or ".join(_PLACES)]) + ([] if REWARD in names else [REWARD])
    if missing or place is None:
        raise ValueError(
            f"{str(file)!r} lacks the column {' and the column '.join(missing)}, got {', '.join(names) or 'nothing'}. "
            f"Known are also {', '.join(name for name in COLUMNS if name != REWARD)}, and the names of rewards."
        )
    known = [name for name in names if name in COLUMNS or (name in REWARDS and not is_gold(name))]
    readings = []
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(names):
            raise ValueError(f"line {number} of {str(file)!r} has {len(cells)} cells; expected {len(names)}.")
        values = {
            name: _number(cell, name, number, file) for name, cell in zip(names, cells, strict=True) if name in known
        }
        at = _number(cells[names.index(place)], place, number, file)
        if math.isnan(at) or math.isnan(values[REWARD]):
            raise ValueError(
                f"line {number} of {str(file)!r} needs a number for {place} and reward, got an empty cell."
            )
        readings.append(Reading(at, {name: value for name, value in values.items() if not math.isnan(value)}))
    if not readings:
        raise ValueError(f"{str(file)!r} has no line below its header; expected one per evaluation.")
    return CSVRun(readings, place, [name for name in names if name not in known and name not in _PLACES])


def _number(cell: str, name: str, number: int, file: Path) -> float:
    if not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"line {number} of {str(file)!r} has {cell!r} for {name}; expected a number.") from None
