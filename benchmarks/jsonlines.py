"""JSON lines: appended whole or not at all, read up to a torn one, and no NaN, which JSON does not have."""

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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines up to the first torn one: a running or killed run may have written its last line in part."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def finite(data: Any) -> Any:
    """Return nested data with None in place of NaN and infinities."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
