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

    Other rewards by their names (such as clip_score) are metrics. An empty cell, or nan, is not measured.

    Raises:
        ValueError: not such a file: a column is missing or there twice, a cell is no number, a line has too many or too
            few cells, or lies before the line above it.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            (_, header), *lines = [(reader.line_num, line) for line in reader if line] or [(1, [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{str(file)!r} cannot be read as CSV ({error}); expected a header and lines in UTF-8."
        ) from None
    names, place = _columns(header, file)
    known = [name for name in names if name in COLUMNS or (name in REWARDS and not is_gold(name))]
    readings: list[Reading] = []
    for number, cells in lines:
        if len(cells) != len(names):
            raise ValueError(f"line {number} of {str(file)!r} has {len(cells)} cells; expected {len(names)}.")
        values = {
            name: _number(cell, name, number, file) for name, cell in zip(names, cells, strict=True) if name in known
        }
        at = _number(cells[names.index(place)], place, number, file)
        if math.isnan(at) or math.isnan(values[REWARD]):
            raise ValueError(
                f"line {number} of {str(file)!r} needs a number for {place} and reward, got an empty cell or nan."
            )
        if readings and at < readings[-1].queries:
            raise ValueError(
                f"line {number} of {str(file)!r} has the {place} {at:g} after {readings[-1].queries:g}; expected lines "
                "in the order of training, of one run."
            )
        readings.append(Reading(at, {name: value for name, value in values.items() if not math.isnan(value)}))
    if not readings:
        raise ValueError(f"{str(file)!r} has no line below its header; expected one per evaluation.")
    return CSVRun(readings, place, [name or "(no name)" for name in names if name not in known and name != place])


def _columns(header: list[str], file: Path) -> tuple[list[str], str]:
    """Return our names of the columns, and which of them says where a line is in training."""
    names = [_SYNONYMS.get(cell.strip(), cell.strip()) for cell in header]
    place = next((name for name in _PLACES if name in names), None)
    missing = ([] if place else [" or ".join(_PLACES)]) + ([] if REWARD in names else [REWARD])
    if missing or place is None:
        raise ValueError(
            f"{str(file)!r} lacks the column {' and the column '.join(missing)}, got {', '.join(names) or 'nothing'}. "
            f"Known are also {', '.join(name for name in COLUMNS if name != REWARD)}, and the names of rewards."
        )
    twice = next((name for name in (place, *COLUMNS, *REWARDS) if names.count(name) > 1), None)
    if twice is not None:
        both = ", ".join(repr(cell) for cell, name in zip(header, names, strict=True) if name == twice)
        raise ValueError(f"{str(file)!r} has {twice} in several columns ({both}); expected one.")
    return names, place


def _number(cell: str, name: str, number: int, file: Path) -> float:
    if not cell.strip():
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise ValueError(f"line {number} of {str(file)!r} has {cell!r} for {name}; expected a finite number.")
    return value
