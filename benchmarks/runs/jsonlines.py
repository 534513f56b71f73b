"""A run's log as JSON lines."""

import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter

from diffusion_gym.jsonlines import append_line


class JSONLines(KVWriter):
    """Write a Stable-Baselines3 log as JSON lines, appended, so that a resumed run continues the file."""

    def __init__(self, path: Path) -> None:
        """Args: path: of the file."""
        self._path = path

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one line."""
        append_line(self._path, {"step": step, "clock": round(time.time(), 3), **key_values})

    def close(self) -> None:
        """Do nothing: the file is open only while a line is written."""
