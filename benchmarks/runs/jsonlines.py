"""JSON lines: appended whole or not at all, read but for a torn last one, and no NaN, which JSON does not have."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Append one line, by one write of the system, so that a killed process seldom tears it.

    Raises:
        OSError: the disk is full or not writable; the file ends where it did.
    """
    line = (json.dumps(finite(data)) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, 2)
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)
            raise


def read_lines(path: Path, key: str) -> list[dict[str, Any]]:
    """Read JSON lines, but for a torn last one: a running or killed run may have written it in part.

    Args:
        path: of the file; one that is not there has no lines.
        key: what every line holds.

    Raises:
        ValueError: a line that no run writes.
    """
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else [""]
    lines = []
    for number, text in enumerate(texts[:-1], 1):  # behind the last line's end there is nothing, or a torn line
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or key not in line:
            raise ValueError(
                f"line {number} of {str(path)!r} is damaged: expected a mapping with {key!r}, as a run writes it. Put "
                "a copy of the file back, or delete the line."
            )
        lines.append(line)
    return lines


def finite(data: Any) -> Any:
    """Return nested data with None in place of NaN and infinities."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
