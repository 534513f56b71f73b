"""JSON lines: each line is appended whole or not at all; NaN, which JSON lacks, is written as null."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Append one line; on OSError the file ends where it did before."""
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
    """Read JSON lines that all have a key; none from a missing file.

    A torn last line, which a killed run may leave, is skipped. Raise ValueError for another damaged line.
    """
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else [""]
    lines = []
    for number, text in enumerate(texts[:-1], 1):  # after the last line's end comes nothing, or a torn line
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
